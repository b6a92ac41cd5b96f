"""What a network answers to rows without labels, by its head: read, run and written a stretch at a time.

The rows of a stretch are sorted by length into a few padded lengths, and written in the order of the
file. So memory does not grow with the file; CoNLL's columns and SQuAD's JSON alone are read whole.
Called by prediction."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxdistill.data import answer_tables, tokenizers
from jaxdistill.data.answer_tables import Record, short
from jaxdistill.data.answers import FILES, Decoded, Decoding, answer_files, decode
from jaxdistill.data.conll import Tagged, read_conll
from jaxdistill.data.encoded import Encoded, encode, join
from jaxdistill.data.feeds import Batch, Order, Outputs
from jaxdistill.data.files import whole_file, write_whole
from jaxdistill.data.intent_slots import INTENT, frames
from jaxdistill.data.rows import evaluation_batches
from jaxdistill.data.squad import Question, Questions, read_squad
from jaxdistill.data.tagged import Pieces, cut_notices, pieces
from jaxdistill.data.tagged import decode as decode_tags
from jaxdistill.data.unlabelled import TextColumns, Texts, read_unlabelled
from jaxdistill.data.windows import windows
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import predictions
from jaxdistill.models import Model, Params
from jaxdistill.training.progress import Progress

ROWS, CHARACTERS = 10_000, 2**25  # of a stretch at most, about
NUMBERS = 2**25  # that a network says of a stretch at most, about
_QUESTIONS = 1_000  # of a stretch
_WORD_FILES = (".conll", ".iob", ".iob2", ".bio")
_BLANKS = re.compile("[ \t\r\n]+")

Item = TypeVar("Item")
Tick = Callable[[float], None]  # is told which part of a stretch is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordColumns(TextColumns):
    """Where sentences are: in texts whose words have blanks between them or, with `token_column`, a
    number from 0, in CoNLL's columns, as in files named .conll, .iob or .bio."""

    token_column: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spans:
    """How questions are answered, as in `QuestionRows` and `Decoding`. `null_threshold`: inf gives
    every question an answer."""

    stride: int = 128
    question_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Network:
    """A model that is ready to answer with one `head`. `names`: of its classes; `length`: tokens of a
    row at most."""

    model: Model
    params: Params
    tokenizer: Any
    head: str
    names: tuple[str, ...]
    length: int
    batch_size: int
    mesh: Mesh

    @functools.cached_property
    def pad(self) -> int:
        return tokenizers.describe(self.tokenizer).special.pad

    def outputs(self, rows: Encoded, tick: Tick) -> Outputs:
        """The outputs of the head by name, [N, ...], for all N rows. Raises `BadInput` if any is not
        finite."""
        batches = evaluation_batches(rows.rows, Order(0, self.length), self.batch_size)
        ticking = _ticking(batches, math.ceil(len(rows) / self.batch_size), tick)
        found = predictions.predict(self.model, self.params, ticking, self.head, self.mesh)
        if not all(np.isfinite(values).all() for values in found.values()):
            raise BadInput(
                "the answers of this model are not finite: is it whole, and its tokenizer its own?"
            )
        return found


def _ticking(batches: Iterable[Batch], number: int, tick: Tick) -> Iterator[Batch]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        tick(done / number)


@dataclasses.dataclass(frozen=True)
class Written:
    """What was done: to how many `rows`, into which files. `notices`: what the user should know."""

    rows: int
    files: tuple[epath.Path, ...]
    notices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a head answers. `settings`: a dataclass; `endings`: of the files that `run(network, source,
    target, settings)` can write; `length`: tokens of a row where none are asked for."""

    settings: type
    endings: tuple[str, ...]
    run: Callable[[Network, epath.PathLike, epath.Path, Any], Written]
    length: int = 128


class _Answers(NamedTuple):
    """To a stretch of rows. `numbers`: the network's own, float32 [N, ...], if they can be written;
    `counts`: what was cut, by name."""

    records: Iterator[Record]
    counts: Mapping[str, int]
    numbers: np.ndarray | None = None


def stretches(rows: Iterable[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The rows in lists of at most `most`, and of `CHARACTERS` about; `size`: characters of a row."""
    stretch: list[Item] = []
    held = 0
    for row in rows:
        stretch.append(row)
        held += size(row)
        if len(stretch) == most or held >= CHARACTERS:
            yield stretch
            stretch, held = [], 0
    if stretch:
        yield stretch


def _characters(row: Texts) -> int:
    return sum(map(len, row))


def _ticks(bar: Progress, done: int, stretch: Sequence[Any]) -> Tick:
    return lambda part: bar.reach(done + int(part * len(stretch)))


@dataclasses.dataclass(frozen=True)
class _Stream:
    """`number` rows and the file for the answers to them. `lines`: of a .tsv file."""

    rows: Iterable[Texts]
    number: int
    target: epath.Path
    most: int
    lines: Callable[[Iterable[Record], bool], Iterator[bytes]] = answer_tables.table

    def answer(self, answer: Callable[[list[Texts], Tick], _Answers]) -> Counter[str]:
        """Writes the answers to all rows; returns what was cut."""
        counts: Counter[str] = Counter()
        done = 0
        bar = Progress(self.number, "predicting", unit="rows")
        with bar, whole_file(self.target) as file:
            for stretch in stretches(self.rows, self.most, _characters):
                found = answer(stretch, _ticks(bar, done, stretch))
                file.writelines(self._bytes(found, not done))
                counts.update(found.counts)
                done += len(stretch)
                bar.reach(done)
            if done != self.number:
                raise BadInput(
                    f"the texts had {self.number:,} rows and then {done:,}: do not write to them meanwhile"
                )
        return counts

    def _bytes(self, found: _Answers, begin: bool) -> Iterator[bytes]:
        ending = self.target.suffix.lower()
        if ending == ".npy":
            assert found.numbers is not None
            return answer_tables.array(found.numbers, self.number if begin else None)
        if ending == ".jsonl":
            return answer_tables.json_lines(found.records)
        return self.lines(found.records, begin)


def _texts(net: Network, source: epath.PathLike, target: epath.Path, where: TextColumns) -> Written:
    """A text, or a pair, is a row of tokens."""
    if where.pair_column != "" and net.head == "embedding":
        raise BadInput("pair_column does not go with the head 'embedding', which reads one text")
    rows = read_unlabelled(source, where)

    def answer(stretch: list[Texts], tick: Tick) -> _Answers:
        first, *second = zip(*stretch)
        found = encode(first, second[0] if second else None, net.tokenizer, net.length)
        [numbers] = net.outputs(found, tick).values()
        records = (
            {**answer, **dict(zip(("text", "pair"), texts))}
            for answer, texts in zip(_records(net, numbers), stretch)
        )
        return _Answers(records, {"cut": found.truncated}, numbers)

    lines = answer_tables.Submission() if where.only_answers else answer_tables.table
    cut = _Stream(rows, len(rows), target, ROWS, lines).answer(answer)["cut"]
    notice = f"{cut:,} of {len(rows):,} texts are longer than {net.length} tokens, and cut"
    if (most := net.model.config.max_positions) > net.length:
        notice += f"; the model takes sequence_length={most}"
    return Written(len(rows), (target,), (*rows.notices, *([notice] if cut else [])))


def _records(net: Network, numbers: np.ndarray) -> Iterator[Record]:
    """Embeddings [N, E], numbers [N, 1], or logits [N, C] as the best label and all probabilities."""
    if net.head == "embedding":
        yield from ({"embedding": list(map(short, row))} for row in numbers.tolist())
        return
    if net.model.config.regression:
        yield from ({"score": short(number)} for number in numbers[:, 0].tolist())
        return
    shifted = numbers.astype(np.float64) - numbers.max(-1, keepdims=True)
    shares = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    for best, row in zip(numbers.argmax(-1), shares.tolist()):
        yield {"label": net.names[best], "probabilities": dict(zip(net.names, map(short, row)))}


def _words(net: Network, source: epath.PathLike, target: epath.Path, where: WordColumns) -> Written:
    """A sentence of words is a row of tokens, or several."""
    sentences, number, notices = _sentences(source, where)

    def answer(stretch: list[Texts], tick: Tick) -> _Answers:
        tagged = Tagged(tuple(stretch), None, ())
        found = pieces(tagged, net.tokenizer, net.length, net.names)
        ids, begins = join(found.ids)
        rows = Encoded(ids, begins, np.diff(begins).astype(np.int32), net.pad)
        logits = net.outputs(rows, tick)["logits"] if len(rows) else np.zeros((0, 0, 0), np.float32)
        records = _tagged(net, found, tagged, logits)
        names = ("rows_cut", "words_cut", "words_unknown")
        return _Answers(records, {name: getattr(found, name) for name in names})

    most = max(1, min(ROWS, NUMBERS // (net.length * len(net.names))))
    counts = _Stream(sentences, number, target, most, answer_tables.tagged_lines).answer(answer)
    return Written(number, (target,), (*notices, *cut_notices(net.length, **counts)))


def _tagged(
    net: Network, rows: Pieces, tagged: Tagged, logits_MxLxC: np.ndarray
) -> Iterator[Record]:
    """The words of each sentence and their tags, and its intent from a network that knows intents."""
    if not any(name.startswith(INTENT) for name in net.names):
        for words, numbers in zip(tagged.tokens, decode_tags(rows, tagged, logits_MxLxC)):
            yield {"tokens": list(words), "tags": [net.names[number] for number in numbers]}
        return
    rows_of = dict(zip(rows.sentence[rows.first_word == 0].tolist(), itertools.count()))
    found = frames(rows, tagged, net.names, logits_MxLxC)
    for number, (words, tags) in enumerate(zip(tagged.tokens, found.tags)):
        intent = found.intents[rows_of[number]].removeprefix(INTENT) if number in rows_of else ""
        yield {"intent": intent, "tokens": list(words), "tags": tags}


def _sentences(
    source: epath.PathLike, where: WordColumns
) -> tuple[Iterable[Texts], int, tuple[str, ...]]:
    """(the words of each sentence, how many sentences, notices)."""
    if where.pair_column != "":
        raise BadInput("pair_column does not go with tags: give one text a row")
    name = os.fspath(source).lower().removesuffix(".xz").removesuffix(".gz")
    texts = TextColumns(**{f.name: getattr(where, f.name) for f in dataclasses.fields(TextColumns)})
    if where.token_column is None and not name.endswith(_WORD_FILES):
        rows = read_unlabelled(source, texts)
        words = _Each(rows, lambda row: tuple(word for word in _BLANKS.split(row[0]) if word))
        return words, len(rows), rows.notices
    if texts != TextColumns(separator=where.separator):
        raise BadInput(
            "text_column, header and quoting do not go with columns of words; give token_column and separator alone"
        )
    found = read_conll(
        source, token_column=where.token_column or 0, tag_column=None, separator=where.separator
    )
    return found.tokens, len(found), found.notices


@dataclasses.dataclass(frozen=True)
class _Each:
    """What `of` makes of each row."""

    rows: Iterable[Texts]
    of: Callable[[Texts], Texts]

    def __iter__(self) -> Iterator[Texts]:
        return map(self.of, self.rows)


def _questions(net: Network, source: epath.PathLike, target: epath.Path, by: Spans) -> Written:
    """A question and a window of its context is a row of tokens."""
    questions = read_squad(source)
    settings = Decoding(
        by.n_best, by.max_answer_length, math.isfinite(by.null_threshold), by.null_threshold
    )
    beside = [target.with_name(f"{target.stem}.{name}") for name in FILES[1:]]
    if there := next((file for file in beside if file.exists()), None):
        raise BadInput(
            f"{os.fspath(there)!r}, which is written beside the answers, is there already; choose another name for "
            "out, or remove it"
        )
    parts: list[Decoded] = []
    done = cut = 0
    with Progress(len(questions), "predicting", unit="questions") as bar:
        for stretch in stretches(questions.rows, _QUESTIONS, _characters_of_question):
            part = Questions(tuple(stretch), questions.labelled)
            rows = windows(part, net.tokenizer, net.length, by.stride, by.question_length)
            ids, begins = join(rows.ids)
            found = net.outputs(
                Encoded(ids, begins, rows.second_begins, net.pad), _ticks(bar, done, stretch)
            )
            logits = found["start_logits"], found["end_logits"]
            parts.append(decode(rows, part, *logits, settings))
            cut += rows.questions_cut
            done += len(stretch)
            bar.reach(done)
    files = {
        target if name == FILES[0] else target.with_name(f"{target.stem}.{name}"): text
        for name, text in answer_files(questions, _joined(parts)).items()
    }
    for file, text in files.items():
        write_whole(file, text)
    notice = f"{cut:,} questions are longer than {by.question_length} tokens, and cut"
    return Written(len(questions), tuple(files), (*questions.notices, *([notice] if cut else [])))


def _characters_of_question(row: Question) -> int:
    return len(row.context) + len(row.question)


def _joined(parts: Sequence[Decoded]) -> Decoded:
    odds = [part.null_odds for part in parts if part.null_odds is not None]
    chain = itertools.chain.from_iterable
    return Decoded(
        tuple(chain(part.texts for part in parts)),
        tuple(chain(part.spans for part in parts)),
        tuple(chain(part.n_best for part in parts)),
        np.concatenate(odds) if odds else None,
    )


KINDS: Mapping[str, Kind] = {
    "sequence_classification": Kind(TextColumns, (".tsv", ".jsonl", ".npy"), _texts),
    "embedding": Kind(TextColumns, (".npy", ".jsonl", ".tsv"), _texts),
    "token_classification": Kind(WordColumns, (".tsv", ".jsonl"), _words),
    "question_answering": Kind(Spans, (".json",), _questions, 384),
}

"""Words to word pieces and back: rows for a token classifier, and a tag for every word again.

A word is tagged at its first piece. Nothing is lost where text is longer than a row: sentences are cut
between words into several rows, and every word is in exactly one. Called by tagging."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxdistill.data import tokenizers
from jaxdistill.data.conll import Tagged
from jaxdistill.errors import BadInput, listed, nearest, shortened

NOT_READ = -1  # the tag of special tokens, of later pieces, and of words that count as wrong
SHORTEST = 3  # [CLS], a piece, [SEP]
UNSEEN = ("refuse", "wrong")
_WORDS_A_BATCH = 100_000


@dataclasses.dataclass(frozen=True)
class Pieces:
    """M rows [CLS] pieces [SEP] of a sentence or a part of one, none longer than asked for.

    For each row: `ids` and `tags` (`NOT_READ` where no tag is) int32 [L of the row], `firsts` int32
    [W of the row], the positions of its words' first pieces; `sentence` and `first_word` int32 [M]: it
    holds W words of that sentence, from that one on. `rows_cut`: sentences in more than one row;
    `words_cut`: words that had more pieces than a row has room for; `words_unknown`: words without any
    piece, read as [UNK]; `tags_unseen`: words whose tag has no number."""

    ids: list[np.ndarray]
    tags: list[np.ndarray]
    firsts: list[np.ndarray]
    sentence: np.ndarray
    first_word: np.ndarray
    rows_cut: int = 0
    words_cut: int = 0
    words_unknown: int = 0
    tags_unseen: int = 0
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def tag_names(tagged: Tagged, given: Sequence[str] = (), unseen: str = "refuse") -> tuple[str, ...]:
    """The tags in the order of their numbers: `given`, as a model's labels, or those that occur, "O"
    first and then sorted. `unseen`: as in `number_tags`, what is done about tags that are not given.

    Raises:
        BadInput: no tags, one only, a given name twice, or a tag that is not given (file and line).
    """
    tags = _tags_of(tagged)
    if given:
        if twice := [name for name, count in Counter(given).items() if count > 1]:
            raise BadInput(f"tags {listed(twice)} are given twice: give each name once")
        number_tags(tagged, given, unseen)
        return tuple(given)
    names = sorted(set(itertools.chain.from_iterable(tags)), key=lambda tag: (tag != "O", tag))
    if len(names) < 2:
        raise BadInput(
            f"{tagged.places[0][0]!r} holds one tag only, {shortened(names[0])!r}: is it the column of tags?"
            if names
            else "no sentences, so no tags: give a file that has some"
        )
    return tuple(names)


def number_tags(
    tagged: Tagged, names: Sequence[str], unseen: str = "refuse"
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """(each sentence's tags as numbers into `names`, int32; notices).

    `unseen`: tags without a name are an error ("refuse"), or get `NOT_READ`, so that no answer is right
    ("wrong").

    Raises:
        BadInput: no tags; a tag without a name (file and line).
    """
    if unseen not in UNSEEN:
        raise BadInput(f"unseen={shortened(unseen)!r}: {nearest(unseen, UNSEEN)}")
    number_of = {name: number for number, name in enumerate(names)}
    others: Counter[str] = Counter()
    numbers = []
    for sentence, tags in enumerate(_tags_of(tagged)):
        numbers.append(np.array([number_of.get(tag, NOT_READ) for tag in tags], np.int32))
        for word, tag in enumerate(tags):
            if tag in number_of:
                continue
            if unseen == "refuse":
                raise BadInput(
                    f"{tagged.place(sentence, word)}: tag {shortened(tag)!r} is not known: "
                    f"{nearest(shortened(tag), names)}; mend it, or set unseen_labels=wrong to count such words as wrong"
                )
            others[tag] += 1
    if not others:
        return numbers, ()
    return numbers, (
        f"{tagged.places[0][0]!r}: {others.total():,} words have tags without a number and count as wrong: "
        f"{listed(tag for tag, _ in others.most_common())}",
    )


def _tags_of(tagged: Tagged) -> tuple[tuple[str, ...], ...]:
    if tagged.tags is None:
        file = repr(tagged.places[0][0]) if tagged.places else "the text"
        raise BadInput(f"{file} was read without tags: give the column or the file of tags")
    return tagged.tags


def pieces(
    tagged: Tagged, tokenizer: Any, length: int, names: Sequence[str], unseen: str = "refuse"
) -> Pieces:
    """Rows of at most `length` pieces, with each word's tag on its first piece.

    Without tags, none is read. `names`, `unseen`: as `number_tags`.

    Raises:
        BadInput: rows too short to hold a word; as `number_tags`.
    """
    if length < SHORTEST:
        raise BadInput(f"length={length}: expected {SHORTEST} or more")
    special = tokenizers.describe(tokenizer).special
    notices: tuple[str, ...] = ()
    if tagged.tags is None:
        numbers = [np.full(len(words), NOT_READ, np.int32) for words in tagged.tokens]
    else:
        numbers, notices = number_tags(tagged, names, unseen)
    pieces_of = _encode(tokenizer, itertools.chain.from_iterable(tagged.tokens))
    room = length - 2
    counts = Counter(itertools.chain.from_iterable(tagged.tokens))
    cut = sum(count for word, count in counts.items() if len(pieces_of[word]) > room)
    unknown = sum(count for word, count in counts.items() if not pieces_of[word])
    kept = {word: ids[:room] or [special.unk] for word, ids in pieces_of.items()}
    rows = [
        (*_row([kept[word] for word in words[begin:end]], special), sentence, begin, end)
        for sentence, words in enumerate(tagged.tokens)
        for begin, end in _parts([len(kept[word]) for word in words], room)
    ]
    per_sentence = Counter(row[2] for row in rows)
    rows_cut = sum(count > 1 for count in per_sentence.values())
    return Pieces(
        ids=[ids for ids, *_ in rows],
        tags=[
            _at(firsts, numbers[sentence][begin:end], len(ids))
            for ids, firsts, sentence, begin, end in rows
        ],
        firsts=[firsts for _, firsts, *_ in rows],
        sentence=np.array([row[2] for row in rows], np.int32),
        first_word=np.array([row[3] for row in rows], np.int32),
        rows_cut=rows_cut,
        words_cut=cut,
        words_unknown=unknown,
        tags_unseen=0 if tagged.tags is None else sum(int(np.sum(n < 0)) for n in numbers),
        notices=(*notices, *cut_notices(length, rows_cut, cut, unknown)),
    )


def _encode(tokenizer: Any, words: Iterable[str]) -> dict[str, list[int]]:
    """The ids of each word's pieces; every distinct word is encoded once."""
    backend = tokenizers.plain_backend(tokenizer)
    distinct = list(dict.fromkeys(words))
    found: dict[str, list[int]] = {}
    for begin in range(0, len(distinct), _WORDS_A_BATCH):
        batch = distinct[begin : begin + _WORDS_A_BATCH]
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        found.update((word, encoding.ids) for word, encoding in zip(batch, encodings))
    return found


def _parts(sizes: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the words in each row of a sentence: as many as fit."""
    begin, used = 0, 0
    for word, size in enumerate(sizes):
        if used + size > room:
            yield begin, word
            begin, used = word, 0
        used += size
    if sizes:
        yield begin, len(sizes)


def _row(words: Sequence[Sequence[int]], special: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ids, positions of the first pieces) of a row of these words' pieces."""
    ids = [special.cls, *itertools.chain.from_iterable(words), special.sep]
    firsts = np.cumsum([1, *map(len, words)])[:-1]
    return np.array(ids, np.int32), firsts.astype(np.int32)


def _at(firsts: np.ndarray, numbers: np.ndarray, length: int) -> np.ndarray:
    tags = np.full(length, NOT_READ, np.int32)
    tags[firsts] = numbers
    return tags


def cut_notices(length: int, rows_cut: int, words_cut: int, words_unknown: int) -> Iterator[str]:
    """What the user should know of rows of at most `length` pieces."""
    if rows_cut:
        yield f"{rows_cut:,} sentences are longer than {length} pieces and were cut between words into several rows"
    if words_cut:
        yield f"{words_cut:,} words have more than {length - 2} pieces, of which the first were kept"
    if words_unknown:
        yield f"{words_unknown:,} words have no piece in this vocabulary and were read as [UNK]"


def decode(rows: Pieces, tagged: Tagged, outputs: np.ndarray) -> list[list[int]]:
    """A tag's number for every word of every sentence.

    `outputs`: of the rows, in their order, logits [M, L, C] or tag numbers [M, L]; what is at a word's
    first piece counts. L may be more than the rows have.

    Raises:
        BadInput: outputs of other rows, or rows of other sentences.
    """
    widest = max(map(len, rows.ids), default=0)
    if outputs.ndim not in (2, 3) or len(outputs) != len(rows) or outputs.shape[1] < widest:
        raise BadInput(
            f"outputs of shape {list(outputs.shape)}: expected [{len(rows)}, {widest} or more] or that and the number "
            "of tags; give the network's answers for these rows"
        )
    found: list[list[int]] = [[] for _ in tagged.tokens]
    for row, (sentence, first_word) in enumerate(zip(rows.sentence, rows.first_word)):
        if sentence >= len(found) or first_word != len(found[sentence]):
            raise BadInput(
                "the rows are those of other sentences: give the sentences they are made of"
            )
        at_words = outputs[row, rows.firsts[row]]
        answers = at_words.argmax(-1) if outputs.ndim == 3 else at_words
        found[sentence].extend(answers.tolist())
    if list(map(len, found)) != list(map(len, tagged.tokens)):
        raise BadInput("the rows are those of other sentences: give the sentences they are made of")
    return found

"""More training rows of a task, with some words replaced (TinyBERT, arXiv:1909.10351, algorithm 1): a word
of one piece by one that a masked language model holds likely there, a word of several pieces by one whose
vector is near.

Rows change as tokens: whatever a task has at a token goes with it, and places move with the words they point
to. Called by derived."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from jaxdistill.data import randomness
from jaxdistill.data.encoded import join
from jaxdistill.data.feeds import Batch, Feed, Reader, Rows
from jaxdistill.data.rows import reader_of, sample
from jaxdistill.data.tokenizers import describe, plain_backend
from jaxdistill.errors import BadInput, listed
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.evaluation.stored import read_arrays, write_arrays
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import flatten
from jaxdistill.settings import Count, CountOrZero, Within
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

POSITIONS = ("start_positions", "end_positions")  # columns of a row that point at a token


@dataclasses.dataclass(frozen=True)
class Plan:
    """`copies` of every row beside itself; each word that can be is replaced with the probability
    `replaced` by one of its `candidates` best. `context`: "row", all words of a copy that will be replaced
    are masked at once; "word", each alone, in front of the row as it is, as in the released code.
    `first_segment`: only words of the first of two texts are replaced."""

    copies: int
    replaced: float
    candidates: int
    context: str
    first_segment: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class Words:
    """What augmenting must know of a vocabulary: bool[V], which pieces go on with a word, are special, may
    be replaced, and may stand in for another."""

    continues: np.ndarray
    special: np.ndarray
    replaceable: np.ndarray
    usable: np.ndarray
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Any) -> Words:
        """Words of letters that are no stop words are replaced; whole words of letters stand in."""
        found = describe(tokenizer)
        pieces = {number: piece for piece, number in plain_backend(tokenizer).get_vocab().items()}
        spelled = [pieces.get(number, "") for number in range(found.size)]
        continues, special = np.zeros((2, found.size), bool)
        continues[list(found.continuation_ids)] = True
        special[list(found.special_ids)] = True
        letters = np.array([piece.isalpha() for piece in spelled])
        stop = np.array([piece.lower() in ENGLISH_STOP_WORDS for piece in spelled])
        usable = letters & ~continues & ~special
        return cls(continues, special, usable & ~stop, usable, found.special.mask)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """N rows made of others: of which row each is, int64[N]; its tokens `ids`, and which of that row's
    tokens each was, `places`, int32 one after the other; row n begins at `begins`[n]."""

    of: np.ndarray
    ids: np.ndarray
    places: np.ndarray
    begins: np.ndarray

    def rows(self, base: Rows) -> Rows:
        """Them by number, everything but their tokens as `base` has it."""
        lengths = np.diff(self.begins)
        first, length_0 = np.zeros(1, np.int64), int(base.lengths[0])
        shorter, longer = (base.fetch(first, length_0 + more) for more in (0, 1))
        of_tokens = {name for name, x in longer.items() if x.shape != shorter[name].shape}
        pad = longer["input_ids"][0, -1]

        def fetch(numbers: np.ndarray, length: int) -> Batch:
            of = self.of[numbers]
            theirs = base.fetch(of, int(base.lengths[of].max()))
            real_BxL = np.arange(length) < lengths[numbers][:, None]
            at_BxL = np.where(real_BxL, self.begins[numbers][:, None] + np.arange(length), 0)
            places_BxL = np.where(real_BxL, self.places[at_BxL], 0)
            batch: Batch = {}
            for name, x in theirs.items():
                if name in POSITIONS:
                    moved = (places_BxL == x[:, None]) & real_BxL
                    batch[name] = np.argmax(moved, axis=1).astype(x.dtype)
                elif name in of_tokens:
                    # A pad of ours holds what a pad holds: nothing.
                    taken = np.take_along_axis(x, places_BxL, axis=1)
                    batch[name] = np.where(real_BxL, taken, np.zeros((), x.dtype))
                else:
                    batch[name] = x
            batch["input_ids"] = np.where(real_BxL, self.ids[at_BxL], pad).astype(np.int32)
            return batch

        return Rows(lengths, fetch)


def augment(
    base: Rows, tokenizer: Any, model: Model, params: Params, plan: Plan, batch_size: int
) -> Iterator[Rewritten]:
    """The rows of `base` themselves and `plan.copies` of each, some rows after the other."""
    words = Words.of(tokenizer)
    run = _Candidates(model, params, plan, words)
    near = _Near(np.asarray(flatten(params)["embeddings/word"]), words, plan.candidates)
    order = np.argsort(base.lengths, kind="stable")
    for begin in range(0, base.number, batch_size):
        numbers = order[begin : begin + batch_size]
        batch = base.fetch(numbers, int(base.lengths[numbers].max()))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        yield _itself(numbers, ids, mask)
        may = _may_change(ids, batch, words, plan)
        for copy in range(plan.copies):
            keys = randomness.row_keys(
                plan.seed, randomness.Stream.AUGMENTATION, np.full(len(numbers), copy), numbers
            )
            draws = randomness.to_uniform(randomness.position_bits(keys, ids.shape[1]))
            chosen = may & (draws < plan.replaced)
            yield _rewrite(numbers, batch, chosen, draws / plan.replaced, run, near)


def _may_change(ids: np.ndarray, batch: Batch, words: Words, plan: Plan) -> np.ndarray:
    """bool[B, L]: the first pieces of the words that can be replaced."""
    goes_on = np.zeros_like(ids, bool)
    goes_on[:, :-1] = words.continues[ids[:, 1:]] & (batch["attention_mask"][:, 1:] > 0)
    first = ~words.continues[ids] & ~words.special[ids] & (batch["attention_mask"] > 0)
    may = first & (words.replaceable[ids] | goes_on)
    return may & (batch["token_type_ids"] == 0) if plan.first_segment else may


def _itself(numbers: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> Rewritten:
    lengths = mask.sum(axis=1)
    flat, begins = join([row[:n] for row, n in zip(ids, lengths)])
    places, _ = join([np.arange(n, dtype=np.int32) for n in lengths])
    return Rewritten(numbers.astype(np.int64), flat, places, begins)


def _rewrite(
    numbers: np.ndarray,
    batch: Batch,
    chosen: np.ndarray,
    draws: np.ndarray,
    run: _Candidates,
    near: _Near,
) -> Rewritten:
    """The rows with their `chosen` words replaced; `draws` in [0, 1) say by which of the candidates."""
    ids, mask, words = batch["input_ids"], batch["attention_mask"], run.words
    goes_on = np.zeros_like(chosen)
    goes_on[:, :-1] = words.continues[ids[:, 1:]] & (mask[:, 1:] > 0)
    single, several = chosen & ~goes_on, chosen & goes_on
    new, kept = ids.copy(), mask > 0
    rows, columns = np.nonzero(single)
    if len(rows):
        new[rows, columns] = run(batch, single, draws)
    for row, column in zip(*np.nonzero(several)):
        end = column + 1
        while end < ids.shape[1] and mask[row, end] and words.continues[ids[row, end]]:
            end += 1
        found = near(ids[row, column:end], draws[row, column])
        if found is not None:
            new[row, column], kept[row, column + 1 : end] = found, False
    flat, begins = join([row[keep] for row, keep in zip(new, kept)])
    places, _ = join([np.flatnonzero(keep).astype(np.int32) for keep in kept])
    return Rewritten(numbers.astype(np.int64), flat, places, begins)


class _Candidates:
    """The words that a masked language model holds likely at masked places."""

    def __init__(self, model: Model, params: Params, plan: Plan, words: Words) -> None:
        self.plan, self.words, self.longest = plan, words, model.config.max_positions
        # A table may have more rows than the vocabulary has words.
        more = model.config.vocab_size - len(words.usable)
        usable_V = jnp.asarray(np.pad(words.usable, (0, more)))
        self.params = jax.tree.map(jnp.asarray, params)

        @jax.jit
        def best(params: Params, batch: Batch) -> jax.Array:
            outputs, _ = model.apply(params, batch, heads=("mlm",))
            logits = jnp.where(usable_V, outputs["mlm_logits"], -jnp.inf)
            return jax.lax.top_k(logits, plan.candidates)[1]

        self.best = best

    def __call__(self, batch: Batch, places: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """A new id for each True of `places` bool[B, L], in the order of numpy.nonzero."""
        words = self.words
        rows, columns = np.nonzero(places)
        if self.plan.context == "row":
            most = _rounded(int(places.sum(axis=1).max()))
            slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
            positions = np.zeros((len(places), most), np.int32)
            positions[rows, slots] = columns
            found = self._run(_masked(batch, places, words.mask_id), positions)[rows, slots]
        else:
            inputs = _alone(batch, rows, columns, words.mask_id, self.longest)
            found = np.concatenate(
                [
                    self._run(
                        {name: x[begin : begin + len(places)] for name, x in inputs.items()},
                        columns[begin : begin + len(places), None].astype(np.int32),
                    )[:, 0]
                    for begin in range(0, len(rows), len(places))
                ]
            )
        pick = (draws[rows, columns] * self.plan.candidates).astype(np.int64)
        return found[np.arange(len(rows)), np.minimum(pick, self.plan.candidates - 1)]

    def _run(self, batch: Batch, positions: np.ndarray) -> np.ndarray:
        """int[B, P, candidates]. Shapes are rounded up, so that few programs are compiled."""
        number, length = batch["input_ids"].shape
        rows, wide = _rounded(number), min(_rounded(length), self.longest)
        filled = {
            name: np.pad(x, [(0, rows - number), (0, wide - length)]) for name, x in batch.items()
        }
        filled["mlm_positions"] = np.pad(positions, [(0, rows - number), (0, 0)])
        return np.asarray(self.best(self.params, filled))[:number]


def _rounded(number: int) -> int:
    """The next power of two, or one and a half times one."""
    power = 1
    while power < number:
        power *= 2
    return power * 3 // 4 if power >= 4 and number <= power * 3 // 4 else power


def _masked(batch: Batch, places: np.ndarray, mask_id: int) -> Batch:
    read = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name] for name in read}
    return {**inputs, "input_ids": np.where(places, mask_id, batch["input_ids"])}


def _alone(
    batch: Batch, rows: np.ndarray, columns: np.ndarray, mask_id: int, longest: int
) -> Batch:
    """A row for each word: the text with that word masked, [SEP], and the text as it is, cut where
    positions end."""
    ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
    lengths = mask.sum(axis=1)
    masked = ids.copy()
    masked[np.arange(len(rows)), columns] = mask_id
    wide = 2 * ids.shape[1]
    both, types = np.zeros((2, len(rows), wide), np.int32)
    for i, length in enumerate(lengths):
        both[i, :length] = masked[i, :length]
        both[i, length : 2 * length - 1] = ids[i, 1:length]
        types[i, length : 2 * length - 1] = 1
    real = np.arange(wide) < (2 * lengths - 1)[:, None]
    made = {"input_ids": both, "attention_mask": real.astype(np.int32), "token_type_ids": types}
    return {name: x[:, :longest] for name, x in made.items()}


class _Near:
    """Whole words whose vector is near the mean vector of a word's pieces."""

    def __init__(self, table_VxD: np.ndarray, words: Words, candidates: int) -> None:
        self.number = candidates
        self.usable = np.flatnonzero(words.usable[: len(table_VxD)])
        self.table = table_VxD
        rows = table_VxD[self.usable]
        self.unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, pieces: np.ndarray, draw: float) -> int | None:
        """One of the nearest words, by a number in [0, 1); None if there is none."""
        if not len(self.usable):
            return None
        key = tuple(pieces.tolist())
        if key not in self.known:
            cosines = self.unit @ self.table[pieces].mean(axis=0)
            most = min(self.number, len(cosines))
            best = np.argpartition(-cosines, most - 1)[:most]
            self.known[key] = self.usable[best[np.argsort(-cosines[best], kind="stable")]]
        found = self.known[key]
        return int(found[min(int(draw * len(found)), len(found) - 1)])


def joined(parts: Iterator[Rewritten]) -> Rewritten:
    """All of them as one."""
    every = list(parts)
    lengths = np.concatenate([np.diff(part.begins) for part in every])
    return Rewritten(
        np.concatenate([part.of for part in every]),
        np.concatenate([part.ids for part in every]).astype(np.int32),
        np.concatenate([part.places for part in every]).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def augmented(
    base: Feed,
    model: Model | None,
    *,
    copies: Count = 20,
    replaced: Annotated[float, Within(0.01, 1)] = 0.4,
    candidates: Annotated[int, Within(1, 1000)] = 15,
    context: Literal["row", "word"] = "row",
    most: CountOrZero = 0,
) -> Derivation:
    """The training rows of a task, of `most` of them if that is not 0, and `copies` of each with words
    replaced as a network with an MLM head holds likely (`augmented.Plan`); held-out rows stay. Of
    questions about a text only the questions change. Published: 20 copies, and each word masked alone
    (context="word"), which takes a forward pass a word."""
    assert model is not None
    if "mlm" not in model.config.heads or not base.head:
        raise BadInput(
            f"{base.name!r} is augmented by a network with the head 'mlm'; its heads: {listed(model.config.heads)}"
        )
    first_segment = base.head == "question_answering"

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        order, path = rows.parts.order, making.path("train").with_suffix(".safetensors")
        plan = Plan(copies, replaced, candidates, context, first_segment, order.seed)
        train = sample(rows.parts.train, most or None, order.seed)

        def make() -> None:
            if not hosts.first() or read_arrays(path, making.fingerprint) is not None:
                return
            with Progress(train.number * (1 + copies), f"making {path.name}", unit="rows") as bar:
                parts = augment(
                    train, making.tokenizer, model, making.params, plan, making.batch_size
                )
                found = joined(_ticked(parts, bar))
            write_arrays(path, dataclasses.asdict(found), making.fingerprint)

        hosts.together(make)
        arrays = read_arrays(path, making.fingerprint)
        if arrays is None:
            raise BadInput(
                f"{str(path)!r} cannot be read back; give a workdir that all processes share"
            )
        train = Rewritten(**arrays).rows(train)
        return reader_of(rows.parts._replace(train=train), rows.answers, rows.notices)

    return Derivation(
        {}, read, model.config.dtype, (), lambda rows: min(rows, most or rows) * (1 + copies)
    )


def _ticked(parts: Iterator[Rewritten], bar: Progress) -> Iterator[Rewritten]:
    for part in parts:
        yield part
        bar.update(len(part.of))

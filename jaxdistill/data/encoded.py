"""Texts as rows of token ids: framed, cut to a length, and fetched by number padded as far as a batch
needs.

Called by every task."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.data import tokenizers
from jaxdistill.data.feeds import Batch, Rows, Shape
from jaxdistill.errors import BadInput

# Texts that are tokenised together: what a tokenizer returns takes far more memory than the rows.
_AT_ONCE = 10_000
SHORTEST = 8  # [CLS], [SEP] twice, and a few word pieces


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N rows of tokens, one after the other in `ids`, int32 [sum of lengths]; row n begins at `begins`
    [n], int64 [N + 1].

    `second_begins`: int32 [N], where the second segment of each begins (its length if there is none).
    `columns`: what else a row has, [N, ...] by name. `by_token`: what each token has, by name: values
    along `ids`, and what stands at pads. `truncated`: how many rows were cut. `keys`: as
    of `feeds.Rows`."""

    ids: np.ndarray
    begins: np.ndarray
    second_begins: np.ndarray
    pad: int
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    by_token: Mapping[str, tuple[np.ndarray, Any]] = dataclasses.field(default_factory=dict)
    truncated: int = 0
    keys: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.second_begins)

    @property
    def rows(self) -> Rows:
        """Its rows by number."""
        return Rows(np.diff(self.begins), self.fetch, self.keys)

    def fetch(self, numbers: np.ndarray, length: int) -> Batch:
        """The rows of these numbers, int64 [B], padded to `length` tokens, which none exceeds."""
        begins_B = self.begins[numbers]
        lengths_B = self.begins[numbers + 1] - begins_B
        places_L = np.arange(length)
        real_BxL = places_L < lengths_B[:, None]
        at_BxL = np.where(real_BxL, begins_B[:, None] + places_L, 0)
        second_BxL = real_BxL & (places_L >= self.second_begins[numbers][:, None])
        batch: Batch = {
            "input_ids": np.where(real_BxL, self.ids[at_BxL], np.int32(self.pad)),
            "attention_mask": real_BxL.astype(np.int32),
            "token_type_ids": second_BxL.astype(np.int32),
            "example_weights": np.ones(len(numbers), np.float32),
        }
        for name, (values, fill) in self.by_token.items():
            batch[name] = np.where(real_BxL, values[at_BxL], np.asarray(fill, values.dtype))
        return batch | {name: column[numbers] for name, column in self.columns.items()}


def shapes(length: int, **columns: Shape) -> dict[str, Shape]:
    """The arrays of a row of an `Encoded` with these columns."""
    ids = Shape((length,), "int32")
    return {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids),
        "example_weights": Shape((), "float32"),
        **columns,
    }


def join(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(all values one after the other, where each row begins: int64 [N + 1])."""
    begins = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=begins[1:])
    return (np.concatenate(rows) if len(rows) else np.zeros(0, np.int32)), begins


def encode(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: Any, length: int
) -> Encoded:
    """Rows [CLS] A [SEP] or [CLS] A [SEP] B [SEP], cut to `length` tokens, the longer of A and B
    first."""
    if length < SHORTEST:
        raise BadInput(f"sequence_length={length}: expected {SHORTEST} or more")
    special = tokenizers.describe(tokenizer).special
    parts: list[np.ndarray] = []
    lengths, second_begins, truncated = [0], [], 0
    for begin in range(0, len(texts), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        first = pieces(texts[some], tokenizer)
        second = [None] * len(first) if pairs is None else pieces(pairs[some], tokenizer)
        framed = [_frame(a, b, length, special.cls, special.sep) for a, b in zip(first, second)]
        parts.append(join([np.array(row, np.int32) for row, _ in framed])[0])
        lengths += [len(row) for row, _ in framed]
        second_begins += [place for _, place in framed]
        whole = [len(a) + 2 + (0 if b is None else len(b) + 1) for a, b in zip(first, second)]
        truncated += sum(tokens > length for tokens in whole)
    ids, _ = join(parts)
    begins = np.cumsum(lengths, dtype=np.int64)
    return Encoded(
        ids,
        begins,
        np.array(second_begins, np.int32),
        special.pad,
        truncated=truncated,
        keys=keys_of(texts, pairs),
    )


def keys_of(texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
    """int64[N]: what rows of these texts are known by outside, whatever their order and their
    tokenizer: the first 8 bytes of the SHA-256 of text + NUL + second text in UTF-8, the first byte the
    highest, as a signed number."""
    seconds = [""] * len(texts) if pairs is None else pairs
    digests = (
        hashlib.sha256(f"{a}\0{b}".encode("utf-8", "surrogatepass")).digest()[:8]
        for a, b in zip(texts, seconds)
    )
    return np.array([int.from_bytes(d, "big", signed=True) for d in digests], np.int64)


def pieces(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The word pieces of each text, without special tokens."""
    backend = tokenizers.plain_backend(tokenizer)
    found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in found]


def _frame(
    a: list[int], b: list[int] | None, length: int, cls: int, sep: int
) -> tuple[list[int], int]:
    """One row's ids, and where its second segment begins."""
    if b is None:
        ids = [cls, *a[: length - 2], sep]
        return ids, len(ids)
    room = length - 3
    keep_b = min(len(b), max(room // 2, room - len(a)))
    head = [cls, *a[: room - keep_b], sep]
    return [*head, *b[:keep_b], sep], len(head)

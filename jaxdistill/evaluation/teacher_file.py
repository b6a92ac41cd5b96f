"""What a teacher from anywhere says of rows, in one safetensors file.

    keys         int64[N]        which row each is (`jaxdistill.data.encoded.keys_of`): the first 8 bytes of
                                 the SHA-256 of text + NUL + second text in UTF-8, as a signed number
    lengths      int32[N]        tokens of each row; only beside tensors of tokens
    logits, …    [N, ...]        of each row: logits of classes [N, C], or a number [N, 1]
                 [sum, ...]      or of each token, rows one after the other: logits of tags [sum, C],
                                 start_logits and end_logits [sum], embeddings [sum, D], hidden,
                                 query, key and value [sum, layers, ...]

and in its metadata, as JSON: `labels`, the classes in the order of the logits; `layers`, which of the
teacher's layers hidden states are from. Rows come in any order, more of them do no harm. A row of tags is known
by its words with blanks between them, one of a question by the question's id and, as second text, the number of
its window, from 0. Called by derived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxdistill.data.feeds import Batch, Feed, Rows, Shape
from jaxdistill.data.files import digest_of
from jaxdistill.errors import BadInput, listed, shortened
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.evaluation.outputs import beside
from jaxdistill.evaluation.stored import Layout, Part
from jaxdistill.models import Model
from jaxdistill.models.heads import HEADS

KEYS, LENGTHS = "keys", "lengths"
OF_TOKENS = ("embeddings", "hidden", "query", "key", "value", "start_logits", "end_logits")
_DTYPES = {"F32": "float32", "F16": "float16", "F64": "float64"}


class TeacherFile:
    """One such file, opened. Raises `BadInput` for one that is none, or not of the task `feed`."""

    def __init__(self, path: str, feed: Feed) -> None:
        self.path, self.feed = path, feed
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                self.metadata = dict(file.metadata() or {})
                headers = {name: file.get_slice(name) for name in sorted(file.keys())}
                shapes = {name: (x.get_shape(), x.get_dtype()) for name, x in headers.items()}
        except (OSError, safetensors.SafetensorError) as error:
            raise BadInput(
                f"{path!r} cannot be read as a safetensors file: {shortened(str(error))}"
            ) from error
        if KEYS not in shapes or shapes[KEYS][1] != "I64" or len(shapes[KEYS][0]) != 1:
            raise BadInput(
                f"{path!r} has no tensor {KEYS!r}, int64[N], that says which row is which"
            )
        self.number = shapes[KEYS][0][0]
        self.layers = tuple(self._listed("layers", int))
        of_tokens = HEADS[feed.head].reads == "tokens" if feed.head else False
        row: dict[str, Shape] = {}
        by_token = set()
        for name, (shape, dtype) in shapes.items():
            if name in (KEYS, LENGTHS):
                continue
            if dtype not in _DTYPES:
                raise BadInput(
                    f"{path!r}: {name!r} is {dtype}; expected float32, float16 or float64"
                )
            if name in OF_TOKENS or of_tokens:
                by_token.add(name)
                if LENGTHS not in shapes:
                    raise BadInput(
                        f"{path!r}: {name!r} is of tokens, so {LENGTHS!r}, int32[N], must say how many each row has"
                    )
            elif shape[:1] != [self.number]:
                raise BadInput(
                    f"{path!r}: {name!r} has the shape {shape}; expected {self.number} rows, one for each key"
                )
            row[name] = Shape(tuple(shape[1:]), "float32")
        if not row:
            raise BadInput(f"{path!r} holds keys alone; expected what a teacher says, as 'logits'")
        self.layout = Layout(row, frozenset(by_token))
        self.order = self._order_of_labels()
        for name in sorted({"hidden", "query", "key", "value"} & set(row)):
            if len(self.layers) != row[name].shape[0]:
                raise BadInput(
                    f"{path!r}: {name!r} has {row[name].shape[0]} layers, but its metadata 'layers' names "
                    f"{listed(self.layers)}; say which of the teacher's layers they are, as [5, 11]"
                )

    def _listed(self, name: str, kind: type) -> list[Any]:
        try:
            found = json.loads(self.metadata.get(name, "[]"))
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(x, kind) for x in found):
            raise BadInput(
                f"{self.path!r}: its metadata {name!r} is {shortened(self.metadata[name])!r}; expected a JSON list"
            )
        return found

    def _order_of_labels(self) -> np.ndarray | None:
        """Which of its classes each of the task's is; None for a task without."""
        feed = self.feed
        if not feed.labels or "logits" not in self.layout.row:
            return None
        labels = self._listed("labels", str)
        if sorted(labels) != sorted(feed.labels):
            raise BadInput(
                f"{self.path!r}: its metadata 'labels' names {listed(labels)}, but the classes of {feed.name!r} are "
                f"{listed(feed.labels)}; name them in the order of the teacher's logits"
            )
        if self.layout.row["logits"].shape[-1:] != (len(labels),):
            raise BadInput(
                f"{self.path!r}: 'logits' has rows of shape {list(self.layout.row['logits'].shape)} for {len(labels)} labels"
            )
        return np.array([labels.index(label) for label in feed.labels])

    @property
    def digest(self) -> str:
        with open(self.path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return digest_of([content, list(self.feed.labels)])

    def parts(self, rows: Rows, batches: Iterable[Batch]) -> Iterator[Part]:
        """What it says of the rows of `batches`. Raises `BadInput` for a row that it does not hold, or
        that has another number of tokens there."""
        tensors = self._read()
        assert rows.keys is not None
        place = {key: number for number, key in enumerate(tensors.pop(KEYS).tolist())}
        missing = sum(key not in place for key in rows.keys.tolist())
        if missing:
            raise BadInput(
                f"{self.path!r} has no answer to {missing:,} of the {rows.number:,} rows of {self.feed.name!r}; it "
                f"must hold all training and held-out rows, each under its key"
            )
        lengths = tensors.pop(LENGTHS, None)
        begins = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        for batch in batches:
            counts = batch["example_weights"].reshape(len(batch["row"]), -1).any(axis=1)
            numbers = batch["row"][counts]
            at = np.array([place[key] for key in rows.keys[numbers].tolist()], np.int64)
            arrays = {}
            for name, values in tensors.items():
                if name not in self.layout.by_token:
                    arrays[name] = values[at]
                    continue
                assert lengths is not None and begins is not None
                wrong = np.flatnonzero(lengths[at] != rows.lengths[numbers])
                if len(wrong):
                    raise BadInput(
                        f"{self.path!r}: the row with the key {rows.keys[numbers[wrong[0]]]} has {lengths[at[wrong[0]]]} "
                        f"tokens there and {rows.lengths[numbers[wrong[0]]]} here; tensors of tokens need one tokenizer"
                    )
                arrays[name] = _padded([values[begins[i] : begins[i + 1]] for i in at])
            yield numbers, rows.lengths[numbers], arrays

    def _read(self) -> dict[str, np.ndarray]:
        with safetensors.safe_open(self.path, framework="numpy") as file:
            found: dict[str, np.ndarray] = {
                name: file.get_tensor(name) for name in sorted(file.keys())
            }
        for name in self.layout.row:
            found[name] = found[name].astype(np.float32)
            if not np.isfinite(found[name]).all():
                raise BadInput(f"{self.path!r}: {name!r} holds numbers that are not finite")
        if self.order is not None:
            found["logits"] = found["logits"][..., self.order]
        total = found[LENGTHS].sum() if LENGTHS in found else 0
        for name in self.layout.by_token:
            if len(found[name]) != total:
                raise BadInput(
                    f"{self.path!r}: {name!r} has {len(found[name]):,} tokens, but {LENGTHS!r} counts {total:,}"
                )
        return found


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """[B, L of the longest, ...]."""
    found = np.zeros((len(rows), max(map(len, rows), default=0), *rows[0].shape[1:]), np.float32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def write(
    path: str,
    keys: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    *,
    labels: Iterable[str] = (),
    layers: Iterable[int] = (),
) -> None:
    """Writes such a file, for teachers that run in Python."""
    metadata = {"labels": json.dumps(list(labels)), "layers": json.dumps(list(layers))}
    arrays = {
        KEYS: np.asarray(keys, np.int64),
        **{name: np.ascontiguousarray(x) for name, x in tensors.items()},
    }
    safetensors.numpy.save_file(arrays, path, metadata)


def teacher_outputs(base: Feed, model: Model | None, *, file: str = "") -> Derivation:
    """What a teacher of another framework gives for each row of a task, from a file as `teacher_file`
    describes it."""
    if not file:
        raise BadInput(f"a feed of teacher outputs of {base.name!r} needs file=NAME.safetensors")
    found = TeacherFile(file, base)

    def make(rows: Rows, batches: Iterable[Batch], _: Making) -> Iterator[Part]:
        return found.parts(rows, batches)

    return beside(base, found.layout, make, found.digest, found.layers)

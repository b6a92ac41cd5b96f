"""Rows of plain text, masked once and for all, with a teacher's likeliest words at each masked place: a
student learns from a language model that does not run beside it. Called by derived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.data.feeds import ALONE, Batch, Feed, Order, Parts, Reader, Rows, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.errors import BadInput, listed
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.evaluation.stored import read_arrays, write_arrays
from jaxdistill.models import Model, Params
from jaxdistill.objectives.terms import STORED
from jaxdistill.settings import Count, Within
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

HELDOUT = 1024  # held-out rows at most


def words(
    base: Feed,
    model: Model | None,
    *,
    rows: Count = 10_000,
    top_k: Annotated[int, Within(1, 1000)] = 16,
    temperature: Annotated[float, Within(0.01, 1000.0)] = 2.0,
) -> Derivation:
    """The first `rows` rows of the text as a stage would read them, and of each masked word the `top_k`
    words that a network holds likeliest there, with their probabilities at `temperature`; the loss
    `mlm_stored` reads them. A stage reads the same rows in each of its epochs, masked alike."""
    assert model is not None
    if "mlm" not in model.config.heads or "mlm_positions" not in base.row:
        raise BadInput(
            f"words are stored of plain text, by a network with the head 'mlm'; {base.name!r} and heads "
            f"{listed(model.config.heads)} were given"
        )
    places = base.row["mlm_positions"].shape[0]
    added = {
        f"{STORED}words": Shape((places, top_k), "int32"),
        f"{STORED}log_probabilities": Shape((places, top_k), "float32"),
        f"{STORED}temperature": Shape((places,), "float32"),
    }

    @jax.jit
    def best(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs, _ = model.apply(params, batch, heads=("mlm",))
        logs = jax.nn.log_softmax(outputs["mlm_logits"].astype(jnp.float32) / temperature)
        found, which = jax.lax.top_k(logs, top_k)
        return which.astype(jnp.int32), found

    def made(batches: Iterator[Batch], number: int, params: Params, bar: Progress) -> Batch:
        parts: list[Batch] = []
        done = 0
        while done < number and (batch := next(batches, None)) is not None:
            batch.pop("row", None)
            which, logs = jax.device_get(best(params, batch))
            heat = np.full(which.shape[:2], temperature, np.float32)
            found = {**batch, **dict(zip(added, (which, logs, heat)))}
            parts.append({name: np.asarray(x)[: number - done] for name, x in found.items()})
            done += len(which)
            bar.update(len(which))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def read(reader: Reader, making: Making) -> Reader:
        path = making.path("words").with_suffix(".safetensors")

        def make() -> None:
            if not hosts.first() or read_arrays(path, making.fingerprint) is not None:
                return
            params = jax.tree.map(jnp.asarray, making.params)
            with Progress(rows + HELDOUT, f"making {path.name}", unit="rows") as bar:
                train = made(reader.train(making.batch_size, 0, ALONE), rows, params, bar)
                batches = reader.heldout(making.batch_size, HELDOUT, ALONE)
                held = made(iter(batches), HELDOUT, params, bar)
            arrays = {f"train/{name}": x for name, x in train.items()}
            arrays |= {f"heldout/{name}": x for name, x in held.items()}
            write_arrays(path, arrays, making.fingerprint)

        hosts.together(make)
        found = read_arrays(path, making.fingerprint)
        if found is None:
            raise BadInput(
                f"{str(path)!r} cannot be read back; give a workdir that all processes share"
            )
        order = Order(0, base.length, buckets=False)
        return reader_of(Parts(_part(found, "train/"), _part(found, "heldout/"), order))

    return Derivation(added, read, model.config.dtype, (), lambda _: rows)


def _rows(arrays: Batch) -> Rows:
    number, length = arrays["input_ids"].shape

    def fetch(numbers: np.ndarray, _: int) -> Batch:
        return {name: x[numbers] for name, x in arrays.items()}

    return Rows(np.full(number, length, np.int64), fetch)


def _part(arrays: Batch, part: str) -> Rows:
    found = {name.removeprefix(part): x for name, x in arrays.items() if name.startswith(part)}
    return _rows(found)

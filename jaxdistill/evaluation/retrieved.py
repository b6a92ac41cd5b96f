"""Training rows of a task and, beside them, texts of a corpus that are like them, of which a student learns what
its teacher says (XtremeDistilTransformers, Mukherjee et al. 2021, arXiv 2106.04563: unlabelled data by retrieval).

A text is as near as the cosine of a network's mean hidden state says. First the nearest text of every training
row is taken, then the second nearest, until there are as many as were asked for. Called by derived."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.data import files
from jaxdistill.data.feeds import Batch, Feed, Order, Parts, Reader, Rows, Shape
from jaxdistill.data.rows import evaluation_batches, reader_of
from jaxdistill.data.unlabelled import TextColumns
from jaxdistill.errors import BadInput
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.evaluation.stored import read_arrays, write_arrays
from jaxdistill.evaluation.transfer_set import LABEL_WEIGHTS, NONE, encode, joined, number
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import pool
from jaxdistill.settings import Within
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

MOST = 10**6  # texts of a corpus: their vectors are held in memory


def retrieved(
    base: Feed,
    model: Model | None,
    *,
    corpus: str = "",
    texts: Annotated[int, Within(1, MOST)] = 10_000,
    labelled: bool = True,
    text_column: str = "",
    header: Literal["auto", "yes", "no"] = "auto",
    quoting: Literal["auto", "none", "quoted"] = "auto",
) -> Derivation:
    """The training rows of a task, if `labelled`, and the `texts` texts of the file `corpus` that are most like
    them, all of them if it has no more: a text in each line or row. Tasks of classes and of numbers alone."""
    assert model is not None
    if base.head != "sequence_classification":
        raise BadInput(
            f"texts like those of {base.name!r} can be retrieved for classes and numbers alone; for other tasks take "
            'derived("transfer_set")'
        )
    if not corpus:
        raise BadInput("retrieved wants corpus=FILE, of texts to choose from")
    columns = TextColumns(text_column=text_column, header=header, quoting=quoting)
    there = number(corpus, columns, base)
    if there > MOST:
        raise BadInput(
            f"{corpus} has {there:,} texts; expected at most {MOST:,}, give a part of it"
        )
    kept = min(texts, there)

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        found = encode(corpus, columns, base, making.tokenizer)
        path = making.path("retrieved").with_suffix(".safetensors")

        def make() -> None:
            if not hosts.first() or read_arrays(path, making.fingerprint) is not None:
                return
            assert rows.parts is not None
            of_rows, of_corpus = (
                vectors_of(model, making, each, base.length, f"vectors of {name}")
                for name, each in (("rows", rows.parts.train), ("corpus", found.rows))
            )
            chosen = nearest_texts(of_rows, of_corpus, kept)
            write_arrays(path, {"chosen": chosen}, making.fingerprint)

        hosts.together(make)
        held = read_arrays(path, making.fingerprint)
        if held is None:
            raise BadInput(
                f"{str(path)!r} cannot be read back; give a workdir that all processes share"
            )
        others = of_numbers(found.rows, held["chosen"])
        train = joined(rows.parts.train if labelled else None, others, base.row)
        heldout = joined(rows.parts.heldout, NONE.rows, base.row)
        return reader_of(Parts(train, heldout, rows.parts.order), rows.answers, rows.notices)

    content = files.find(corpus, "texts to choose from").read_bytes()
    digest = files.digest_of([hashlib.sha256(content).hexdigest(), dataclasses.astuple(columns)])
    return Derivation(
        {LABEL_WEIGHTS: Shape((), "float32")}, read, digest, (), lambda rows: rows * labelled + kept
    )


def vectors_of(model: Model, making: Making, rows: Rows, length: int, shown: str) -> np.ndarray:
    """The mean hidden state of each row at length 1, float32[N, D]."""

    @jax.jit
    def vectors(params: Params, batch: Batch) -> jax.Array:
        states, _ = model.apply(params, batch, heads=())
        found = pool("mean", states["last_hidden_state"], jnp.asarray(batch["attention_mask"]))
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    params = jax.tree.map(jnp.asarray, making.params)
    found = np.zeros((rows.number, model.config.hidden_size), np.float32)
    with Progress(rows.number, shown, unit="rows") as bar:
        for batch in evaluation_batches(rows, Order(0, length), making.batch_size):
            read = ("input_ids", "attention_mask", "token_type_ids")
            part = np.asarray(vectors(params, {name: batch[name] for name in read}))
            new = min(len(part), rows.number - bar.done)  # behind them the batch is filled up
            found[batch["row"][:new]] = part[:new]
            bar.update(new)
    return found


def of_numbers(rows: Rows, chosen: np.ndarray) -> Rows:
    """The rows of these numbers alone, in this order."""
    return Rows(rows.lengths[chosen], lambda numbers, length: rows.fetch(chosen[numbers], length))


def nearest_texts(rows_NxD: np.ndarray, corpus_CxD: np.ndarray, most: int) -> np.ndarray:
    """int64[most]: the numbers of the corpus's texts that come first, each once: the nearest of every row, in
    the order of the rows, then the second nearest, and so on."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(metric="cosine").fit(corpus_CxD)
    ranks = max(1, -(-2 * most // len(rows_NxD)))
    while True:
        ranks = min(ranks, len(corpus_CxD))
        near_Nxk = index.kneighbors(rows_NxD, ranks, return_distance=False)
        chosen = np.array(list(dict.fromkeys(near_Nxk.T.ravel().tolist())), np.int64)
        if len(chosen) >= most or ranks == len(corpus_CxD):
            return chosen[:most]
        ranks *= 2

"""Text classification as a feed: labelled texts, or pairs of them. Called by tasks and glue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from jaxdistill.data import encoded, examples
from jaxdistill.data.encoded import Encoded
from jaxdistill.data.examples import Examples, Names, RowSettings, Texts
from jaxdistill.data.feeds import About, Answers, Feed, Outputs, Parts, Reader, Shape
from jaxdistill.data.labels import number_labels, read_label_file
from jaxdistill.data.rows import reader_of
from jaxdistill.errors import BadInput


def classification(
    about: About,
    *,
    texts: Texts,
    rows: RowSettings,
    labels: Names = (),
    label_file: str = "",
    unseen_labels: Literal["refuse", "wrong"] = "refuse",
    class_weights: Literal["", "balanced"] = "",
) -> Feed:
    """One text or a pair of texts in each row, and its class.

    `labels`: the classes in the order of their numbers, or `label_file` with one in each line; without
    either those of the training rows, sorted. `unseen_labels`: what to do with held-out
    rows of another class, "wrong" counts them as wrong answers. `class_weights`: "balanced" gives
    every class the same weight in the loss. Raises `BadInput` for tables that cannot be used."""
    known = label_names(labels, label_file)
    train, held = examples.read_parts(texts, known)
    # Of a table that is parted here both parts tell the classes: a rare one may be in one of them.
    both = (train,) if texts.heldout or texts.source == examples.DEFAULT else (train, held)
    what = f"column {texts.label_column!r} of {texts.source!r}"
    all_labels, all_places = (
        [value for part in both for value in getattr(part, name)] for name in ("labels", "places")
    )
    only_measured = held is train
    unseen = unseen_labels if only_measured else "refuse"
    names = number_labels(all_labels, all_places, what, known, unseen=unseen).names
    theirs = number_labels(
        held.labels, held.places, "the held-out rows", names, unseen=unseen_labels
    )
    ours = theirs if only_measured else number_labels(train.labels, train.places, what, names)
    counts = np.bincount(ours.numbers[ours.numbers >= 0], minlength=len(ours.names))
    weights = np.ones(len(train), np.float32)
    if class_weights and not only_measured:
        if not counts.all():
            absent = ours.names[int(counts.argmin())]
            raise BadInput(
                f"class_weights='balanced': no training row has the label {absent!r}; set it to '', or leave "
                "the label out of the list"
            )
        weights = (len(train) / (len(counts) * counts))[ours.numbers].astype(np.float32)

    def read(tokenizer: Any) -> Reader:
        columns = {"labels": np.maximum(ours.numbers, 0), "example_weights": weights}
        kept = apart = with_columns(train, tokenizer, rows, **columns)
        if not only_measured:
            apart = with_columns(held, tokenizer, rows, labels=np.maximum(theirs.numbers, 0))
        answers = functools.partial(_answers, held, theirs.numbers, ours.names)
        return text_reader(about, rows, kept, apart, answers)

    return Feed(
        about.name,
        encoded.shapes(rows.sequence_length, labels=Shape((), "int32")),
        read,
        rows=len(train),
        heldout_rows=len(held),
        digests={
            "train": train.digest(ours.numbers, ours.names),
            "heldout": held.digest(theirs.numbers, ours.names),
        },
        tables={"train": texts.source, "heldout": texts.heldout or texts.source},
        head="sequence_classification",
        losses=("classification",),
        labels=ours.names,
        score="binary" if len(names) == 2 else "classification",
        usual=int(counts.argmax()),
        notices=tuple(
            dict.fromkeys((*train.notices, *ours.notices, *held.notices, *theirs.notices))
        ),
        packed=rows.packed,
    )


def label_names(labels: Sequence[str], label_file: str) -> tuple[str, ...] | None:
    """The classes that the settings list; None if they do not. Raises `BadInput` if both do."""
    if labels and label_file:
        raise BadInput(f"labels={tuple(labels)} and label_file={label_file!r}: give one of the two")
    return read_label_file(label_file) if label_file else tuple(labels) or None


def with_columns(
    texts: Examples, tokenizer: Any, rows: RowSettings, **columns: np.ndarray
) -> Encoded:
    """The texts as rows of tokens that have these columns too."""
    found = encoded.encode(texts.texts, texts.pairs, tokenizer, rows.sequence_length)
    return dataclasses.replace(found, columns=columns)


def text_reader(
    about: About, rows: RowSettings, train: Encoded, heldout: Encoded, answers: Any
) -> Reader:
    """The reader of a task with a text or a pair in each row."""
    order = rows.order(about.seed)
    notices = [
        f"{part.truncated:,} of {len(part):,} {name} rows of {about.name!r} ({part.truncated / len(part):.1%}) are "
        f"longer than {rows.sequence_length} tokens, and cut"
        for name, part in (("training", train), ("held-out", heldout))
        if part.truncated and not (name == "training" and train is heldout)
    ]
    return reader_of(Parts(train.rows, heldout.rows, order), answers, tuple(notices))


def _answers(
    texts: Examples, labels_N: np.ndarray, names: Sequence[str], outputs: Outputs
) -> Answers:
    logits_NxC = outputs["logits"]
    predicted = [names[number] for number in np.argmax(logits_NxC, -1)]
    true = [label if number < 0 else names[number] for label, number in zip(texts.labels, labels_N)]
    table = predictions_table({"label": true, "prediction": predicted}, texts.texts, texts.pairs)
    return Answers(labels_N, logits_NxC, {"tsv": table})


def predictions_table(
    columns: dict[str, Sequence[str]], texts: Sequence[str], pairs: Sequence[str] | None
) -> str:
    """A line for each row: `columns`, then its texts. A cell may hold tabs and line ends: they become
    blanks, so that rows stay lines."""
    columns = {**columns, "text": texts, **({} if pairs is None else {"pair": pairs})}
    return "".join(map(table_line, [columns, *zip(*columns.values())]))


def table_line(cells: Iterable[str]) -> str:
    """A line of a table, whose cells have single blanks for any run of blanks, tabs and line ends."""
    return "\t".join(" ".join(cell.split()) for cell in cells) + "\n"

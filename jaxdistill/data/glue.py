"""The nine tasks of GLUE (Wang et al. 2019, arXiv:1804.07461) in their official files, a row each.

`source` is the folder that holds train.tsv and dev.tsv, or one such file; the folder as `heldout` too
reads its dev file alone. Or a set by name without a split, as hf:nyu-mll/glue:sst2, whose train and
validation splits are read. Where the number that counts
is a mean of two on the leader board, both are reported and the first one is chosen by. Called by tasks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from etils import epath

from jaxdistill.data import data_sets, files
from jaxdistill.data.classification import classification
from jaxdistill.data.examples import Fraction, Names, RowSettings, Texts
from jaxdistill.data.feeds import About, Feed
from jaxdistill.data.regression import regression
from jaxdistill.errors import BadInput, listed, nearest


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task. `text`, `pair`, `label`: its columns by name, or by number where `header` is "no";
    `named`: those of its texts in the sets of Hugging Face and TFDS, where they are others.
    `labels`: the classes in the order of their numbers, () of a score. `dev`: the file that is
    reported, `test` the one without labels, whose answers the leader board takes. `metric`: the number
    that counts."""

    text: str
    label: str
    pair: str = ""
    labels: tuple[str, ...] = ("0", "1")
    header: Literal["yes", "no"] = "yes"
    dev: str = "dev"
    test: str = "test"
    metric: str = "accuracy"
    named: tuple[str, ...] = ()

    def columns(self, is_named: bool) -> dict[str, Any]:
        """Where texts and labels are in files, or in sets by name."""
        if not is_named:
            found = (self.text, self.pair, self.label)
            layout = {"header": self.header, "quoting": "none"}
        else:
            text, pair = self.named or (self.text, self.pair)
            found, layout = (text, pair, "label"), {}
        return {**dict(zip(("text_column", "pair_column", "label_column"), found)), **layout}


_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = GlueTask(
    "sentence1",
    "gold_label",
    "sentence2",
    ("contradiction", "entailment", "neutral"),
    dev="dev_matched",
    test="test_matched",
    named=("premise", "hypothesis"),
)
GLUE: dict[str, GlueTask] = {
    "cola": GlueTask("3", "1", header="no", metric="matthews", named=("sentence", "")),
    "sst2": GlueTask("sentence", "label"),
    "mrpc": GlueTask(
        "#1 String", "Quality", "#2 String", metric="f1", named=("sentence1", "sentence2")
    ),
    "qqp": GlueTask("question1", "is_duplicate", "question2", metric="f1"),
    "stsb": GlueTask("sentence1", "score", "sentence2", (), metric="pearson"),
    "mnli": _MNLI,
    "mnli_mm": dataclasses.replace(_MNLI, dev="dev_mismatched", test="test_mismatched"),
    "qnli": GlueTask("question", "label", "sentence", _ENTAILMENT),
    "rte": GlueTask("sentence1", "label", "sentence2", _ENTAILMENT),
    "wnli": GlueTask("sentence1", "label", "sentence2"),
}


def _task(name: str, row: GlueTask) -> Callable[..., Feed]:
    """The kind of task that opens one of them."""

    def task(
        about: About,
        *,
        source: str = "",
        heldout: str = "",
        heldout_fraction: Fraction = 0.1,
        labels: Names = (),
        skip_bad_rows: bool = False,
        rows: RowSettings,
    ) -> Feed:
        if not source:
            raise BadInput(
                f"config.feeds.{about.name}.source is empty: give the folder of the files of {name!r}, "
                f"train.tsv and {row.dev}.tsv"
            )
        folder = epath.Path(source).expanduser()
        is_named = data_sets.is_named(source)
        if is_named:
            source, heldout = _splits(source, heldout, row.dev)
        elif folder.is_dir() and heldout == source:
            source = heldout = _file(folder, row.dev)
        elif folder.is_dir():
            source, heldout = _file(folder, "train"), heldout or _file(folder, row.dev)
        texts = Texts(
            source=source,
            heldout=heldout,
            heldout_fraction=heldout_fraction,
            skip_bad_rows=skip_bad_rows,
            **row.columns(is_named),
        )
        if row.labels:
            if labels and sorted(labels) != sorted(row.labels):
                raise BadInput(
                    f"config.feeds.{about.name}.labels={tuple(labels)}: the labels of {name!r} are "
                    f"{listed(row.labels)}; give those, in any order"
                )
            order = labels or row.labels
            feed = classification(about, texts=texts, rows=rows, labels=order)
        else:
            feed = regression(about, texts=texts, rows=rows)
        positive = feed.labels.index(row.labels[1]) if len(row.labels) == 2 else 1
        return dataclasses.replace(feed, metric=row.metric, positive=positive)

    task.__name__ = name
    return task


def unlabelled(name: str, source: str, labels: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(the file of a task's test rows, where its texts are), of a model for these labels. `source`: the
    folder that holds it, or the file itself.

    Raises:
        BadInput: no such task or file; a model for other labels.
    """
    if name not in GLUE:
        raise BadInput(f"task={name!r} is no task of GLUE; {nearest(name, GLUE)}")
    row, folder = GLUE[name], epath.Path(source).expanduser()
    if sorted(labels) != sorted(row.labels):
        raise BadInput(
            f"the model answers with {_shown(labels)}, and {name!r} asks for {_shown(row.labels)}; give a model "
            "that is fine-tuned on it"
        )
    text = row.text if row.header == "yes" else row.named[0]  # CoLA's test file has a header
    columns = {"text_column": text, "pair_column": row.pair, "header": "yes", "quoting": "none"}
    return (_file(folder, row.test) if folder.is_dir() else source), columns


def _shown(labels: Sequence[str]) -> str:
    return listed(labels) if labels else "a number"


def _splits(source: str, heldout: str, dev: str) -> tuple[str, str]:
    """What to read of a set by name: its train and validation splits, but for one that is named, or the
    held-out one alone."""
    if heldout and not data_sets.is_named(heldout):
        raise BadInput(
            f"{source!r} is a set by name and {heldout!r} is none, and their columns differ; give two sets, or two files"
        )
    dev = dev.replace("dev", "validation")
    train = data_sets.with_split(source, dev if heldout == source else "train")
    if heldout:
        return train, data_sets.with_split(heldout, dev)
    return train, "" if train == source else data_sets.with_split(source, dev)


def _file(folder: epath.Path, part: str) -> str:
    """The file of a part. Raises `BadInput` if the folder has none."""
    advice = "give a folder that has, or the files"
    return os.fspath(files.in_folder(folder, f"{part}.tsv", advice))


GLUE_TASKS = {name: _task(name, row) for name, row in GLUE.items()}

"""Models fine-tuned on every task, as docs/results.md has it: one row for each task and model.

    python benchmarks/tasks.py --data=FOLDER --workdir=DIR --models=NAME=FOLDER,NAME=FOLDER
                               [--only=cola,mrpc] [--minutes=10]

`--data` holds the sets in the folders that `SETS` names. What is chosen by and what is reported are apart. By the
rows to choose by, the better of the learning rates `RATES` is taken, each tried with the first seed, and of every run the best
state, measured every 500 steps and at the end. A run that takes less than `--minutes` is made with three seeds,
others with one. Finished rows go at once into benchmarks/tasks.json and into the table; the same command goes on
where it was stopped, also within a run."""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import rows

from jaxdistill import allocation, task_commands
from jaxdistill.data.files import digest_of

ROWS = rows.HERE / "tasks.json"
SEEDS = (0, 1, 2)
RATES = (1e-4, 3e-4)
BASELINES = {  # numbers of the answer that is given without looking; of a correlation it is 0
    "accuracy": ("majority_accuracy",),
    "f1": ("majority_f1", "no_answer_f1_baseline"),
    "entity_f1": ("majority_entity_f1",),
    "frame_accuracy": ("majority_frame_accuracy",),
    "matthews": (),
    "pearson": (),
}


class Set(NamedTuple):
    """One row: a kind of task, the score that counts, and below `--data` what it learns from, what its best
    state is chosen by ("" for a part of the first, of the share that `settings` say) and what is
    reported."""

    task: str
    metric: str
    files: tuple[str, str, str]
    epochs: float = 3.0
    settings: Mapping[str, Any] = {}


def _parts(pattern: str, *names: str) -> tuple[str, str, str]:
    train, heldout, test = (pattern.format(name) for name in names)
    return train, heldout, test


_FIVE_PERCENT = {"heldout_fraction": 0.05}
_PAIRS = {"text_column": "0", "pair_column": "1", "label_column": "2", "header": "no"}
_SQUAD, _XQUAD = "squad/squad2-dev-half.json.xz", "squad/xquad.en.json.xz"
_COLA = ("glue/CoLA/train.tsv.xz", "", "glue/CoLA/dev.tsv")
_SST2 = ("glue/SST-2/train.tsv.xz", "", "glue/SST-2/dev.tsv.xz")
SETS = {
    "wnli": Set("wnli", "accuracy", ("glue/WNLI/train.tsv.xz", "", "glue/WNLI/dev.tsv")),
    "cola": Set("cola", "matthews", _COLA, settings=_FIVE_PERCENT),
    "stsb": Set(
        "regression",
        "pearson",
        _parts("glue/STS-B/stsb-en-{}.csv.xz", "train", "dev", "test"),
        settings=_PAIRS,
    ),
    "mrpc": Set("mrpc", "f1", _parts("glue/MRPC/{}.tsv.xz", "train", "dev", "test")),
    "snips": Set(
        "intent_slots",
        "frame_accuracy",
        _parts("intent/snips/{}", "train", "valid", "test"),
        settings={"intent_weight": 0.1},  # chosen on `valid`: docs/log.md
    ),
    "conll2000": Set(
        "tagging",
        "entity_f1",
        ("tagging/conll2000/train.txt.xz", "", "tagging/conll2000/test.txt.xz"),
        settings={"unseen_labels": "wrong"},  # two words of the test file
    ),
    "ag_news": Set(
        "classification",
        "accuracy",
        ("topic/ag_news/dev.csv.xz", "", "topic/ag_news/test.csv.xz"),
        settings={"text_column": "content", "label_column": "label"},
    ),
    "conll2003": Set(
        "tagging", "entity_f1", _parts("ner/conll2003/{}.txt.xz", "train", "valid", "test")
    ),
    "wikiann_en": Set(
        "tagging", "entity_f1", _parts("ner/wikiann/en/{}.txt.xz", "train", "dev", "test")
    ),
    "sst2": Set("sst2", "accuracy", _SST2, 1.0, _FIVE_PERCENT),
    "squad": Set(  # XQuAD asks nothing that has no answer
        "question_answering",
        "f1",
        (_SQUAD, "", _XQUAD),
        3.0,
        {"heldout_fraction": 0.2, "test_without_articles_of": _SQUAD, "answerable_only": True},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    allocation.reuse_freed_memory()  # as the command does
    models = dict(model.split("=", 1) for model in options.models.split(","))
    for name in options.only.split(","):
        for model, folder in models.items():
            row = {"task": name, "model": model, "set": digest_of([SETS[name], RATES])}
            if rows.finished(ROWS, row):
                continue
            workdir = workdir_of(options.workdir, name, folder)
            row |= row_of(SETS[name], folder, options.data, workdir, 60 * options.minutes)
            write_table(rows.add(ROWS, row, ("task", "model")))


def workdir_of(workdir: pathlib.Path, name: str, folder: str) -> pathlib.Path:
    """Where the runs of a model on a set are."""
    return workdir / f"{name}-{pathlib.Path(folder).name}"


def row_of(
    row: Set, folder: str, data: pathlib.Path, workdir: pathlib.Path, seconds: float
) -> dict[str, Any]:
    """The scores of a model on a set, from runs made now or finished before: of three seeds if one takes
    less than `seconds`."""
    found = fine_tuned(row, folder, data, workdir, SEEDS[:1])
    if found["seconds"][0] < seconds:
        found = fine_tuned(row, folder, data, workdir, SEEDS)
    scores = found["test"]
    return {
        "metric": row.metric,
        "rows": [found[f"{part}_examples"] for part in ("train", "heldout", "test")],
        "epochs": row.epochs,
        "learning_rate": found["learning_rate"],
        "baseline": next(
            (scores[name]["median"] for name in BASELINES[row.metric] if name in scores), 0.0
        ),
        "chosen_by": found["heldout"][row.metric]["by_seed"],
        "test": scores[row.metric]["by_seed"],
        "seconds": found["seconds"],
        "hardware": found["hardware"],
    }


def fine_tuned(
    row: Set, folder: str, data: pathlib.Path, workdir: pathlib.Path, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """What `jaxdistill finetune` finds for a model on a set; runs that are finished are only read."""
    train, *others = (data / file for file in row.files)
    heldout, test = (file if file != data else None for file in others)
    settings = {
        name: str(data / value) if name.endswith("_of") else value
        for name, value in row.settings.items()
    }
    return task_commands.finetune(
        folder,
        train,
        workdir,
        task=row.task,
        heldout=heldout,
        test=test,
        epochs=row.epochs,
        grid=RATES,
        seeds=seeds,
        overrides={
            **{f"feeds.task.{name}": value for name, value in settings.items()},
            "stages.finetune.best": row.metric,
        },
    )


def write_table(found: list[rows.Row]) -> None:
    """The table of docs/results.md."""
    models = list(dict.fromkeys(row["model"] for row in found))
    heads = ["task", "score", "rows to learn, choose, report", "without looking"]
    for model in models:
        heads += [model, "s a run"]
    lines = []
    for name in SETS:
        of = {row["model"]: row for row in found if row["task"] == name}
        if not of:
            continue
        any_row = next(iter(of.values()))
        counts = ", ".join(f"{count:,}" for count in any_row["rows"])
        cells = [name, any_row["metric"].replace("_", " "), counts, f"{any_row['baseline']:.3f}"]
        for model in models:
            cells += cells_of(of[model]) if model in of else ["", ""]
        lines.append(cells)
    rows.put("tasks", rows.table(heads, lines))


def cells_of(row: dict[str, Any]) -> list[str]:
    """Median and ends over the seeds, and the seconds of the median run."""
    values, seconds = sorted(row["test"]), f"{statistics.median(row['seconds']):,.0f}"
    if len(values) == 1:
        return [f"{values[0]:.3f} (1 seed)", seconds]
    return [f"{statistics.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})", seconds]


if __name__ == "__main__":
    main()

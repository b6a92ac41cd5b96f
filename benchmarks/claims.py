"""What papers claim of their methods, each beside controls: students of one size, equal steps, scores on rows that
chose nothing.

    python benchmarks/claims.py --claim=minilm --data=FOLDER --workdir=DIR --words=FOLDER [--seeds=0] [--tasks=cola,mrpc,stsb]
    python benchmarks/claims.py --claim=tinybert ... --teachers=DIR --pretrained=FOLDER
    python benchmarks/claims.py --claim=progressive ... --ib_bert=FOLDER
    python benchmarks/claims.py --claim=xtremedistil ... --teachers=DIR --pretrained=FOLDER
    python benchmarks/claims.py --claim=languages ... --pretrained=FOLDER --tasks=en,de,fr,nl,pt

    minilm         MiniLM and MiniLMv2 beat soft labels and TinyBERT's losses at an equal budget
    tinybert       general distillation, distillation on the task and augmentation each add
    progressive    progressive transfer beats joint, that auxiliary losses, that none
    xtremedistil   unfreezing from the top down adds, and so does a source task
    languages      one student of XtremeDistil's tags several languages

A contestant is made of steps on text, if any, and steps on a task. What is made on text is made once for all tasks, and
kept as a folder. `--words` and `--ib_bert` are the two models of configs/word_teachers.py; `--teachers` is the workdir of
tasks.py, whose fine-tuned `--pretrained` teaches on tasks. Each row goes at once into benchmarks/claims.json and the
table; the same command goes on where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import methods
import numpy as np
import rows
import tasks
from ml_collections import ConfigDict

from jaxdistill import allocation, defaults, interop, report, run, task_commands
from jaxdistill.methods.xtremedistil import unfrozen
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import count

ROWS = rows.HERE / "claims.json"
KEY = ("claim", "size", "contestant", "task", "seed")
TEXT_STEPS, TEXT_RATE = 800, 1e-3
TASK_EPOCHS, TASK_RATE, BATCH = 3.0, 3e-4, 32
LEARNING: dict[str, Any] = dict(
    defaults.LEARNING, learning_rate=TASK_RATE, epochs=TASK_EPOCHS, batch_size=BATCH
)
ON_TEXT: dict[str, Any] = dict(
    batch_size=BATCH, optimizer="adamw", bias_correction=True, learning_rate=TEXT_RATE, warmup_ratio=0.05
)  # fmt: skip
_SICK = {
    "text_column": "sentence_A",
    "pair_column": "sentence_B",
    "label_column": "entailment_judgment",
}
SOURCES = {  # what XtremeDistil's student is made on, which then learns the other tasks
    "sst2": tasks.SETS["sst2"],
    "ag_news": tasks.SETS["ag_news"],
    "sick": tasks.Set(
        "classification", "accuracy", ("nli/SICK/SICK.txt.xz", "", ""), settings=_SICK
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--claim", required=True, choices=sorted(CLAIMS))
    for name in ("data", "workdir"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    for name in ("words", "ib_bert", "teachers", "pretrained"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tasks", default="cola,mrpc,stsb")
    parser.add_argument("--only", default="", help="contestants")
    options = parser.parse_args()
    allocation.reuse_freed_memory()  # as the command does
    sizes, contestants, needed = CLAIMS[options.claim]
    for name in needed:
        if getattr(options, name) is None:
            parser.error(f"--claim={options.claim} needs --{name}")
    for seed in map(int, options.seeds.split(",")):
        for size in sizes:
            for name in options.only.split(",") if options.only else contestants:
                for task in options.tasks.split(","):
                    row = dict(zip(KEY, (options.claim, size, name, task, seed)))
                    if not rows.finished(ROWS, row):
                        found = contestants[name](Entry(options, size, task, seed))
                        rows.add(ROWS, row | found, KEY)
                        write_tables()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row to be made: a size of the student, a task and a seed."""

    options: argparse.Namespace
    size: str
    task: str
    seed: int

    @property
    def layers(self) -> int:
        return int(self.size.split("x")[0])

    @property
    def shape(self) -> dict[str, Any]:
        """Of the student, with as many heads as its teacher."""
        width = int(self.size.split("x")[1])
        return dict(
            num_layers=self.layers, hidden_size=width, num_heads=12, intermediate_size=4 * width
        )

    def recipe(self, row: tasks.Set | None = None) -> ConfigDict:
        """A recipe with the task, or another set, as its feed `task`, and no networks yet."""
        row = row or tasks.SETS[self.task]
        train, heldout, test = (str(self.options.data / file) if file else "" for file in row.files)
        config = defaults.recipe("claims")
        settings = {"heldout": heldout, "test": test, **row.settings}
        config.feeds.task = defaults.task(row.task, source=train, **settings)
        return config

    def teacher(self, source: str = "") -> str:
        """The model fine-tuned on the task, or on a source: that of tasks.py where there is one."""
        name, options = source or self.task, self.options
        workdir = tasks.workdir_of(options.teachers, name, str(options.pretrained))
        row = SOURCES[source] if source else tasks.SETS[name]
        found = tasks.fine_tuned(
            row, str(options.pretrained), options.data, workdir, tasks.SEEDS[:1]
        )
        return str(found["model"])

    def trained(self, config: ConfigDict, name: str) -> pathlib.Path:
        """The workdir of `config`, run to its end."""
        config.seed, config.export = self.seed, False
        folder = self.options.workdir / f"{name}-{self.size}-{self.seed}"
        run.train(config, folder)
        return folder

    def scored(self, config: ConfigDict, name: str, *before: pathlib.Path) -> dict[str, Any]:
        """What is reported of the student that `config` makes; `before`: runs whose cost is its too."""
        folder = self.trained(config, f"{name}-{self.task}")
        metric = tasks.SETS[self.task].metric
        student = report.read_results(folder)["networks"]["student"]
        scores = {"test": student["task.test"][metric], "chosen_by": student["task"][metric]}
        return {"metric": metric, **scores, **costs(folder, *before)}


def costs(folder: pathlib.Path, *before: pathlib.Path) -> dict[str, Any]:
    """What the student of a run is, and what that took, with the runs before it."""
    found = report.read_results(folder)
    stages = [
        stage
        for one in (folder, *before)
        for stage in report.read_results(one)["stages"].values()
        if stage["network"] == "student"
    ]
    parts = ("steps", "student_flops", "teacher_flops", "seconds")
    model, params = interop.for_format(*interop.from_pretrained(last_stage(folder)))
    return {
        "parameters": count(params),
        "milliseconds": latency(model, params),
        **{part: sum(stage[part] for stage in stages) for part in parts},
        "hardware": found["hardware"],
    }


def last_stage(folder: pathlib.Path) -> str:
    """The student of a run as its last stage left it, a model folder."""
    order = json.loads((folder / "config.json").read_text())["order"]
    return str(folder / "stages" / order[-1])


def latency(model: Model, params: Params, length: int = 128, times: int = 30) -> float:
    """Milliseconds of one row of so many tokens, the median."""
    forward = jax.jit(lambda params, batch: model.apply(params, batch)[0])
    batch = {"input_ids": np.ones((1, length), np.int32)}
    seconds = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        jax.block_until_ready(forward(params, batch))
        seconds.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(seconds[1:]), 2)


# MiniLM: steps on text by one method or another, then the task's labels.


def on_text(entry: Entry, name: str) -> pathlib.Path:
    """A student after its steps on text by the method `name`; made once for all tasks."""
    options, last = entry.options, 5
    config = defaults.recipe("claims")
    config.data.update(
        {"source": str(options.data / "text" / "wiki_en"), "path": str(options.workdir / "text")}
    )
    config.networks.teacher = defaults.network(init=str(options.words), heads=("mlm",))
    config.networks.student = defaults.network(
        "bert_base", start="factorise", heads=("mlm",), **entry.shape
    )
    follow = tuple(2 * layer + 1 for layer in range(3)) if entry.layers == 3 else tuple(range(6))
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "mlm": ("pretrain", dict(nsp=0.0)),
        "soft words": ("distilbert", dict(mlm=0.0, hidden_cosine=0.0, soft_words=1.0)),
        "tinybert": ("intermediate", dict(layer_map=follow)),
        "minilm": ("self_attention", dict(teacher_layer=last)),
        "minilmv2": ("relations", dict(teacher_layer=last, relation_heads=12)),
    }
    kind, settings = kinds[name]
    config.stages.text = defaults.stage(kind, "student", steps=TEXT_STEPS, **ON_TEXT, **settings)
    config.order = ("text",)
    config.evaluation.max_examples = 512
    return entry.trained(config, f"text-{name.replace(' ', '-')}")


def after_text(name: str, entry: Entry) -> dict[str, Any]:
    """Steps on text, then the labels."""
    config = entry.recipe()
    before = () if name in ("random", "copied") else (on_text(entry, name),)
    config.networks.student = student_of(entry, before, random=name == "random")
    with_words(config, entry)
    config.stages.finetune = defaults.stage("finetune", "student", **chosen(entry))
    config.order = ("finetune",)
    return entry.scored(config, f"after-{name.replace(' ', '-')}", *before)


def student_of(
    entry: Entry, before: tuple[pathlib.Path, ...] = (), random: bool = False
) -> ConfigDict:
    """A student that goes on from a run, or begins with the word table of `words` in fewer dimensions."""
    if before:
        return defaults.network(init=last_stage(before[0]), heads=("task",))
    start = "random" if random else "factorise"
    return defaults.network("bert_base", start=start, of="words", heads=("task",), **entry.shape)


def with_words(config: ConfigDict, entry: Entry) -> None:
    """The network whose word table and words students begin with."""
    config.networks.words = defaults.network(init=str(entry.options.words), heads=("mlm",))


def chosen(entry: Entry, **changes: Any) -> dict[str, Any]:
    """How a student learns a task whose best state is kept."""
    best = dict(best=tasks.SETS[entry.task].metric, best_every=200)
    return {**LEARNING, **best, **changes}


# TinyBERT: general distillation, task distillation, augmentation.


def tinybert(parts: str, entry: Entry) -> dict[str, Any]:
    """`parts`: which of "general", "task" and "augmentation" there are."""
    before = (on_text(entry, "tinybert"),) if "general" in parts else ()
    config = entry.recipe()
    config.networks.student = student_of(entry, before)
    with_words(config, entry)
    if "task" not in parts:
        config.stages.finetune = defaults.stage("finetune", "student", **chosen(entry))
        config.order = ("finetune",)
        return entry.scored(config, f"tinybert-{parts.replace(' ', '-')}", *before)
    config.networks.teacher = defaults.network(init=entry.teacher())
    feed, share = "task", 1.0
    if "augmentation" in parts:
        feed, share = "more", 1 / (1 + methods.COPIES)
        config.feeds.more = defaults.derived(
            "augmented", of="task", by="words", copies=methods.COPIES, most=methods.MOST
        )
    half = dict(feed=feed, epochs=TASK_EPOCHS / 2 * share)
    config.stages.intermediate = defaults.stage(
        "intermediate", "student", layer_map=(1, 3, 5),
        **{**LEARNING, **half, "decay": "constant", "warmup_ratio": 0.0},
    )  # fmt: skip
    config.stages.distill = defaults.stage(
        "soft_labels", "student", temperature=1.0, hard_labels=0.0,
        **chosen(entry, best_on="task", **half),
    )  # fmt: skip
    config.order = ("intermediate", "distill")
    return entry.scored(config, f"tinybert-{parts.replace(' ', '-')}", *before)


# MobileBERT: how its blocks are transferred.


def mobile_on_text(entry: Entry, name: str) -> pathlib.Path:
    """A bottleneck student after its steps on text: half of them transfer, half distillation."""
    options = entry.options
    config = defaults.recipe("claims")
    config.data.update(
        {"source": str(options.data / "text" / "wiki_en"), "path": str(options.workdir / "text")}
    )
    config.networks.teacher = defaults.network(init=str(options.ib_bert), heads=("mlm",))
    config.networks.student = mobile(("mlm",))
    layers = dict(batch_size=BATCH, decay="constant", learning_rate=5e-3, steps=TEXT_STEPS // 2)
    words = dict(ON_TEXT, nsp=0.0)
    if name in ("progressive", "joint"):
        config.stages.transfer = defaults.stage(name, "student", **layers)
        config.stages.text = defaults.stage("distill", "student", steps=TEXT_STEPS // 2, **words)
        config.order = ("transfer", "text")
    else:
        kind = "auxiliary" if name == "auxiliary" else "distill"
        config.stages.text = defaults.stage(kind, "student", steps=TEXT_STEPS, **words)
        config.order = ("text",)
    config.evaluation.max_examples = 512
    return entry.trained(config, f"mobile-{name}")


def mobile(heads: tuple[str, ...], of: str = "teacher") -> ConfigDict:
    """MobileBERT's block in the widths of word_teachers' IB-BERT, whose embeddings and head it begins with."""
    return defaults.network(
        "mobilebert", start="copy", of=of, heads=heads, num_layers=6, hidden_size=384,
        embedding_size=384, trigram_input=False, bottleneck_size=128, intermediate_size=512,
        num_heads=8, num_ffn=2,
    )  # fmt: skip


def progressive(name: str, entry: Entry) -> dict[str, Any]:
    """Transfer of the blocks, then the labels."""
    config = entry.recipe()
    before = () if name == "copied" else (mobile_on_text(entry, name),)
    config.networks.ib_bert = defaults.network(init=str(entry.options.ib_bert), heads=("mlm",))
    config.networks.student = (
        defaults.network(init=last_stage(before[0]), heads=("task",))
        if before
        else mobile(("task",), of="ib_bert")
    )
    config.stages.finetune = defaults.stage("finetune", "student", **chosen(entry))
    config.order = ("finetune",)
    return entry.scored(config, f"mobile-{name}", *before)


# XtremeDistil: what gradual unfreezing and a source task add.


def distilled(
    entry: Entry,
    config: ConfigDict,
    gradual: bool,
    best: dict[str, Any],
    epochs: float = TASK_EPOCHS,
) -> None:
    """Adds topmost states, logits and labels, as many epochs each, of which the last two unfreeze or do not."""
    student = config.networks.student
    student.model.projected_size = 0
    config.stages.topmost = defaults.stage(
        "topmost",
        "student",
        teacher_layer=5,
        attention_probability_mse=1.0,
        **{**LEARNING, "epochs": epochs},
    )
    groups = unfrozen(entry.layers, projected=False) if gradual else [{}]
    order = ["topmost"]
    for prefix, kind, settings in (
        ("soft", "soft_labels", {"distance": "logit_mse", "hard_labels": 0.0}),
        ("hard", "finetune", {}),
    ):
        for number, moving in enumerate(groups):
            share = dict(best, epochs=epochs / len(groups))
            config.stages[f"{prefix}_{number}"] = defaults.stage(
                kind, "student", **{**LEARNING, **settings, **share, **moving}
            )
            order.append(f"{prefix}_{number}")
    config.order = tuple(order)


def xtremedistil(name: str, entry: Entry) -> dict[str, Any]:
    """`name`: "alone" (as many epochs of labels), "at once", "unfrozen", "source SET" or, without distillation,
    "labels of SET"; the last two then learn the task's labels."""
    config = entry.recipe()
    best = dict(best=tasks.SETS[entry.task].metric, best_every=200)
    label = name.replace(" ", "-")
    if name in ("alone", "at once", "unfrozen"):
        config.networks.student = student_of(entry)
        with_words(config, entry)
        if name == "alone":
            config.stages.finetune = defaults.stage(
                "finetune", "student", **chosen(entry, epochs=3 * TASK_EPOCHS)
            )
            config.order = ("finetune",)
        else:
            config.networks.teacher = defaults.network(init=entry.teacher())
            distilled(entry, config, name == "unfrozen", best)
        return entry.scored(config, f"xtreme-{label}")
    source = name.rsplit(" ", 1)[1]
    first = entry.recipe(SOURCES[source])
    first.networks.student = student_of(entry)
    with_words(first, entry)
    most = dict(best=SOURCES[source].metric, best_every=200)
    if name.startswith("source"):
        first.networks.teacher = defaults.network(init=entry.teacher(source))
        distilled(entry, first, True, most)
    else:
        first.stages.finetune = defaults.stage(
            "finetune", "student", **{**LEARNING, **most, "epochs": 3 * TASK_EPOCHS}
        )
        first.order = ("finetune",)
    before = (entry.trained(first, f"xtreme-{label}"),)
    config.networks.student = student_of(entry, before)
    config.stages.finetune = defaults.stage("finetune", "student", **chosen(entry))
    config.order = ("finetune",)
    return entry.scored(config, f"xtreme-{label}", *before)


# One student for several languages.

LANGUAGES = ("en", "de", "fr", "nl", "pt")
_WIKIANN = "ner/wikiann/{}/{}.txt.xz"


def tagger(name: str, entry: Entry) -> pathlib.Path:
    """The run of a tagger: "teacher", the pretrained model on all languages; of a student "labels" or
    "XtremeDistil" on all, or "labels of one"."""
    options = entry.options
    learned = (entry.task,) if name == "labels of one" else LANGUAGES
    train = ",".join(str(options.data / _WIKIANN.format(one, "train")) for one in learned)
    config = defaults.recipe("claims")
    config.feeds.task = defaults.task("tagging", source=train, heldout_fraction=0.02)
    best = dict(best="entity_f1", best_every=1000)
    with_words(config, entry)
    config.networks.student = student_of(entry)
    if name == "teacher":
        config.networks.student = defaults.network(init=str(options.pretrained), heads=("task",))
    if name == "XtremeDistil":
        teacher = last_stage(tagger("teacher", dataclasses.replace(entry, seed=0)))
        config.networks.teacher = defaults.network(init=teacher)
        distilled(entry, config, True, best, epochs=1.0)
    else:  # as many epochs as the other has in all, of one language as many rows
        epochs = 1.0 if name == "teacher" else 3.0 * len(LANGUAGES) / len(learned)
        config.stages.finetune = defaults.stage(
            "finetune", "student", **{**LEARNING, **best, "epochs": epochs}
        )
        config.order = ("finetune",)
    suffix = f"-{entry.task}" if len(learned) == 1 else ""
    return entry.trained(config, f"tagger-{name.replace(' ', '-')}{suffix}")


def languages(name: str, entry: Entry) -> dict[str, Any]:
    """A tagger on the test sentences of one language."""
    folder = tagger(name, entry)
    test = entry.options.data / _WIKIANN.format(entry.task, "test")
    found = task_commands.evaluate_task(folder, "tagging", test, network="student")
    return {"metric": "entity_f1", "test": found["entity_f1"], **costs(folder)}


Contestant = Callable[[Entry], dict[str, Any]]


def _each(make: Callable[[str, Entry], dict[str, Any]], *names: str) -> dict[str, Contestant]:
    return {name: functools.partial(make, name) for name in names}


# By claim: sizes of the student, contestants, and which options they need.
CLAIMS: dict[str, tuple[tuple[str, ...], dict[str, Contestant], tuple[str, ...]]] = {
    "minilm": (
        ("3x384", "6x192"),
        _each(after_text, "random", "copied", "mlm", "soft words", "tinybert", "minilm", "minilmv2"),
        ("words",),
    ),
    "tinybert": (
        ("3x192",),
        _each(tinybert, "labels alone", "general", "task", "general and task", "task and augmentation",
              "general, task and augmentation"),
        ("words", "teachers", "pretrained"),
    ),
    "progressive": (
        ("6x384",),
        _each(progressive, "copied", "distill", "auxiliary", "joint", "progressive"),
        ("ib_bert",),
    ),
    "xtremedistil": (
        ("3x192",),
        _each(xtremedistil, "alone", "at once", "unfrozen",
              *(f"{how} {name}" for how in ("labels of", "source") for name in SOURCES)),
        ("words", "teachers", "pretrained"),
    ),
    "languages": (
        ("3x192",),
        _each(languages, "teacher", "labels of one", "labels", "XtremeDistil"),
        ("words", "pretrained"),
    ),
}  # fmt: skip


def write_tables() -> None:
    """A table for each claim, in docs/results.md."""
    found = rows.read(ROWS)
    for claim in CLAIMS:
        of_claim = [row for row in found if row["claim"] == claim]
        names = [
            task
            for task in (*tasks.SETS, *LANGUAGES)
            if any(row["task"] == task for row in of_claim)
        ]
        if not names:
            continue
        lines = []
        for size, contestant in dict.fromkeys((row["size"], row["contestant"]) for row in of_claim):
            mine = [r for r in of_claim if (r["size"], r["contestant"]) == (size, contestant)]
            cells = [size, contestant]
            for task in names:
                cells.append(scores_of([row["test"] for row in mine if row["task"] == task]))
            lines.append([*cells, *costs_of(mine)])
        heads = ["student", "made by", *names, "parameters", "ms a row", "steps"]
        heads += ["student's TFLOP", "teacher's TFLOP", "s"]
        rows.put(f"claim {claim}", rows.table(heads, lines))


def scores_of(scores: list[float]) -> str:
    """The median, and lowest and highest of several seeds."""
    if not scores:
        return ""
    middle = f"{statistics.median(scores):.3f}"
    return middle if len(scores) == 1 else f"{middle} ({min(scores):.3f} to {max(scores):.3f})"


def costs_of(mine: list[rows.Row]) -> list[str]:
    """What a student is and what it took, the mean over tasks and seeds."""

    def mean(name: str) -> float:
        return statistics.mean(row[name] for row in mine)

    return [
        f"{mine[0]['parameters']:,}",
        f"{mean('milliseconds'):.1f}",
        f"{mean('steps'):,.0f}",
        f"{mean('student_flops') / 1e12:,.1f}",
        f"{mean('teacher_flops') / 1e12:,.1f}",
        f"{mean('seconds'):,.0f}",
    ]


if __name__ == "__main__":
    main()

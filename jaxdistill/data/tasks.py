"""Every kind of task by name, and a recipe's section as the `Feed` of its kind.

A kind of task is a function of `About` whose keywords are its settings; it returns a `Feed`. Add one:
write that function in a file beside `classification`, and a row here; or `register` it from your own
recipe's file. A kind that has a setting `heldout` has `test` too: rows that are reported and that nothing
is chosen by, as a feed of their own. Called by inputs and defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxdistill.data.classification import classification
from jaxdistill.data.feeds import About, Feed
from jaxdistill.data.glue import GLUE_TASKS
from jaxdistill.data.intent_slots import intent_slots
from jaxdistill.data.question_answering import question_answering
from jaxdistill.data.regression import regression
from jaxdistill.data.retrieval import retrieval
from jaxdistill.data.similarity import similarity
from jaxdistill.data.tagging import tagging
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.registry import Table
from jaxdistill.settings import Setting, arguments, check, settings_of

Task = Callable[..., Feed]

TEST = ".test"  # behind the name of a task: the feed of its test rows

TASKS: Table[Task] = Table(
    "task",
    {
        "classification": classification,
        "regression": regression,
        "tagging": tagging,
        "intent_slots": intent_slots,
        "question_answering": question_answering,
        "similarity": similarity,
        "retrieval": retrieval,
        **GLUE_TASKS,
    },
)


def register(task: Task) -> Task:
    """Adds a kind of task of one's own, under the name of the function; also a decorator. With settings
    `source` and `heldout` it has `test` too, and with `x` and `heldout_x` also `test_x`.

    Raises `BadInput` if the name is taken, or a setting is called `kind`."""
    if "kind" in settings_of(task):
        raise BadInput(
            f"task {task.__name__!r}: every section has a setting 'kind'; give the keyword another name"
        )
    TASKS.register(task.__name__, task)
    return task


def default_settings(kind: str) -> dict[str, Any]:
    """Every setting of a task of `kind`, at its default."""
    declared = settings_of(TASKS.named(kind))
    tests = {_of_test(name): declared[name].default for name in _of_heldout(declared)}
    return {**{name: setting.default for name, setting in declared.items()}, **tests}


def _of_heldout(declared: Mapping[str, Setting]) -> dict[str, str]:
    """The settings that say where held-out rows are, and those that say the same of training rows:
    "heldout" and "source", "heldout_label_source" and "label_source"."""
    found = {"heldout": "source"}
    found |= {name: name.removeprefix("heldout_") for name in declared if name != "heldout"}
    return {a: b for a, b in found.items() if a != b and {a, b} <= declared.keys()}


def _of_test(name: str) -> str:
    """ "heldout_label_source" -> "test_label_source"."""
    return name.replace("heldout", "test", 1)


def measured_alone(values: Mapping[str, Any], part: str = "source") -> dict[str, Any]:
    """The settings `values` of a task for what is only measured: the rows of `part`, "source" or
    "test", are its training and its held-out rows, and are read once."""
    found = dict(values)
    for heldout, source in _of_heldout(settings_of(TASKS[values["kind"]])).items():
        found[heldout] = found[source] = values[source if part == "source" else _of_test(heldout)]
        found[_of_test(heldout)] = ""
    return found


def check_setting(kind: str, name: str, where: str) -> None:
    """Raises `BadInput` unless tasks of `kind` have the setting `name`."""
    valid = ("kind", *default_settings(kind))
    if name not in valid:
        raise BadInput(
            f"{where} has no field {name!r}; {nearest(name, valid)}; one of kind {kind!r} has: "
            f"{listed(sorted(valid[1:]))}"
        )


def open_task(name: str, section: Any, seed: int) -> Feed:
    """The section of a recipe as a `Feed`, its tables read. Raises `BadInput` for settings outside
    their range, and for tables that cannot be used."""
    where = f"config.feeds.{name}"
    if name == TEXT:
        raise BadInput(f"{where}: {TEXT!r} is the feed of config.data; give the task another name")
    task = TASKS.named(section.kind, f"{where}.kind=")
    for field in section:
        check_setting(section.kind, field, where)
    check(task, section, where)
    return task(About(name, seed), **arguments(task, section))


def test_of(feed: Feed, section: Any, seed: int) -> Feed | None:
    """The test rows of the task `feed`, which `section` opened; None if it names none. Raises `BadInput`
    as `open_task`."""
    if not section.get("test"):
        return None
    task, values = TASKS[section.kind], measured_alone(section, "test")
    if feed.labels and "labels" in values:
        values |= {"labels": feed.labels} | ({"label_file": ""} if "label_file" in values else {})
    values |= feed.decided
    test = task(About(feed.name + TEST, seed), **arguments(task, values))
    return dataclasses.replace(
        test,
        usual=feed.usual,
        tables={"test": test.tables["heldout"]},
        digests={"test": test.digests["heldout"]},
    )

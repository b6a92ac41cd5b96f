"""Every kind of task by name, and a recipe's section as the `Feed` of its kind.

A kind of task is a function of `About` whose keywords are its settings; it returns a `Feed`. Add one:
write that function in a file beside `classification`, and a row here; or `register` it from your own
recipe's file. Called by inputs and defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxdistill.data.classification import classification
from jaxdistill.data.feeds import About, Feed
from jaxdistill.data.glue import GLUE_TASKS
from jaxdistill.data.intent_slots import intent_slots
from jaxdistill.data.question_answering import question_answering
from jaxdistill.data.regression import regression
from jaxdistill.data.similarity import similarity
from jaxdistill.data.tagging import tagging
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.registry import Table
from jaxdistill.settings import arguments, check, settings_of

Task = Callable[..., Feed]

TASKS: Table[Task] = Table(
    "task",
    {
        "classification": classification,
        "regression": regression,
        "tagging": tagging,
        "intent_slots": intent_slots,
        "question_answering": question_answering,
        "similarity": similarity,
        **GLUE_TASKS,
    },
)


def register(task: Task) -> Task:
    """Adds a kind of task of one's own, under the name of the function; also a decorator. Raises
    `BadInput` if the name is taken, or a setting is called `kind`."""
    if "kind" in settings_of(task):
        raise BadInput(
            f"task {task.__name__!r}: every section has a setting 'kind'; give the keyword another name"
        )
    TASKS.register(task.__name__, task)
    return task


def default_settings(kind: str) -> dict[str, Any]:
    """Every setting of a task of `kind`, at its default."""
    return {name: setting.default for name, setting in settings_of(TASKS.named(kind)).items()}


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

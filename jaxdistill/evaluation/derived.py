"""Feeds made of another feed, and often of what a network says of its rows: every kind by name, and a
recipe's section as one of them.

Shapes are known at start-up; the content is made at first use and kept in the workdir under a fingerprint
of all that it is made of. A kind is a function of (base feed, network or None) whose keywords are its
settings; it returns a `Derivation`. Add one: write that function in a file beside `outputs`, and a row
here. Called by resolve, which knows the shapes, and by readers, which make the content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdistill.data.feeds import MANY, Feed, Reader
from jaxdistill.evaluation.augmented import augmented
from jaxdistill.evaluation.derivation import Derivation
from jaxdistill.evaluation.outputs import outputs
from jaxdistill.evaluation.retrieved import retrieved
from jaxdistill.evaluation.teacher_file import teacher_outputs
from jaxdistill.evaluation.transfer_set import transfer_set
from jaxdistill.evaluation.words import words
from jaxdistill.models import Model
from jaxdistill.registry import Table
from jaxdistill.settings import settings_of

BY_NETWORK = ("outputs", "augmented", "words", "retrieved")  # kinds that a network makes
OF_FILES = ("retrieved",)  # those of them that are made of a file too
OF_TEXT = ("words",)  # kinds that are made of plain text, not of a task
DERIVED: Table[Callable[..., Derivation]] = Table(
    "derived feed",
    {
        "outputs": outputs,
        "teacher_outputs": teacher_outputs,
        "augmented": augmented,
        "transfer_set": transfer_set,
        "words": words,
        "retrieved": retrieved,
    },
)


@dataclasses.dataclass(frozen=True)
class Derived:
    """A derived feed of a recipe: `kind`, a name in `DERIVED`, `of` a feed and the network `by`, "" if
    none makes it; `settings` of its kind, by name."""

    kind: str
    of: str
    by: str
    settings: tuple[tuple[str, Any], ...] = ()

    def derivation(self, base: Feed, model: Model | None) -> Derivation:
        """What it adds to the rows of `base`."""
        return DERIVED[self.kind](base, model, **dict(self.settings))


def default_settings(kind: str) -> dict[str, Any]:
    """Every setting of a derived feed of `kind`, at its default."""
    return {name: s.default for name, s in settings_of(DERIVED.named(kind)).items()}


def outlined(name: str, derived: Derived, base: Feed, model: Model | None) -> Feed:
    """The feed as known before it is made: what its base is, with the arrays that are added."""

    def not_yet(_: Any) -> Reader:
        raise AssertionError(f"feed {name!r} is read through `reader`")

    found = derived.derivation(base, model)
    return dataclasses.replace(
        base,
        name=name,
        row={**base.row, **found.row},
        rows=base.rows if base.rows == MANY and base.head else found.rows(base.rows),
        read=not_yet,
    )

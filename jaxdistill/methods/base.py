"""Term, Stage, Method as plain data: what a published method is made of, and all that training
knows of it.

A *term* is a loss with a weight and a layer map. A *stage* is terms plus what moves, optimizer,
schedule, steps and depth. Everything is frozen and hashable; a stage is a static argument of the
compiled step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from jaxdistill.errors import BadInput
from jaxdistill.forward.progressive import progressive as one_layer
from jaxdistill.forward.scene import Forward
from jaxdistill.forward.side_by_side import side_by_side
from jaxdistill.models import Model
from jaxdistill.models.heads import PROJECTION
from jaxdistill.objectives.terms import BATCH, Term, heads_of, taps_of, teacher_depth

UNSTORED = ("attention_scores", "hidden_moments")  # taps that are too large, or of no use
DEPTHS = ("full", "progressive_soft", "progressive_strict")
OptimizerName = Literal["adamw", "lamb"]
DecayName = Literal["constant", "linear"]
OPTIMIZERS, DECAYS = get_args(OptimizerName), get_args(DecayName)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a kind knows beside its settings: the stage's name, how many layers and attention heads
    the network that moves has, the stage's length in steps, the losses of the task that it reads, () of
    text, the network that the stage names as its teacher, and whether the one that moves has a projection of
    its own."""

    stage: str
    num_layers: int
    steps: int
    losses: tuple[str, ...] = ()
    num_heads: int = 1
    teacher: str = "teacher"
    projects: bool = False

    @property
    def task_losses(self) -> tuple[str, ...]:
        """The losses of the task. Raises `BadInput` if the stage reads text."""
        if not self.losses:
            raise BadInput(
                f"stage {self.stage!r} learns a labelled task, and its feed is text, or a task that is only "
                f"measured; set config.stages.{self.stage}.feed to another task, a section of config.feeds"
            )
        return self.losses

    def checked_layer_map(self, layer_map: tuple[int, ...]) -> tuple[int, ...] | None:
        """`layer_map`, None for the empty one. Raises `BadInput` unless it names one teacher layer
        for each layer."""
        if layer_map and len(layer_map) != self.num_layers:
            raise BadInput(
                f"config.stages.{self.stage}.layer_map={tuple(layer_map)} names {len(layer_map)} teacher "
                f"layers for {self.num_layers} student layers; give one teacher layer for each student layer"
            )
        return tuple(layer_map) or None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a kind makes of a stage: its terms, what moves, how deep, and how its networks are composed
    in one forward pass; `Stage` explains each."""

    terms: tuple[Term, ...]
    moves: tuple[str, ...] = ("",)
    layers: tuple[int, int] | None = None
    depth: str = "full"
    active_multiplier: float = 3.0
    forward: Forward | None = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """LAMB or AdamW as BERT's and MobileBERT's code has them: decay and trust ratio spare biases
    and norms."""

    name: str = "lamb"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise BadInput(f"optimizer {self.name!r} is unknown; valid: {', '.join(OPTIMIZERS)}")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over a stage: linear warm-up, then constant or linear decay to `end_ratio` of
    the peak."""

    peak: float
    warmup_steps: int = 0
    decay: str = "linear"
    end_ratio: float = 1e-4

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise BadInput(f"schedule decay={self.decay!r} is unknown; valid: {', '.join(DECAYS)}")


@dataclasses.dataclass(frozen=True)
class Patience:
    """By which held-out number of `feed` the best state of a stage is kept and handed on, and when it
    ends early.

    `metric`: "loss", the sum of the stage's terms, or one of them, on the stage's own feed; or a number
    of a task's score. `every`: steps from one measurement to the next, 0: at each step-based
    checkpoint. `evaluations`: the stage ends once so many in a row are no better than the best before
    them; 0: it runs all steps. `start`: whether the state that the stage begins with may be the best one.
    `higher`: whether more of it is better."""

    feed: str
    metric: str
    every: int = 0
    evaluations: int = 0
    start: bool = False
    higher: bool = False

    def cost(self, value: float | None) -> float:
        """`value` as a number of which less is better; None, for what was not finite, is the worst."""
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if self.higher else value

    def worn_out(self, values: Sequence[float | None]) -> bool:
        """Whether the last `evaluations` of all `values` so far are no better than the best before."""
        costs, last = [self.cost(value) for value in values], self.evaluations
        return 0 < last < len(costs) and min(costs[-last:]) >= min(costs[:-last])


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the loop over one network, on the rows of one feed.

    `moves`: regular expressions matched at the start of a parameter's name ("layers/",
    "embeddings/word"); what none matches is frozen, and absent from gradients and optimizer. `layers`:
    of the stack only those from the first number up to, not including, the second; None: all.
    `rows`: of the feed only those, of all in an order that the seed draws; None: all.
    `depth`: "full", or progressive: layer i is active in steps [i P, (i + 1) P) with P = steps //
    N, learning at `active_multiplier`; the layers below learn at a tenth of that
    ("progressive_soft", as published) or not at all ("progressive_strict"), and moments restart at
    each phase. `fused`: losses with their gradient taken in the forward pass; False: the plain
    ones, for comparison. `skip_above`: how many standard deviations above the mean of recent losses
    a loss is a spike, whose update is skipped; 0: none is. `until`: by which held-out number the best
    state is handed on, and the stage ends early, `steps` at the latest; None: it hands on the last.
    `forward`: how its networks are composed; left out, side by side, or one layer of a progressive
    stage."""

    name: str
    network: str
    steps: int
    terms: tuple[Term, ...]
    optimizer: Optimizer
    schedule: Schedule
    batch_size: int
    feed: str = "text"
    accumulation: int = 1
    moves: tuple[str, ...] = ("",)
    layers: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None
    depth: str = "full"
    active_multiplier: float = 3.0
    dropout: bool = False
    tf1_unmasked: bool = False
    fused: bool = True
    skip_above: float = 0.0
    until: Patience | None = None
    forward: Forward | None = None

    def __post_init__(self) -> None:
        if self.forward is None:
            object.__setattr__(self, "forward", one_layer if self.progressive else side_by_side)
        if self.depth not in DEPTHS:
            raise BadInput(
                f"stage {self.name!r}: depth={self.depth!r} is unknown; valid: {', '.join(DEPTHS)}"
            )
        if self.steps < 1:
            raise BadInput(f"stage {self.name!r}: steps={self.steps}; expected at least 1")
        if not self.terms:
            raise BadInput(
                f"stage {self.name!r} has no loss with a weight above 0; give one of its terms a weight"
            )
        names = [term.name for term in self.terms]
        for name in names:
            if names.count(name) > 1 or name == "loss":
                which = "a term" if name == "loss" else "two terms"
                raise BadInput(
                    f"stage {self.name!r} has {which} named {name!r}, and sums are kept by name ('loss' is that of all "
                    "terms); give it a name of its own"
                )
        read = {(term.row.student, term.head) for term in self.terms if term.head}
        for output, head in sorted(read):
            if any(output == other and head != whose for other, whose in read):
                raise BadInput(
                    f"stage {self.name!r} reads {output!r} of two heads, of which a batch has one; "
                    "train them in stages of their own"
                )
        for term in self.terms:
            if term.stored and (term.head == "mlm" or term.row.teacher in UNSTORED):
                raise BadInput(
                    f"stage {self.name!r}: the loss {term.loss!r} cannot be learned from stored outputs, which are "
                    "those of a task's head, embeddings, hidden states, queries, keys and values; name a network by "
                    f"config.stages.{self.name}.teacher"
                )
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise BadInput(
                f"stage {self.name!r}: batch_size={self.batch_size} is not divisible by accumulation="
                f"{self.accumulation}; change config.stages.{self.name}.batch_size or .accumulation"
            )
        if self.progressive and self.layers:
            raise BadInput(
                f"config.stages.{self.name}.layers={self.layers}: a progressive stage moves one layer after the "
                "other by itself; set it to ()"
            )
        if self.progressive and self.dropout:
            raise BadInput(
                f"config.stages.{self.name}.dropout=True: progressive transfer runs without dropout, as "
                "published; set it to False"
            )
        if self.progressive and self.until:
            raise BadInput(
                f"config.stages.{self.name}.best={self.until.metric!r}: losses of different layers do not compare, so a "
                "progressive stage has no best state; set it to ''"
            )
        if self.progressive and any(term.stored for term in self.terms):
            raise BadInput(
                f"stage {self.name!r} is progressive, and walks a teacher beside the student; name a network by "
                f"config.stages.{self.name}.teacher"
            )
        if self.progressive and any(not term.per_layer for term in self.terms):
            raise BadInput(
                f"stage {self.name!r} is progressive, so every loss must be of one layer"
            )
        if (
            self.progressive
            and len({(t.teacher, t.layer_map, t.traced_map) for t in self.terms}) > 1
        ):
            raise BadInput(f"stage {self.name!r} is progressive, so its losses have one layer map")
        if self.progressive and self.projections:
            raise BadInput(
                f"stage {self.name!r} is progressive, so its losses have no learned projection; give the student "
                "the teacher's width"
            )

    @property
    def progressive(self) -> bool:
        return self.depth != "full"

    @property
    def projections(self) -> tuple[str, ...]:
        """The learned projections of its terms, in a fixed order."""
        return tuple(sorted({term.projection for term in self.terms} - {""}))

    @property
    def feeds(self) -> tuple[str, ...]:
        """The feeds it reads: what it learns, and what it is measured on while it goes on."""
        return tuple(dict.fromkeys((self.feed, *((self.until.feed,) if self.until else ()))))

    @property
    def measured(self) -> tuple[str, ...]:
        """The held-out losses of its own feed."""
        return ("loss", *(term.name for term in self.terms))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The networks its terms read beside the one that learns, in a fixed order."""
        read = {t.teacher for t in self.terms if t.row.teacher is not None}
        return tuple(sorted(read - {BATCH}))

    @property
    def needs_teacher(self) -> bool:
        return bool(self.teachers)

    @property
    def traced_maps(self) -> tuple[str, ...]:
        """The layer maps of its terms that are data of the step, in a fixed order."""
        return tuple(sorted({term.traced_map for term in self.terms} - {""}))

    def taps(self, network: str | None = None) -> tuple[str, ...]:
        """The taps its terms read of the network that learns (None), or of another by its name."""
        return taps_of(self.terms, network)

    def heads(self, network: str | None = None) -> tuple[str, ...]:
        """The heads its terms read of the network that learns (None), or of another by its name."""
        return heads_of(self.terms, network)

    def teacher_depth(self, num_layers: int, network: str = "teacher") -> int | None:
        """How many layers of a teacher its terms read, for a student of `num_layers`; None: all,
        and heads on them."""
        return teacher_depth(self.terms, network, num_layers)


@dataclasses.dataclass(frozen=True)
class Cast:
    """A stage and the networks that play in it: `model`, which learns, and `others`, which are only
    read, by name and in that order. Hashable, so that programs are kept by it."""

    stage: Stage
    model: Model
    others: tuple[tuple[str, Model], ...] = ()

    @property
    def projected_widths(self) -> dict[str, int]:
        """The width that each learned projection takes the student's states to."""
        terms = [term for term in self.stage.terms if term.projection]
        return {term.projection: self._width(term) for term in terms}

    @property
    def fresh_projections(self) -> dict[str, int]:
        """The widths of those that begin and end with the stage: the network's own does not."""
        return {name: w for name, w in self.projected_widths.items() if name != PROJECTION}

    def _width(self, term: Term) -> int:
        return term.width or dict(self.others)[term.teacher].config.hidden_size

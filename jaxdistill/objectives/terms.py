"""Every loss by name: what it reads of the student and of the teacher, its sum, and what it is
divided by.

A loss is a sum on taps over a count that comes from the masks alone. The count is taken over the
whole global batch before any forward pass, so the scale of a term is weight / count and neither
gradient accumulation nor the number of devices changes a result. Add a loss: write its sum in
`logits`, `hidden` or `relations`, and one row here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput, listed
from jaxdistill.models import Batch
from jaxdistill.models.block import BLOCK_TAPS
from jaxdistill.models.encoder import attention_mask
from jaxdistill.objectives import hidden, logits, relations
from jaxdistill.objectives.distances import DISTANCES, dist, top_k
from jaxdistill.objectives.needs import (
    Need,
    equal_heads,
    equal_labels,
    equal_vocabularies,
    equal_widths,
    equal_widths_or_projection,
    heads_divide,
    whole_batch,
)
from jaxdistill.objectives.ramps import Number, at
from jaxdistill.registry import Table


@dataclasses.dataclass(frozen=True)
class Loss:
    """One loss: `sum(student, teacher, batch, **options)` over `count(batch)`.

    `student` and `teacher` name a tap (then the loss is of one layer, or of the embeddings) or, with
    `head`, an output of that head; `teacher` None: no teacher is needed. `options`: what else the
    sum must be told, by each term. `needs`: what must hold of the two networks. `batch`: which arrays
    of the batch it reads beside the text itself, which every feed has. `relation`: the sum
    is a mean over relation heads, an option `heads`, and may be taken some heads at a time.
    `everywhere`: of the vocabulary, at all real tokens and not at the masked words alone. `off`: the
    setting that leaves it out, if that is not its own weight, for messages."""

    sum: Callable[..., jax.Array]
    count: Callable[[Batch], jax.Array]
    student: str
    teacher: str | None = None
    head: str = ""
    needs: tuple[Need, ...] = ()
    options: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    relation: bool = False
    everywhere: bool = False
    off: str = ""


BATCH = "batch"  # a term's teacher whose outputs are not computed, but stored in the batch
STORED = "stored_"  # how those are called there, before the name of the output


@dataclasses.dataclass(frozen=True)
class Term:
    """`weight` x `loss`, a name in `LOSSES`, between a tap or output of the network that learns and
    that of another network, `teacher`, which is a name ("batch": what is stored of one in the batch).

    `layer_map[i]` is the teacher layer that student layer i follows, -1 if none (None: i follows
    i); for a loss of the student's embeddings and a teacher's layer, that one alone. `traced_map`: the
    name of a layer map that is data of the step, in place of `layer_map`: one program serves all maps.
    `options`: pairs (name, value), what the loss's sum must be told. The weight and options that are
    numbers may be ramps. `projection`: the name of a learned linear map from the student's width to the
    teacher's; terms that give one name share it. `width`: the teacher's, where its states are stored.
    `name`: what the term's numbers are called, unique in a stage; left out, the loss's name.

    Raises `BadInput` for an unknown loss, and for options that are not the loss's."""

    loss: str
    weight: Number
    layer_map: tuple[int, ...] | None = None
    traced_map: str = ""
    teacher: str = "teacher"
    options: tuple[tuple[str, Any], ...] = ()
    projection: str = ""
    width: int = 0
    name: str = ""
    row: Loss = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Part of the term, so that a program is never that of an earlier loss of this name.
        object.__setattr__(self, "row", LOSSES.named(self.loss))
        object.__setattr__(self, "name", self.name or self.loss)
        given, wanted = [name for name, _ in self.options], self.row.options
        if sorted(given) != sorted(wanted):
            raise BadInput(
                f"term {self.name!r}: the loss {self.loss!r} has the options {listed(wanted)}, given: "
                f"{listed(given)}"
            )

    def at(self, step: jax.Array | None) -> Term:
        """The term as it is at `step`, int32[] (None: at the end of its stage), its weight and options
        numbers."""
        options = tuple((name, at(value, step)) for name, value in self.options)
        return dataclasses.replace(self, weight=at(self.weight, step), options=options)

    def sum(self, student: jax.Array, teacher: jax.Array | None, batch: Batch) -> jax.Array:
        """The raw sum, before weight and count."""
        return self.row.sum(student, teacher, batch, **dict(self.options))

    @property
    def stored(self) -> str:
        """The array of the batch that holds what it compares with; "" if a network gives it."""
        return f"{STORED}{self.row.teacher}" if self.row.teacher and self.teacher == BATCH else ""

    def count(self, batch: Batch) -> jax.Array:
        """What its sum is divided by."""
        return self.row.count(batch)

    @property
    def head(self) -> str:
        return self.row.head

    @property
    def per_layer(self) -> bool:
        return not self.head and self.row.student in BLOCK_TAPS

    @property
    def of_embeddings(self) -> bool:
        return not self.head and self.row.student == "embeddings"

    @property
    def follows_layer(self) -> int | None:
        """Of a term between the student's embeddings and a layer of the teacher: which one."""
        if self.of_embeddings and self.row.teacher in BLOCK_TAPS and self.layer_map:
            return self.layer_map[0]
        return None

    @property
    def reads(self) -> str:
        """The student's tap or output by name, as it is after the projection."""
        read = self.row.student
        return f"{self.projection}({read})" if self.projection else read


def taps_of(terms: Sequence[Term], network: str | None = None) -> tuple[str, ...]:
    """The taps that `terms` read of the network that learns (None) or of another by its name, in a
    fixed order."""
    return tuple(sorted({name for name, head in _read(terms, network) if not head}))


def heads_of(terms: Sequence[Term], network: str | None = None) -> tuple[str, ...]:
    """The heads that `terms` read of it, in a fixed order."""
    return tuple(sorted({head for _, head in _read(terms, network) if head}))


def _read(terms: Sequence[Term], network: str | None) -> set[tuple[str, str]]:
    if network is None:
        return {(term.row.student, term.head) for term in terms}
    return {(t.row.teacher, t.head) for t in terms if t.row.teacher and t.teacher == network}


def teacher_depth(terms: Sequence[Term], network: str, num_layers: int) -> int | None:
    """How many layers of the network `network` the terms read, for a student of `num_layers`; None:
    all, and heads on them."""
    layered = [
        term
        for term in terms
        if (term.per_layer or term.follows_layer is not None) and term.teacher == network
    ]
    if heads_of(terms, network) or any(
        term.traced_map or term.row.teacher == "hidden_moments" for term in layered
    ):
        return None
    maps = [term.layer_map for term in layered]
    return max((max(at) + 1 if at else num_layers for at in maps), default=0)


def masked_words(batch: Batch) -> jax.Array:
    """How many words the MLM losses are over."""
    return jnp.sum(batch["mlm_weights"])


def real_tokens(batch: Batch) -> jax.Array:
    """How many tokens are not padding."""
    return jnp.sum(attention_mask(batch)).astype(jnp.float32)


def token_pairs(batch: Batch) -> jax.Array:
    """How many pairs of a query and a key there are, both real and of one text."""
    return jnp.sum(relations.real_pairs(batch)).astype(jnp.float32)


def examples(batch: Batch) -> jax.Array:
    """How many rows are real (or, of a packed batch, segments)."""
    return jnp.sum(batch["example_weights"])


def tagged_words(batch: Batch) -> jax.Array:
    """How many words a tag is asked of."""
    return jnp.sum(batch["tag_weights"])


def labelled_examples(batch: Batch) -> jax.Array:
    """How many rows have a true answer to learn."""
    return jnp.sum(logits.labelled(batch, batch["example_weights"]))


def labelled_words(batch: Batch) -> jax.Array:
    """How many words have a true tag to learn."""
    return jnp.sum(logits.labelled_tokens(batch))


WIDTHS = (equal_widths,)
WIDTHS_OR_PROJECTION = (equal_widths_or_projection,)
HEADS = (equal_heads,)
WORDS = (equal_vocabularies,)
CLASSES = (equal_labels,)
TAGS = ("tags", "tag_weights")
MASKED = ("mlm_positions", "mlm_labels", "mlm_weights")


def _compared(task: str, loss: Loss, without: Sequence[Any] = ()) -> dict[str, Loss]:
    """`loss` by every distance that is not among those to be left out, under "TASK_DISTANCE"."""
    return {
        f"{task}_{name}": dataclasses.replace(
            loss,
            sum=functools.partial(loss.sum, distance=distance),
            teacher=loss.student,
            needs=(*loss.needs, *((whole_batch,) if distance is dist else ())),
            options=("temperature", "k") if distance is top_k else ("temperature",),
        )
        for name, distance in DISTANCES.items()
        if distance not in without
    }


def _span(end: str) -> dict[str, Loss]:
    """The losses of one end of an answer, "start" or "end"."""
    positions, output = f"{end}_positions", f"{end}_logits"
    head = "question_answering"
    answer = functools.partial(logits.span_border, positions=positions)
    compared = Loss(logits.distance_of_borders, examples, output, head=head, off="hard_labels=1")
    return {
        f"span_{end}": Loss(answer, labelled_examples, output, head=head, batch=(positions,)),
        # Places are no classes: the same place of two texts has nothing to do with each other.
        **_compared(f"span_{end}", compared, without=(dist,)),
    }


def _relation(tap: str) -> Loss:
    return Loss(
        relations.relation,
        real_tokens,
        tap,
        tap,
        needs=(heads_divide,),
        options=("heads",),
        relation=True,
    )


_WORDS = Loss(
    functools.partial(logits.distance_from, weights="mlm_weights"),
    masked_words,
    "mlm_logits",
    head="mlm",
    needs=WORDS,
    batch=MASKED,
    off="soft_words=0",
)
LOSSES = Table(
    "loss",
    {
        "mlm": Loss(logits.mlm, masked_words, "mlm_logits", head="mlm", batch=MASKED),
        "mlm_distillation": Loss(
            logits.mlm_distillation,
            masked_words,
            "mlm_logits",
            "mlm_logits",
            head="mlm",
            needs=WORDS,
            batch=MASKED,
            off="alpha=1",
        ),
        "mlm_stored": Loss(
            logits.stored_words,
            masked_words,
            "mlm_logits",
            head="mlm",
            batch=(*MASKED, f"{STORED}words", f"{STORED}log_probabilities", f"{STORED}temperature"),
        ),
        # Evaluated some words at a time, which `dist` cannot be.
        **_compared("mlm", _WORDS, without=(dist,)),
        **_compared(
            "token",
            dataclasses.replace(
                _WORDS,
                sum=functools.partial(logits.distance_from, weights="attention_mask"),
                count=real_tokens,
                student="token_logits",
                batch=(),
                everywhere=True,
            ),
            without=(dist,),
        ),
        "nsp": Loss(logits.nsp, examples, "nsp_logits", head="nsp", batch=("nsp_labels",)),
        "classification": Loss(
            logits.classification,
            labelled_examples,
            "logits",
            head="sequence_classification",
            batch=("labels",),
        ),
        **_compared(
            "classification",
            Loss(
                functools.partial(logits.distance_from, weights="example_weights"),
                examples,
                "logits",
                head="sequence_classification",
                needs=CLASSES,
                off="hard_labels=1",
            ),
        ),
        "regression": Loss(
            logits.regression,
            labelled_examples,
            "logits",
            head="sequence_classification",
            batch=("labels",),
        ),
        "regression_distillation": Loss(
            logits.regression_distillation,
            examples,
            "logits",
            "logits",
            head="sequence_classification",
            needs=CLASSES,
            off="hard_labels=1",
        ),
        "tagging": Loss(
            logits.tagging, labelled_words, "logits", head="token_classification", batch=TAGS
        ),
        **_compared(
            "tagging",
            Loss(
                functools.partial(logits.distance_from, weights="tag_weights"),
                tagged_words,
                "logits",
                head="token_classification",
                needs=CLASSES,
                batch=("tag_weights",),
                off="hard_labels=1",
            ),
        ),
        **_span("start"),
        **_span("end"),
        "feature_map": Loss(hidden.feature_map, real_tokens, "hidden", "hidden", needs=WIDTHS),
        "mean": Loss(hidden.mean, real_tokens, "hidden", "hidden", needs=WIDTHS),
        "variance": Loss(hidden.variance, real_tokens, "hidden", "hidden", needs=WIDTHS),
        "mean_tf1": Loss(hidden.mean_tf1, real_tokens, "hidden", "hidden_moments", needs=WIDTHS),
        "variance_tf1": Loss(
            hidden.variance_tf1, real_tokens, "hidden", "hidden_moments", needs=WIDTHS
        ),
        "hidden_mse": Loss(
            hidden.squared_error, real_tokens, "hidden", "hidden", needs=WIDTHS_OR_PROJECTION
        ),
        "embedding_mse": Loss(
            hidden.squared_error,
            real_tokens,
            "embeddings",
            "embeddings",
            needs=WIDTHS_OR_PROJECTION,
        ),
        "embedding_hidden_mse": Loss(  # of one layer: the term's layer map names it
            hidden.squared_error, real_tokens, "embeddings", "hidden", needs=WIDTHS_OR_PROJECTION
        ),
        "hidden_cosine": Loss(
            hidden.cosine, real_tokens, "hidden", "hidden", needs=WIDTHS_OR_PROJECTION
        ),
        "first_token_mse": Loss(
            hidden.first_token_mse,
            examples,
            "hidden",
            "hidden",
            needs=WIDTHS_OR_PROJECTION,
            options=("normalize",),
        ),
        "attention_mse": Loss(
            relations.attention_mse,
            token_pairs,
            "attention_scores",
            "attention_scores",
            needs=HEADS,
        ),
        "attention_probability_mse": Loss(
            relations.attention_probability_mse,
            token_pairs,
            "attention_scores",
            "attention_scores",
            needs=HEADS,
        ),
        "attention": Loss(
            relations.attention, real_tokens, "attention_scores", "attention_scores", needs=HEADS
        ),
        "query_relation": _relation("query"),
        "key_relation": _relation("key"),
        "value_relation": _relation("value"),
        "attention_kl": Loss(
            relations.attention_kl, real_tokens, "attention_scores", "attention_scores", needs=HEADS
        ),
    },
)


def register(name: str, loss: Loss) -> None:
    """Adds a loss of one's own. Raises `BadInput` if the name is taken."""
    LOSSES.register(name, loss)


def count_everything(batch: Batch) -> dict[str, Any]:
    """The batch as the released TF1 code counts it: every position is real, pads too
    (`tf1_unmasked`)."""
    ones = jnp.ones(batch["input_ids"].shape, jnp.int32)
    return {**batch, "attention_mask": ones}

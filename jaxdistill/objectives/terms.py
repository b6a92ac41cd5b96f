"""Every loss by name: what it reads of the student and of the teacher, its sum, and what it is
divided by.

A loss is a sum on taps over a count that comes from the masks alone. The count is taken over the
whole global batch before any forward pass, so the scale of a term is weight / count and neither
gradient accumulation nor the number of devices changes a result. Add a loss: write its sum in
`logits`, `hidden` or `relations`, and one row here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput, nearest
from jaxdistill.models import Batch
from jaxdistill.models.block import BLOCK_TAPS
from jaxdistill.models.encoder import attention_mask
from jaxdistill.objectives import hidden, logits, relations


@dataclasses.dataclass(frozen=True)
class Loss:
    """`student` and `teacher` name a tap (then the loss is of one layer) or an output; None: no
    teacher is needed.

    `relation`: the sum takes `heads` too, a term's `relation_heads`. `projection`: a term's; what
    is read of the student goes through it first."""

    sum: Callable[..., jax.Array]
    count: Callable[[Batch], jax.Array]
    student: str
    teacher: str | None = None
    relation: bool = False
    projection: str = ""

    @property
    def per_layer(self) -> bool:
        return self.student in BLOCK_TAPS

    @property
    def reads(self) -> str:
        """The student's tap or output by name, as it is after the projection."""
        return f"{self.projection}({self.student})" if self.projection else self.student

    @property
    def of_embeddings(self) -> bool:
        return self.student == "embeddings"


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


LOSSES: dict[str, Loss] = {
    "mlm": Loss(logits.mlm, masked_words, "mlm_logits"),
    "mlm_distillation": Loss(logits.mlm_distillation, masked_words, "mlm_logits", "mlm_logits"),
    "nsp": Loss(logits.nsp, examples, "nsp_logits"),
    "classification": Loss(logits.classification, examples, "logits"),
    "regression": Loss(logits.regression, examples, "logits"),
    "feature_map": Loss(hidden.feature_map, real_tokens, "hidden", "hidden"),
    "mean": Loss(hidden.mean, real_tokens, "hidden", "hidden"),
    "variance": Loss(hidden.variance, real_tokens, "hidden", "hidden"),
    "mean_tf1": Loss(hidden.mean_tf1, real_tokens, "hidden", "hidden_moments"),
    "variance_tf1": Loss(hidden.variance_tf1, real_tokens, "hidden", "hidden_moments"),
    "hidden_mse": Loss(hidden.squared_error, real_tokens, "hidden", "hidden"),
    "embedding_mse": Loss(hidden.squared_error, real_tokens, "embeddings", "embeddings"),
    "attention_mse": Loss(
        relations.attention_mse, token_pairs, "attention_scores", "attention_scores"
    ),
    "attention": Loss(relations.attention, real_tokens, "attention_scores", "attention_scores"),
    "query_relation": Loss(relations.relation, real_tokens, "query", "query", relation=True),
    "key_relation": Loss(relations.relation, real_tokens, "key", "key", relation=True),
    "value_relation": Loss(relations.relation, real_tokens, "value", "value", relation=True),
    "attention_kl": Loss(
        relations.attention_kl, real_tokens, "attention_scores", "attention_scores"
    ),
}

# Which head gives which output.
HEAD_OF_OUTPUT = {"mlm_logits": "mlm", "nsp_logits": "nsp", "logits": "sequence_classification"}


def loss_named(name: str) -> Loss:
    """The loss `name`; raises `BadInput` with the nearest name if there is none."""
    if name not in LOSSES:
        raise BadInput(f"loss {name!r} is unknown; {nearest(name, LOSSES)}")
    return LOSSES[name]


def count_everything(batch: Batch) -> dict[str, Any]:
    """The batch as the released TF1 code counts it: every position is real, pads too
    (`tf1_unmasked`)."""
    ones = jnp.ones(batch["input_ids"].shape, jnp.int32)
    return {**batch, "attention_mask": ones}

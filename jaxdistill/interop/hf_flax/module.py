"""The one Linen module behind every Flax class of `models`: transformers' tree and outputs outside,
our network inside.

It declares the per-layer tree, and its call stacks the layers inside `jit` and runs `Model.apply`.
Imports transformers."""

from __future__ import annotations

import functools
from typing import Any

import flax
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from transformers import modeling_flax_outputs as outputs_lib
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import ModelOutput

from jaxdistill.errors import BadInput
from jaxdistill.interop import configs
from jaxdistill.interop.hf_flax import inputs
from jaxdistill.interop.hf_flax import tree as tree_lib
from jaxdistill.models import Arrays, Batch, Model, ModelConfig, Params


@flax.struct.dataclass
class FlaxForPreTrainingOutput(ModelOutput):
    """`prediction_logits` float32[B, L, V], `seq_relationship_logits` float32[B, 2], hidden states
    and attentions."""

    prediction_logits: jax.Array | None = None
    seq_relationship_logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


# By what follows "FlaxMobileBert": our heads, whether the class has a pooler, its output class,
# {its field: our output}.
KINDS: dict[str, tuple[tuple[str, ...], bool, Any, dict[str, str]]] = {
    "Model": (
        (),
        True,
        outputs_lib.FlaxBaseModelOutputWithPooling,
        {"last_hidden_state": "last_hidden_state", "pooler_output": "pooler_output"},
    ),
    "ForPreTraining": (
        ("mlm", "nsp"),
        True,
        FlaxForPreTrainingOutput,
        {"prediction_logits": "mlm_logits", "seq_relationship_logits": "nsp_logits"},
    ),
    "ForMaskedLM": (("mlm",), False, outputs_lib.FlaxMaskedLMOutput, {"logits": "mlm_logits"}),
    "ForNextSentencePrediction": (
        ("nsp",),
        True,
        outputs_lib.FlaxNextSentencePredictorOutput,
        {"logits": "nsp_logits"},
    ),
    "ForSequenceClassification": (
        ("sequence_classification",),
        True,
        outputs_lib.FlaxSequenceClassifierOutput,
        {"logits": "logits"},
    ),
    "ForTokenClassification": (
        ("token_classification",),
        False,
        outputs_lib.FlaxTokenClassifierOutput,
        {"logits": "logits"},
    ),
    "ForQuestionAnswering": (
        ("question_answering",),
        False,
        outputs_lib.FlaxQuestionAnsweringModelOutput,
        {"start_logits": "start_logits", "end_logits": "end_logits"},
    ),
    # The choices of a row are rows of the batch on the way.
    "ForMultipleChoice": (
        ("multiple_choice",),
        True,
        outputs_lib.FlaxMultipleChoiceModelOutput,
        {"logits": "logits"},
    ),
}


class EncoderModule(nn.Module):
    """A class of transformers as a Linen module. `kind`: a key of `KINDS`; `dtype`: of matrix
    products (float32 or bfloat16); `gradient_checkpointing`: the backward pass keeps nothing of a
    block but its input; `add_pooling_layer`: False for a base model without."""

    config: PretrainedConfig
    kind: str = "Model"
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False
    add_pooling_layer: bool = True

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """int[B, L] four times ([B, C, L] for multiple choice), `head_mask` [A] or [N, A] -> the
        output class of `kind`, everything float32, or its fields as a tuple. Raises `BadInput` for
        inputs that `inputs.check` refuses, for rows longer than the position table, and for
        parameters that are not this model's."""
        model = as_model(
            self.config, self.kind, self.dtype, self.gradient_checkpointing, self.add_pooling_layer
        )
        prefix = self.prefix
        if self.is_initializing():
            for name, subtree in fresh(model, prefix, self.config, self.make_rng("params")).items():
                self.param(name, lambda _, subtree=subtree: subtree)
        tree = self.variables["params"]
        tree_lib.check(model.config, tree, prefix)
        batch = inputs.check(
            model.config,
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
            },
            ("batch", "choices", "length")
            if self.kind == "ForMultipleChoice"
            else ("batch", "length"),
        )
        choices = batch["input_ids"].shape[-2]
        batch = {name: value.reshape(-1, value.shape[-1]) for name, value in batch.items()}
        drops = (
            not deterministic
            and max(
                model.config.hidden_dropout,
                model.config.attention_dropout,
                model.config.classifier_dropout,
            )
            > 0
        )
        if drops and not self.has_rng("dropout"):
            raise BadInput(
                "train=True turns dropout on, which needs a key: pass dropout_rng=KEY, another in every step "
                "(jax.random.split)"
            )
        key = self.make_rng("dropout") if drops else None
        found, hidden, attentions = _forward(
            model, prefix, output_hidden_states, output_attentions, tree, batch, head_mask, key
        )
        _, _, output_class, fields = KINDS[self.kind]
        values = {theirs: found[ours] for theirs, ours in fields.items() if ours in found}
        if self.kind == "ForMultipleChoice":
            values["logits"] = values["logits"].reshape(-1, choices)
        output = output_class(**values, hidden_states=hidden, attentions=attentions)
        return output if return_dict else output.to_tuple()

    @property
    def prefix(self) -> str | None:
        """What stands before the base model's names: nothing in the base model itself."""
        return None if self.kind == "Model" else self.config.model_type


def as_model(
    config: PretrainedConfig,
    kind: str,
    dtype: Any,
    gradient_checkpointing: bool = False,
    add_pooling_layer: bool = True,
) -> Model:
    """Our network for a class of transformers. Raises `BadInput` for what that class or our network
    cannot be."""
    values, where = config.to_dict(), f"this {type(config).__name__}"
    heads, pools, _, _ = KINDS[kind]
    found = configs.from_huggingface(values, where)
    if jnp.dtype(dtype).name not in ("float32", "bfloat16"):
        raise BadInput(
            f"dtype is {jnp.dtype(dtype).name}; expected float32 or bfloat16. MobileBERT's hidden states reach "
            "2.5e7, which float16 cannot hold: use jnp.bfloat16"
        )
    if "mlm" in heads and values.get("tie_word_embeddings", True) is False:
        raise BadInput(
            f"{where} has tie_word_embeddings=False; here the output table is the word table. Tie them"
        )
    if kind == "ForQuestionAnswering" and config.num_labels != 2:
        raise BadInput(
            f"{where} has {config.num_labels} labels; question answering has two outputs, start and end. "
            "Pass num_labels=2 to from_pretrained"
        )
    dropout = values.get("classifier_dropout")
    pooler = found.pooler if pools and (add_pooling_layer or heads) else "none"
    found = found.replace(
        heads=heads,
        pooler=pooler,
        dtype=jnp.dtype(dtype).name,
        num_labels=config.num_labels,
        classifier_dropout=found.hidden_dropout if dropout is None else dropout,
    )
    return Model(found, remat="full" if gradient_checkpointing else "dots")


def fresh(
    model: Model, prefix: str | None, config: PretrainedConfig, key: jax.Array
) -> dict[str, Any]:
    """The tree of a new network: our own start, and zeros for what PyTorch's class owns unread."""
    params = _init(model, key)
    if not isinstance(params["embeddings"]["word"], jax.core.Tracer):
        params = jax.device_get(params)  # a thousand slices, none of which has to be compiled
    flat = jax.tree.map(jnp.asarray, tree_lib.to_tree(model.config, params, prefix))
    if config.model_type == "mobilebert":
        shared = (
            config.use_bottleneck
            and config.use_bottleneck_attention
            and config.key_query_shared_bottleneck
        )
        flat |= {
            path: jnp.zeros(shape)
            for path, shape in tree_lib.unread(model.config, prefix, shared).items()
        }
    return flax.traverse_util.unflatten_dict(flat)


_init = jax.jit(Model.init, static_argnums=0)


@functools.partial(
    jax.jit, static_argnums=(0, 1, 2, 3)
)  # also when the user calls the model outside of any jit
def _forward(
    model: Model,
    prefix: str | None,
    output_hidden_states: bool,
    output_attentions: bool,
    tree: Params,
    batch: Batch,
    head_mask: jax.Array | None,
    key: jax.Array | None,
) -> tuple[Arrays, tuple[jax.Array, ...] | None, tuple[jax.Array, ...] | None]:
    """(outputs, N + 1 hidden states [B, L, D], N attention maps [B, A, L, L] after the softmax,
    before dropout)."""
    taps = (("embeddings", "hidden") if output_hidden_states else ()) + (
        ("attention_scores",) if output_attentions else ()
    )
    params = tree_lib.from_tree(model.config, tree, prefix)
    if head_mask is not None:
        head_mask = _mask_of_layers(model.config, head_mask)
        # A head enters through its rows of the output projection alone: without them it is masked.
        out = params["layers"]["attention"]["out"]
        out["kernel"] = out["kernel"] * head_mask[:, :, None, None]
    outputs, found = model.apply(params, batch, taps=taps, dropout_key=key)
    hidden = attentions = None
    if output_hidden_states:
        hidden = (found["embeddings"], *found["hidden"])
    if output_attentions:
        maps = jax.nn.softmax(found["attention_scores"], axis=-1)
        attentions = tuple(maps if head_mask is None else maps * head_mask[:, None, :, None, None])
    return outputs, hidden, attentions


def _mask_of_layers(config: ModelConfig, head_mask: jax.Array) -> jax.Array:
    """float32[N, A] of a mask [A] or [N, A]."""
    wanted = (config.num_layers, config.num_heads)
    mask = jnp.asarray(head_mask, jnp.float32)
    if mask.shape not in (wanted, wanted[1:]):
        raise BadInput(
            f"head_mask has shape {list(mask.shape)}; expected {list(wanted)}, or [{wanted[1]}] for all layers"
        )
    return jnp.broadcast_to(mask, wanted)

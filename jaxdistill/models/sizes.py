"""How big a network is, without building it: parameters by part, FLOPs by part, shapes of its taps.

FLOPs are counted as in the MobileBERT paper's tables: two for each multiply-accumulate, every
matrix product of the forward pass including queries x keys, weights x values and the trigram
projection, nothing element-wise, pads counted as tokens. Called by `describe` and by
training/speed.py (MFU)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput, nearest
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.encoder import TAPS, Model, Params
from jaxdistill.models.heads import HEADS, PROJECTION, Head, projects
from jaxdistill.models.parameters import count

# A training step costs its forward pass three times: backward multiplies each kernel twice (inputs,
# weights).
TRAINING_FLOPS_PER_FORWARD_FLOP = 3


def parameter_shapes(config: ModelConfig) -> Params:
    """The tree of `Model(config).init` as `ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: leaf, _traced(config))  # a tree of its own for every caller


@functools.lru_cache(maxsize=16)  # start-up asks for each stage, and tracing takes a second
def _traced(config: ModelConfig) -> Params:
    return jax.eval_shape(Model(config).init, jax.random.key(0))


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many parameters each part has.

    `word_table` and `other_embeddings`; `block/...` the parts of ONE block and `block` their sum;
    `blocks` all of them; `pooler`; `head/<name>` for each head of the config (what the head adds: a
    tied word table is not counted twice); `encoder` = embeddings + blocks + pooler; `projection`, if the
    config has one; `total` = encoder + heads + projection."""
    shapes = parameter_shapes(config)
    parts = {"word_table": count(shapes["embeddings"]["word"])}
    parts["other_embeddings"] = count(shapes["embeddings"]) - parts["word_table"]
    inside: dict[str, int] = {}
    for name, tree in shapes["layers"].items():
        part = {"bottleneck_out_norm": "bottleneck_out"}.get(
            name, "ffn" if name.startswith("ffn_") else name
        )
        inside[part] = inside.get(part, 0) + count(tree) // config.num_layers
    order = ("bottleneck_in", "bottleneck_qk", "attention", "ffn", "bottleneck_out")
    parts |= {f"block/{part}": inside[part] for part in order if part in inside}
    parts["block"] = sum(inside.values())
    parts["blocks"] = parts["block"] * config.num_layers
    parts["pooler"] = count(shapes.get("pooler", {}))
    parts |= {f"head/{head}": count(shapes.get(head, {})) for head in config.heads}
    parts["encoder"] = (
        parts["word_table"] + parts["other_embeddings"] + parts["blocks"] + parts["pooler"]
    )
    if PROJECTION in shapes:
        parts[PROJECTION] = count(shapes[PROJECTION])
    parts["total"] = count(shapes)
    return parts


def forward_flops(
    config: ModelConfig, length: int, masked_positions: int | None = None, heads: Sequence[str] = ()
) -> dict[str, int]:
    """FLOPs of one forward pass over one sequence of `length` tokens; the values sum to the whole.

    Always `embeddings`, `bottlenecks`, `attention_projections`, `attention_products`, `ffn`, each
    over all blocks; then `pooler` (with a head that reads it, or when "pooler" is asked for),
    `projection` (with a head that reads the last state through it) and `head/<name>` for each of
    `heads`. The MLM head runs at `masked_positions` positions, all of them if None. Training costs
    `TRAINING_FLOPS_PER_FORWARD_FLOP` times as much. Raises `BadInput` for an unknown head."""
    c = config
    inner, width = c.inner_size, c.hidden_size
    trigram_size = c.word_size * (3 if c.trigram_input else 1)
    bottlenecks = 0
    if c.bottleneck_size is not None:
        bottlenecks = 3 if c.attention_input == "shared_bottleneck" else 2
    query_size = width if c.attention_input == "hidden" else inner
    value_size = inner if c.attention_input == "bottleneck" else width
    all_heads = c.num_heads * c.head_size
    # Multiply-accumulates a token; the four attention kernels read query, key, value inputs and the
    # context.
    macs = {
        "embeddings": trigram_size * width if c.has_embedding_projection else 0,
        "bottlenecks": c.num_layers * bottlenecks * width * inner,
        "attention_projections": c.num_layers * (2 * query_size + value_size + inner) * all_heads,
        "attention_products": c.num_layers * 2 * length * all_heads,
        "ffn": c.num_layers * c.num_ffn * 2 * inner * c.intermediate_size,
    }
    flops = {part: 2 * length * value for part, value in macs.items()}
    rows = {name: _head(name) for name in heads if name != "pooler"}
    if c.pooler == "tanh" and (
        "pooler" in heads or any(head.reads == "pooled" for head in rows.values())
    ):
        flops["pooler"] = 2 * width * width
    read = {head.reads for head in rows.values() if projects(c, head.reads)}
    if c.projected_size is not None and read:
        flops[PROJECTION] = 2 * (length if "tokens" in read else 1) * width * c.projected_size
    masked = length if masked_positions is None else masked_positions
    for name, head in rows.items():
        flops[f"head/{name}"] = 2 * head.macs(c, length, masked)
    return flops


def _head(name: str) -> Head:
    if name not in HEADS:
        raise BadInput(f"head {name!r} is unknown; {nearest(name, HEADS)}")
    return HEADS[name]


def encoder_flops(config: ModelConfig, length: int, num_layers: int | None = None) -> int:
    """FLOPs of one sequence through embeddings and the first `num_layers` blocks (all if None),
    without heads."""
    if num_layers is not None and not 0 <= num_layers <= config.num_layers:
        raise BadInput(
            f"num_layers={num_layers} is outside 0..{config.num_layers}, the depth of this model"
        )
    flops = forward_flops(config, length)
    blocks = sum(flops.values()) - flops["embeddings"]
    depth = config.num_layers if num_layers is None else num_layers
    return flops["embeddings"] + blocks // config.num_layers * depth


def tap_shapes(config: ModelConfig, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every tap for `batch` rows of `length` tokens, block taps stacked over
    layers."""
    model = Model(config)
    ids = {"input_ids": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    _, taps = jax.eval_shape(
        lambda p, b: model.apply(p, b, taps=TAPS, heads=()), parameter_shapes(config), ids
    )
    return taps

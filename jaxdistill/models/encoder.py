"""The whole network as two pure functions, `Model.init` and `Model.apply`, and the pieces
distillation walks through.

A stack is an array: the parameters of all blocks are one pytree, `params["layers"]`, with a leading
layer axis, so depth is a slice, "layer 7 alone" is an index and a layer map is an integer array.
Taps are return values: `apply` gives the intermediate tensors asked for by name, stacked over
layers, and computes no others.

Called by training (also piece by piece: `embed`, `block`, `encode`, `run_heads`), evaluation,
interop and users."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.errors import BadInput, nearest
from jaxdistill.models import heads as heads_lib
from jaxdistill.models.block import BLOCK_TAPS, Block
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.embeddings import Embeddings, check_ids

Params = dict[str, Any]
Batch = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# `embeddings` is hidden state 0; `hidden_moments` are the mean and variance over D of all N + 1
# hidden states.
TAPS = ("embeddings", *BLOCK_TAPS, "hidden_moments")
# Half of float32's lowest number. As with the lowest, which PyTorch takes, a masked key gets no
# weight beside any real one, and where all keys are masked they get equal weights. Half leaves
# room: the lowest plus a negative score can be -inf, and a loss that multiplies its logarithm by a
# weight of 0 then gives NaN.
MASKED_SCORE = float(jnp.finfo(jnp.float32).min) / 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A network described by its config; hashable, so it can be a static argument of `jit`.

    `batch` maps `input_ids` int[B, L] and, optionally, `attention_mask` int[B, L] (default all
    ones), `token_type_ids` int[B, L] (default zeros), `position_ids` int[B, L] (default 0 to L - 1)
    and `mlm_positions` int[B, P] (evaluate the MLM head there only). A packed batch, of rows that
    hold several texts, also has `segment_ids` int[B, L] (1.. in each row, 0 for pads) and
    `cls_positions` int[B, S] (where segments begin, then zeros), and `position_ids` start from 0 in
    each segment: every segment then comes out as if it stood alone in a row, followed by pads."""

    config: ModelConfig
    # Where hidden states lie on a mesh, set by training: without it the compiler may follow the
    # parameters and split the width instead of the batch.
    batch_sharding: NamedSharding | None = None
    # What the backward pass keeps of a block beside its input, set by training: "dots" the
    # projections' outputs (norms, activations and attention scores cost few operations and fill
    # most of the memory), "full" nothing, of embeddings too.
    remat: str = "dots"

    def __post_init__(self) -> None:
        heads_lib.check_heads(self.config)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters: `embeddings`, `layers` (leading axis N on every leaf), and one
        tree per head."""
        c = self.config
        keys = heads_lib.init_keys(c, key)
        ids_1x1 = jnp.zeros((1, 1), jnp.int32)
        hidden_1x1xD, bias = jnp.zeros((1, 1, c.hidden_size)), jnp.zeros((1, 1, 1, 1))
        params: Params = {
            "embeddings": _init(Embeddings(c), keys["embeddings"], ids_1x1, ids_1x1, ids_1x1)
        }
        layer_keys = jax.random.split(keys["layers"], c.num_layers)
        params["layers"] = jax.vmap(lambda k: _init(Block(c), k, hidden_1x1xD, bias))(layer_keys)
        for name, module in heads_lib.modules(c).items():
            reads = heads_lib.HEADS[name].reads if name in c.heads else ""
            inputs = [jnp.zeros((1, 1, heads_lib.read_width(c, reads)))]
            if name == "mlm":
                inputs.append(params["embeddings"]["word"])
            params[name] = _init(module, keys[name], *inputs)
        return params

    def apply(
        self,
        params: Params,
        batch: Batch,
        *,
        taps: Sequence[str] = (),
        heads: Sequence[str] | None = None,
        dropout_key: jax.Array | None = None,
        num_layers: int | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Runs the network: (outputs, taps).

        `taps`: names from `TAPS`; block taps come stacked, [N, B, ...]. `heads`: which of the
        config's heads to run (default all). `dropout_key`: dropout is on when given. `num_layers`:
        stop after so many blocks (then no head runs). Outputs: `last_hidden_state` [B, L, D],
        `pooler_output` [B, D], and by head `mlm_logits` [B, L or P, V], `nsp_logits` [B, 2],
        `logits` [B, C], [B, L, C] or (the score of one choice a row) [B, 1],
        `start_logits`/`end_logits` [B, L], `embedding` [B, D] (or what is pooled and projected);
        all float32. In a packed batch what is pooled is [B, S, D], and `nsp_logits` and `logits` of
        pooled vectors are [B, S, 2] and [B, S, C]. Raises `BadInput` for an unknown tap or head,
        for rows longer than the position table, for ids, types and positions outside their tables
        (NaN under `jit`, where the numbers are not known), and for a packed batch that lacks a
        field or is given to a head that reads whole rows."""
        check_arguments(params, batch)
        taps, heads = _names(taps), None if heads is None else _names(heads)
        for tap in taps:
            if tap not in TAPS:
                raise BadInput(f"tap {tap!r} is unknown; {nearest(tap, TAPS)}")
        embed_key, layers_key, heads_key = split_key(dropout_key)
        hidden_0 = self.embed(params, batch, embed_key)  # first: it checks the batch
        bias = attention_bias(batch)
        layers = params["layers"]
        if num_layers is not None:
            layers = jax.tree.map(lambda x: x[:num_layers], layers)
        hidden, collected = self.encode(layers, hidden_0, bias, taps=taps, dropout_key=layers_key)
        if "embeddings" in taps:
            collected["embeddings"] = hidden_0
        if "hidden_moments" in taps:
            moments = jnp.concatenate([hidden_moments(hidden_0)[None], collected["hidden_moments"]])
            collected["hidden_moments"] = moments
        outputs = {"last_hidden_state": hidden.astype(jnp.float32)}
        if num_layers is None:
            outputs |= self.run_heads(
                params, hidden, batch, self.config.heads if heads is None else heads, heads_key
            )
        return outputs, {tap: collected[tap] for tap in taps}

    def embed(
        self, params: Params, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Hidden state 0, [B, L, D] in the residual dtype."""
        ids_BxL = jnp.asarray(batch["input_ids"])
        if ids_BxL.ndim != 2 or not jnp.issubdtype(ids_BxL.dtype, jnp.integer):
            raise BadInput(
                f"input_ids is {ids_BxL.dtype}{list(ids_BxL.shape)}; expected whole numbers of shape [batch, length]"
            )
        # Where positions are given, they are checked, and not the length: a packed row may be longer.
        if "position_ids" not in batch and ids_BxL.shape[1] > self.config.max_positions:
            raise BadInput(
                f"input_ids has rows of {ids_BxL.shape[1]} tokens but the model has max_positions="
                f"{self.config.max_positions}; shorten the rows"
            )
        check_ids(self.config, batch)
        types = batch.get("token_type_ids")
        types_BxL = jnp.zeros_like(ids_BxL) if types is None else jnp.asarray(types)
        segments_BxL = segment_ids(batch)
        positions = batch.get("position_ids")
        positions_BxL = (
            jnp.broadcast_to(jnp.arange(ids_BxL.shape[1]), ids_BxL.shape)
            if positions is None
            else jnp.asarray(positions)
        )

        def run(tables: Params, *inputs: Any) -> jax.Array:
            # Looked up whole: rows of a split table would have to be sorted out again.
            return _apply(Embeddings(self.config), self.whole(tables), *inputs)

        embed = jax.checkpoint(run) if self.remat == "full" else run
        return self._constrain(
            embed(
                params["embeddings"], dropout_key, ids_BxL, types_BxL, positions_BxL, segments_BxL
            )
        )

    def block(
        self,
        layer_params: Params,
        hidden_BxLxD: jax.Array,
        bias_Bx1xLxL: jax.Array,
        dropout_key: jax.Array | None = None,
        looped: bool = True,
    ) -> tuple[jax.Array, Arrays]:
        """One block with one layer's parameters (no layer axis): (next hidden state, its taps).
        `remat` says what its backward pass computes again; `looped`: it is the body of a loop,
        whose passes the compiler cannot merge."""

        def run(layer_params: Params, *inputs: Any) -> Any:
            if looped and self.remat == "full":
                layer_params = jax.tree.map(
                    lambda x: _only_here(x) if x.dtype == jnp.float32 else x, layer_params
                )
            return _apply(Block(self.config), layer_params, *inputs)

        policy = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[
            self.remat
        ]
        hidden, taps = jax.checkpoint(run, policy=policy, prevent_cse=not looped)(
            layer_params, dropout_key, hidden_BxLxD, bias_Bx1xLxL
        )
        return self._constrain(hidden), taps

    def whole(self, tables: Params) -> Params:
        """`tables` on every device of the mesh, whichever part of them each holds."""
        if self.batch_sharding is None:
            return tables
        return jax.lax.with_sharding_constraint(
            tables, NamedSharding(self.batch_sharding.mesh, PartitionSpec())
        )

    def _constrain(self, hidden_BxLxD: jax.Array) -> jax.Array:
        if self.batch_sharding is None:
            return hidden_BxLxD
        return jax.lax.with_sharding_constraint(hidden_BxLxD, self.batch_sharding)

    def encode(
        self,
        layers: Params,
        hidden_BxLxD: jax.Array,
        bias_Bx1xLxL: jax.Array,
        *,
        taps: Sequence[str] = (),
        dropout_key: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """The stack, or a stretch of it, from embedded vectors on: one scan, taps stacked over
        layers [N, ...].

        `dropout_key` is split over the layers given; `dropout_keys` [N] are those of each.
        """
        depth = jax.tree.leaves(layers)[0].shape[0]

        def body(
            hidden: jax.Array, xs: tuple[Params, jax.Array | None]
        ) -> tuple[jax.Array, Arrays]:
            hidden, block_taps = self.block(xs[0], hidden, bias_Bx1xLxL, xs[1])
            if "hidden_moments" in taps:
                block_taps["hidden_moments"] = hidden_moments(hidden)
            return hidden, {tap: block_taps[tap] for tap in taps if tap in block_taps}

        if dropout_key is not None:
            dropout_keys = jax.random.split(dropout_key, depth)
        return jax.lax.scan(body, hidden_BxLxD, (layers, dropout_keys))

    def apply_at(
        self,
        params: Params,
        batch: Batch,
        layer: jax.Array,
        *,
        taps: Sequence[str] = (),
        active: Params | None = None,
        differentiable: bool = False,
    ) -> Arrays:
        """The taps of block `layer` alone, [B, ...], where `layer` is a traced index: one
        executable for all layers.

        `active`: that block's parameters, when they are not to be read from the stack (the one
        thing differentiated under strict freezing). `differentiable`: whether the gradient must
        reach the lower blocks; a loop with a traced bound has no reverse mode, so they then run as
        one scan whose blocks above `layer` are skipped."""
        hidden_0 = self.embed(params, batch)  # first: it checks the batch
        bias = attention_bias(batch)
        hidden = self.run_below(params, hidden_0, bias, layer, differentiable)
        # No loop keeps the compiler from merging what is computed again with what was computed:
        # "full" has to be asked for.
        _, collected = self.block(
            take_layer(params["layers"], layer) if active is None else active,
            hidden,
            bias,
            looped=self.remat != "full",
        )
        if (
            "hidden_moments" in taps
        ):  # every layer's, so the whole depth runs; only the moments are kept
            _, stacked = self.encode(params["layers"], hidden_0, bias, taps=("hidden_moments",))
            collected["hidden_moments"] = jnp.concatenate(
                [hidden_moments(hidden_0)[None], stacked["hidden_moments"]]
            )
        return {tap: collected[tap] for tap in taps}

    def run_below(
        self,
        params: Params,
        hidden_BxLxD: jax.Array,
        bias_Bx1xLxL: jax.Array,
        layer: jax.Array,
        differentiable: bool = False,
    ) -> jax.Array:
        """What enters block `layer`, a traced index, as in `apply_at`: [B, L, D]."""
        forward_only = dataclasses.replace(self, remat="dots")  # nothing will be computed again

        def run(index: jax.Array, hidden: jax.Array) -> jax.Array:
            return forward_only.block(take_layer(params["layers"], index), hidden, bias_Bx1xLxL)[0]

        if not differentiable:
            return jax.lax.stop_gradient(jax.lax.fori_loop(0, layer, run, hidden_BxLxD))

        def body(hidden: jax.Array, xs: tuple[jax.Array, Params]) -> tuple[jax.Array, None]:
            step: Callable[[jax.Array], jax.Array] = lambda h: self.block(xs[1], h, bias_Bx1xLxL)[0]  # noqa: E731
            return jax.lax.cond(xs[0] < layer, step, lambda h: h, hidden), None

        return jax.lax.scan(
            body, hidden_BxLxD, (jnp.arange(self.config.num_layers), params["layers"])
        )[0]

    def run_heads(
        self,
        params: Params,
        hidden_BxLxD: jax.Array,
        batch: Batch,
        names: Sequence[str],
        dropout_key: jax.Array | None = None,
    ) -> Arrays:
        """The outputs of the heads `names` (and the pooler's) on the last hidden state."""
        modules = heads_lib.modules(self.config)
        outputs: Arrays = {}
        first_BxD = first_tokens(hidden_BxLxD, batch)

        def project(x: jax.Array) -> jax.Array:
            projection = modules[heads_lib.PROJECTION]
            return _apply(projection, params[heads_lib.PROJECTION], None, x, dropout=False)

        if self.config.pooler == "tanh":
            outputs["pooler_output"] = _apply(
                modules["pooler"], params["pooler"], None, first_BxD, dropout=False
            )
        elif self.config.pooler == "first_token":
            outputs["pooler_output"] = first_BxD.astype(jnp.float32)
        for name in names:
            if name not in self.config.heads:
                raise BadInput(
                    f"head {name!r} is not in this model; {nearest(name, self.config.heads)}"
                )
            head = heads_lib.HEADS[name]
            if not head.packed and "segment_ids" in batch:
                raise BadInput(
                    f"head {name!r} reads whole rows, but the rows of this batch are packed; give it one text a row"
                )
            if head.reads == "masked":
                weights, features = self.mlm_features(params, hidden_BxLxD, batch)
                found = heads_lib.vocabulary_logits(weights, features)
            elif head.reads == "rows":
                found = _apply(
                    head.module(self.config),
                    params.get(name, {}),
                    None,
                    hidden_BxLxD,
                    attention_mask(batch),
                    dropout=False,
                )
            else:
                pooled = head.reads == "pooled"
                read = outputs.get("pooler_output", first_BxD) if pooled else hidden_BxLxD
                read = project(read) if heads_lib.projects(self.config, head.reads) else read
                found = _apply(modules[name], params[name], dropout_key, read)
            if len(head.outputs) == 1:
                outputs[head.outputs[0]] = found
            else:
                outputs |= {output: found[..., i] for i, output in enumerate(head.outputs)}
        return outputs

    def mlm_features(
        self, params: Params, hidden_BxLxD: jax.Array, batch: Batch
    ) -> tuple[Params, jax.Array]:
        """The MLM head but for its product with the vocabulary: (`weights` of
        `heads.vocabulary_logits`, [B, P or L, D])."""
        positions = batch.get("mlm_positions")
        rows = hidden_BxLxD if positions is None else tokens_at(hidden_BxLxD, positions)
        features = _apply(
            heads_lib.modules(self.config)["mlm"], params["mlm"], None, rows, None, dropout=False
        )
        weights = {
            name: params["mlm"][name]
            for name in ("bias", "extra_embedding")
            if name in params["mlm"]
        }
        return {**weights, "word": params["embeddings"]["word"]}, features


def _names(given: Sequence[str]) -> Sequence[str]:
    """One name is not a sequence of letters."""
    return (given,) if isinstance(given, str) else given


def check_arguments(params: Any, batch: Any) -> None:
    """Raises `BadInput` for what is no parameter tree of ours, or no batch: the message says what
    is expected."""
    if not isinstance(params, Mapping) or not {"embeddings", "layers"} <= set(params):
        given = (
            f"a {type(params).__name__}"
            if not isinstance(params, Mapping)
            else "a tree with 'params' above them; give its 'params'"
            if "params" in params
            else f"a tree with {', '.join(map(str, list(params)[:4])) or 'nothing'}"
        )
        raise BadInput(
            "params are the tree that Model.init and jaxdistill.from_pretrained return, with 'embeddings' and "
            f"'layers' in it; given: {given}"
        )
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        given = (
            f"the names {', '.join(map(str, list(batch)[:4]))}"
            if isinstance(batch, Mapping)
            else f"a {type(batch).__name__}"
        )
        raise BadInput(
            "a batch maps 'input_ids' (and 'attention_mask', 'token_type_ids', …) to whole numbers of shape "
            f"[batch, length]; given: {given}"
        )


def attention_mask(batch: Batch) -> jax.Array:
    """int32[B, L]: 1 for real tokens."""
    mask = batch.get("attention_mask")
    return jnp.ones(jnp.shape(batch["input_ids"]), jnp.int32) if mask is None else jnp.asarray(mask)


def segment_ids(batch: Batch) -> jax.Array | None:
    """int[B, L] of a packed batch: 1.. in each row, 0 for pads; None if the batch has one text a
    row. Raises `BadInput` if a packed batch lacks what goes with it: positions or first tokens of
    whole rows would be wrong without a sign."""
    segments = batch.get("segment_ids")
    if segments is None:
        return None
    for name in ("position_ids", "cls_positions"):
        if name not in batch:
            raise BadInput(
                f"the batch has segment_ids but no {name}; a packed batch needs both position_ids and cls_positions"
            )
    return jnp.asarray(segments)


def first_tokens(hidden_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """What the pooler reads, [B, D]; of a packed batch [B, S, D], the first token of every segment
    (the row's first where there is none: `example_weights` are 0 there)."""
    if segment_ids(batch) is None:
        return hidden_BxLxD[:, 0]
    return tokens_at(hidden_BxLxD, batch["cls_positions"])


def tokens_at(hidden_BxLxD: jax.Array, positions: Any) -> jax.Array:
    """[B, P, D] of the places int[B, P] of each row; NaN outside the row, as in
    `embeddings.rows_of`."""
    places_BxP = jnp.asarray(positions)
    places_BxP = jnp.where(places_BxP < 0, hidden_BxLxD.shape[1], places_BxP)
    return jnp.take_along_axis(hidden_BxLxD, places_BxP[..., None], axis=1)


def attention_bias(batch: Batch) -> jax.Array:
    """float32[B, 1, 1, L] added to the scores: 0 for real keys, `MASKED_SCORE` for pads. Queries
    are never masked.

    Of a packed batch float32[B, 1, L, L]: 0 within a segment; pads see each other and are seen by
    no token."""
    segments_BxL = segment_ids(batch)
    if segments_BxL is not None:
        same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None, :]
        return jnp.where(same_BxLxL, 0.0, MASKED_SCORE).astype(jnp.float32)[:, None]
    return jnp.where(attention_mask(batch) > 0, 0.0, MASKED_SCORE).astype(jnp.float32)[
        :, None, None, :
    ]


def hidden_moments(hidden_BxLxD: jax.Array) -> jax.Array:
    """float32[B, L, 2]: mean and biased variance over the width."""
    x_BxLxD = hidden_BxLxD.astype(jnp.float32)
    return jnp.stack([jnp.mean(x_BxLxD, -1), jnp.var(x_BxLxD, -1)], axis=-1)


def take_layer(layers: Params, layer: jax.Array | int) -> Params:
    """One layer's parameters out of the stack; `layer` may be traced."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), layers)


def in_compute_dtype(config: ModelConfig, params: Params) -> Params:
    """`params` with everything that is used in `config.dtype` alone already in it: the same outputs
    to the bit, in half the memory when that is bfloat16. For networks that do not learn; what
    enters sums in float32 stays."""
    dtype = jnp.dtype(config.dtype)

    def cast(tree: Params) -> Params:
        projection = "kernel" in tree  # a norm has a bias too
        return {
            name: cast(leaf)
            if isinstance(leaf, dict)
            else leaf.astype(dtype)
            if name in ("kernel", "extra_embedding") or (projection and name == "bias")
            else leaf
            for name, leaf in tree.items()
        }

    return cast(params) if dtype != jnp.float32 else params


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
    """Dropout keys of embeddings, layers and heads; three None when dropout is off."""
    if key is None:
        return None, None, None
    first, second, third = jax.random.split(key, 3)
    return first, second, third


@jax.custom_vjp
def _only_here(x: jax.Array) -> jax.Array:
    """float32 x, which the compiler must not round ahead of the loop that reads it layer by layer:
    it would keep a bfloat16 copy of the whole stack beside it. It follows numbers through slices
    and barriers; bits it does not (libtpu 0.0.50)."""
    bits = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(x, jnp.uint32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


_only_here.defvjp(lambda x: (_only_here(x), None), lambda _, cotangent: (cotangent,))


def _init(module: nn.Module, key: jax.Array, *inputs: jax.Array) -> Params:
    return module.init(key, *inputs)["params"]


def _apply(
    module: nn.Module,
    params: Params,
    key: jax.Array | None,
    *inputs: jax.Array | None,
    dropout: bool = True,
) -> Any:
    options: dict[str, Any] = {"deterministic": key is None} if dropout else {}
    return module.apply(
        {"params": params}, *inputs, **options, rngs=None if key is None else {"dropout": key}
    )

"""One layer at a time: the terms of the active layer, a traced index, of both networks.

One executable serves every phase. Called by step, through `Stage.forward`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.forward.lockstep import layer_value
from jaxdistill.forward.scene import Result, Scene, weighted
from jaxdistill.models.encoder import take_layer
from jaxdistill.objectives import fused


def progressive(scene: Scene) -> Result:
    """The terms of layer `scene.at.layer`. The layers below it run forward only where it alone
    learns (`scene.active`)."""
    terms, layer = scene.of_layers, scene.at.layer
    name = next(iter(terms.values())).teacher
    teacher = scene.others[name]
    in_parts = scene.fused and "hidden_moments" not in scene.taps(name)
    ours = scene.model.apply_at(
        scene.params,
        scene.batch,
        layer,
        taps=fused.student_taps_of(terms) if in_parts else scene.taps(),
        active=scene.active,
        differentiable=scene.active is None,
    )
    layer_map, traced = scene.layer_map(terms), next(iter(terms.values())).traced_map
    at = layer if layer_map is None else jnp.asarray(layer_map)[layer]
    if traced:
        at = scene.at.maps[traced][layer]
    if not in_parts:
        theirs = jax.lax.stop_gradient(
            teacher.model.apply_at(teacher.params, scene.batch, at, taps=scene.taps(name))
        )
        return weighted(fused.layer_sums(terms, ours, theirs, scene.masks), scene.scales)
    bias = scene.bias
    embedded = teacher.model.embed(teacher.params, scene.batch)
    entered = teacher.model.run_below(teacher.params, embedded, bias, at)
    followed = take_layer(teacher.params["layers"], at)
    block = fused.TeacherBlock(teacher.model, followed, entered, bias)
    return layer_value(scene, block, ours)[0]

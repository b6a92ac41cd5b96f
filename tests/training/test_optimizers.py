"""LAMB and AdamW against a slow reference; a stack of layers is so many separate variables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill.methods.base import Optimizer
from jaxdistill.training import optimizers
from tests.training.by_hand import ByHand, unstack

SHAPES = {
    "layers/ffn/kernel": (3, 4, 2),
    "layers/ffn/bias": (3, 2),
    "layers/norm/scale": (3, 4),
    "embeddings/word": (5, 4),
    "embeddings/norm/bias": (4,),
    "mlm/extra_embedding": (5, 3),
    "mlm/bias": (5,),
    "nsp/dense/kernel": (4, 2),
}
SETTINGS = {
    "lamb": Optimizer(),
    "lamb, no decay": Optimizer(weight_decay=0.0),
    "lamb, never clipped": Optimizer(clip_norm=0.0),
    "lamb, corrected": Optimizer(bias_correction=True),
    "adamw": Optimizer("adamw", weight_decay=0.1),
    "adamw, corrected": Optimizer("adamw", weight_decay=0.1, bias_correction=True),
}


def draw(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(size * rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def run(settings, steps, multipliers=None):
    """(ours, by hand) after some updates with gradients now above, now below the clipping norm."""
    ours = draw(0) | {
        "mlm/extra_embedding": jnp.zeros((5, 3)),
        "layers/ffn/kernel": draw(0)["layers/ffn/kernel"].at[1].set(0),
    }
    slow, by_hand, state = unstack(ours), ByHand(settings), optimizers.init(ours)
    update = jax.jit(lambda g, s, w, rate, m: optimizers.update(settings, g, s, w, rate, m))
    for step in range(steps):
        gradients = draw(step + 1, size=2.0 if step % 2 else 0.02)
        factors = None if multipliers is None else jnp.asarray(multipliers[step], jnp.float32)
        ours, state, norm = update(gradients, state, ours, jnp.float32(0.1), factors)

        def multiplier(layer, factors=factors):
            return 1.0 if factors is None or layer is None else float(factors[layer])

        expected = by_hand.update(slow, unstack(gradients), 0.1, multiplier)
        np.testing.assert_allclose(norm, expected, rtol=1e-5)
    return ours, state, slow, by_hand


def same(flat, slow):
    assert unstack(flat).keys() == slow.keys()
    for key, value in unstack(flat).items():
        np.testing.assert_allclose(value, slow[key], rtol=1e-4, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("kind", SETTINGS)
def test_against_the_reference(kind):
    """No bias correction unless asked, no decay and no ratio for biases and norms, one ratio a
    layer, a global clip; among the variables are two that are all 0, whose ratio is 1."""
    ours, state, slow, by_hand = run(SETTINGS[kind], steps=4)
    same(ours, slow)
    same(state.mu, {key: m for key, (m, _) in by_hand.state.items()})
    same(state.nu, {key: v for key, (_, v) in by_hand.state.items()})


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_multipliers_scale_each_layer_and_clear_its_moments_at_0(kind):
    """The order of a phase: rest, learn, learn slowly; what lies outside the stack takes no
    multiplier."""
    multipliers = [(2.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.2, 2.0, 0.0), (0.3, 3.0, 0.0)]
    ours, state, slow, by_hand = run(SETTINGS[kind], 4, multipliers)
    same(ours, slow)
    same(state.mu, {key: m for key, (m, _) in by_hand.state.items()})
    np.testing.assert_array_equal(ours["layers/ffn/kernel"][2], draw(0)["layers/ffn/kernel"][2])
    assert not state.mu["layers/ffn/kernel"][2].any() and state.mu["layers/ffn/kernel"][1].any()


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_stacked_is_separate(kind):
    """One update of [N, ...] arrays equals N updates of layers (stacked=False), multipliers
    included."""
    settings, multipliers = Optimizer(kind, clip_norm=0.0), jnp.asarray([1.0, 0.1, 0.0])
    stacked = {name: value for name, value in draw(0).items() if name.startswith("layers/")}
    gradients = {name: draw(1)[name] for name in stacked}
    together, state, _ = optimizers.update(
        settings, gradients, optimizers.init(stacked), stacked, jnp.float32(0.1), multipliers
    )
    for layer in range(3):
        one, g = ({name: x[layer] for name, x in tree.items()} for tree in (stacked, gradients))
        alone, its, _ = optimizers.update(
            settings,
            g,
            optimizers.init(one),
            one,
            jnp.float32(0.1),
            multipliers[layer],
            stacked=False,
        )
        for name in stacked:
            np.testing.assert_allclose(together[name][layer], alone[name], rtol=1e-6)
            np.testing.assert_array_equal(state.mu[name][layer], its.mu[name])
            np.testing.assert_array_equal(state.nu[name][layer], its.nu[name])


def test_corrected_adamw_is_optax_adamw():
    settings = Optimizer("adamw", weight_decay=0.1, clip_norm=1.0, bias_correction=True)
    ours, state, *_ = run(settings, 3)
    theirs = draw(0) | {
        "mlm/extra_embedding": jnp.zeros((5, 3)),
        "layers/ffn/kernel": draw(0)["layers/ffn/kernel"].at[1].set(0),
    }
    mask = {name: not name.endswith(("bias", "scale")) for name in theirs}
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.1, eps=1e-6, weight_decay=0.1, mask=mask)
    )
    held = reference.init(theirs)
    for step in range(3):
        updates, held = reference.update(
            draw(step + 1, size=2.0 if step % 2 else 0.02), held, theirs
        )
        theirs = optax.apply_updates(theirs, updates)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert int(state.updates) == 3


def test_only_what_moves_has_state_and_its_buffers_are_its_own():
    """Frozen means absent; shared zeros could not be donated."""
    moving = {"layers/x/kernel": jnp.ones((2, 3)), "embeddings/word": jnp.ones((4,), jnp.bfloat16)}
    state = optimizers.init(moving)
    assert state.mu.keys() == state.nu.keys() == moving.keys()
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype("float32")}
    leaves = jax.tree.leaves((state.mu, state.nu))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)

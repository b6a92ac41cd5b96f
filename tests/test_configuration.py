"""Recipes by path and by name, overrides, and every shipped recipe traced in its smoke size."""

import jax
import pytest

from jaxdistill import configuration, inputs, interop, resolve
from jaxdistill.configuration import load_config
from jaxdistill.errors import BadInput
from jaxdistill.training import sharding
from tests.conftest import rarely

RECIPES = sorted(configuration.shipped_recipes())


def test_by_name_by_path_and_with_a_variant(tmp_path, monkeypatch):
    by_path = load_config(str(configuration.shipped_recipes()["quickstart"]))
    assert load_config("quickstart").to_dict() == by_path.to_dict()
    assert load_config("quickstart:smoke").stages.transfer.steps < by_path.stages.transfer.steps
    monkeypatch.chdir(tmp_path)  # the README's spelling works without a checkout too
    assert load_config("configs/quickstart.py").to_dict() == by_path.to_dict()


def test_overrides_keep_their_types():
    config = load_config(
        "quickstart",
        [
            "stages.transfer.steps=7",
            "data.source=x.txt",
            "order=('teacher',)",
            "networks.student.model.bottleneck_size=32",
            "stages.distill.alpha=1",
        ],
    )
    assert (config.stages.transfer.steps, config.data.source, config.order) == (
        7,
        "x.txt",
        ("teacher",),
    )
    assert (
        config.networks.student.model.bottleneck_size == 32 and config.stages.distill.alpha == 1.0
    )


@pytest.mark.parametrize(
    "override, expected",
    [
        (
            "stages.transfer.stepz=7",
            "config.stages.transfer has no field 'stepz'; did you mean 'steps'",
        ),
        ("sead=1", "config has no field 'sead'; did you mean 'seed'"),
        ("data.foo=1", "config.data has no field 'foo'; valid: .*heldout"),
        (
            "stages.nobody.steps=1",
            "config.stages has no field 'nobody'; valid: .*distill, random_start, teacher",
        ),
        (
            "stages.transfer.layer_map[0]=1",
            r"has no field 'layer_map\[0\]'; did you mean 'layer_map'",
        ),
        ("seed.foo=1", "config.seed is a value, 0, and has no field 'foo'"),
        ("stages.transfer.steps=many", "steps=.many.; expected a whole number"),
    ],
)
def test_a_misspelt_field_names_the_nearest(override, expected):
    with pytest.raises(BadInput, match=expected) as raised:
        load_config("quickstart", [override])
    assert "\n" not in str(raised.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        load_config("quikstart")


def test_a_recipe_that_returns_something_else(tmp_path):
    (tmp_path / "bad.py").write_text("def get_config(variant=''):\n    return {}\n")
    with pytest.raises(BadInput, match="ConfigDict"):
        load_config(str(tmp_path / "bad.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_traces_in_smoke_size(name):
    """Built, checked and traced: names, shapes and stages of each recipe agree."""
    config = load_config(f"{name}:smoke")
    loaded = {
        name: interop.from_pretrained(section.init)[0]
        for name, section in config.networks.items()
        if section.init
    }
    words = [model.config.vocab_size for model in loaded.values()]
    vocab = max(words, default=config.data.vocab_size)
    mesh = sharding.make_mesh(1)
    recipe = resolve.resolve(
        config, vocab_size=vocab, feeds=inputs.outline(config), mesh=mesh, loaded=loaded
    )
    for stage in recipe.stages:
        state, metrics = resolve.trace(recipe, stage, mesh)
        assert metrics["loss"].shape == () and state.step.shape == ()


@pytest.mark.parametrize(
    "variant", rarely(["mobilebert", "mobilebert:strict"], "mobilebert:strict")
)
def test_the_published_recipe_traces_at_full_size(variant):
    """IB-BERT_LARGE, MobileBERT, batch 2048, length 512, over 8 devices: shapes only, nothing is
    allocated."""
    config = load_config(variant, ["data.source=x"])
    mesh = sharding.make_mesh(8)
    recipe = resolve.resolve(config, vocab_size=30522, feeds=inputs.outline(config), mesh=mesh)
    assert [stage.steps for stage in recipe.stages] == [500_000, 240_000, 500_000]
    for stage in recipe.stages:
        state, _ = resolve.trace(recipe, stage, mesh)
    moments = state.optimizer.mu
    assert sum(x.size for x in moments.values()) == 36_597_564
    layers = jax.eval_shape(recipe.networks["student"].init, jax.random.key(0))["layers"]
    assert {x.shape[0] for x in jax.tree.leaves(layers)} == {24}


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_not_the_full_recipe(name):
    with pytest.raises(BadInput, match="did you mean 'smoke'"):
        load_config(f"{name}:smke")


def test_the_published_recipe_for_one_chip():
    """`:chip` changes how long and how many rows, and neither the networks nor what the stages
    do."""
    published, chip = load_config("mobilebert"), load_config("mobilebert:chip")
    assert (chip.networks, chip.order) == (published.networks, published.order)
    for name in chip.order:
        changed = {
            field
            for field in chip.stages[name]
            if chip.stages[name][field] != published.stages[name][field]
        }
        assert changed == {"steps", "batch_size", "learning_rate"} | (
            {"warmup_steps"} if name != "transfer" else set()
        )
        assert chip.stages[name].learning_rate ** 2 / chip.stages[name].batch_size == pytest.approx(
            published.stages[name].learning_rate ** 2 / published.stages[name].batch_size
        )
    assert chip.stages.transfer.steps % chip.networks.student.model.num_layers == 0

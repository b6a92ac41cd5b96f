"""Every mistake in a recipe is found before anything compiles, and the message says which line to
change."""

import dataclasses
import re
import types

import numpy as np
import pytest

from jaxdistill import defaults, inputs
from jaxdistill.configuration import load_config, shipped_recipes
from jaxdistill.data import packing
from jaxdistill.data.text import pretraining_row
from jaxdistill.errors import BadInput
from jaxdistill.models import Model
from jaxdistill.recipe import Begin
from jaxdistill.resolve import (
    choose_fused,
    model_config,
    resolve,
    stage_seed,
    trace,
    with_task_heads,
)
from jaxdistill.training import sharding
from jaxdistill.training.programs import abstract_batch
from tests.conftest import cast_of, make_stage, pretraining_batch, tiny_config, write_table

MISTAKES = {
    "order": (
        {"order": ("teacher", "transfre")},
        "'transfre', which is not in config.stages; did you mean 'transfer'",
    ),
    "a kind that is none": (
        {"stages.transfer.kind": "joined"},
        "stages.transfer.kind='joined' is unknown; did you mean 'joint'",
    ),
    "a layer map of words": (
        {"stages.transfer.layer_map": ("a", "b")},
        "layer_map=.* expected whole numbers",
    ),
    "a pattern that is none": (
        {"stages.transfer.moves": ("(",)},
        r"moves: '\(' is no regular expression",
    ),
    "nothing": (
        {"order": ()},
        "config.order is empty: nothing to do; stages there are: .*transfer",
    ),
    "only baselines": ({"order": ("random_start",)}, "config.order is empty"),
    "no teacher yet": (
        {"order": ("transfer", "teacher")},
        "stage 'transfer': .*no earlier stage trains one.*config.order.*config.networks.teacher.init",
    ),
    "no teacher to learn from": (
        {"order": ("distill",), "networks.student.start": "random"},
        "stage 'distill' needs a teacher.*config.order.*config.networks.teacher.init=FOLDER",
    ),
    "no teacher to copy": (
        {"order": ("copied_start", "teacher"), "baselines": True},
        "stage 'copied_start': .*heads of 'teacher'.*config.networks.copied_start.start='random'",
    ),
    "two lengths": (
        {"stages.distill.epochs": 1.0},
        "config.stages.distill: give exactly one of steps, examples or epochs",
    ),
    "no length": ({"stages.distill.steps": 0}, "config.stages.distill: give exactly one of steps"),
    "negative length": (
        {"stages.distill.steps": -1},
        "config.stages.distill: give exactly one of steps.*steps=-1",
    ),
    "start": (
        {"networks.student.start": "cold"},
        "config.networks.student.start='cold' is unknown; valid: copy, extract, factorise, layers, like, random",
    ),
    "freezing": ({"stages.transfer.freezing": "hard"}, "config.stages.transfer.freezing='hard'"),
    "too few steps": (
        {"stages.transfer.steps": 1},
        "config.stages.transfer.steps=1 is less than one step for each of 2",
    ),
    "rows too long": (
        {"data.sequence_length": 40},
        "config.data.sequence_length=40 exceeds max_positions=32 of 'teacher'",
    ),
    "vocabulary": (
        {"networks.student.model.vocab_size": 50},
        "tokenizer has 120 words but the model's vocab_size is 50.*vocab_size=0",
    ),
    "vocabularies": ({"networks.student.model.vocab_size": 130}, "have 120 and 130 rows"),
    "no head": (
        {"networks.student.heads": ("mlm",)},
        "stage 'distill' needs the head 'nsp', which 'student' does not have",
    ),
    "teacher without head": (
        {
            "networks.teacher.heads": ("nsp",),
            "order": ("distill",),
            "networks.teacher.init": "folder",
        },
        "needs the teacher's head 'mlm'.*config.stages.distill.alpha=1",
    ),
    "widths": (
        {"networks.student.model.hidden_size": 32},
        "width 16 .teacher. and 32 .student.*config.networks.student.model.hidden_size=16",
    ),
    "attention heads": (
        {"networks.student.model.num_heads": 4},
        "compares 2 attention heads .teacher. with 4.*num_heads=2.*transfer.attention=0",
    ),
    "depths": (
        {"networks.student.model.num_layers": 1},
        "the teacher has 2 layers and the student 1; give config.stages.transfer.layer_map",
    ),
    "map too short": (
        {"stages.transfer.layer_map": (0,)},
        r"config.stages.transfer.layer_map=\(0,\) names 1 teacher layers for 2",
    ),
    "map too deep": (
        {"stages.transfer.layer_map": (0, 2)},
        r"config.stages.transfer.layer_map=\(0, 2\): the teacher's layers are 0 to 1",
    ),
    "map below": (
        {"stages.transfer.layer_map": (-1, 0)},
        "config.stages.transfer.layer_map=.-1, 0.*0 to 1",
    ),
    "devices": ({"mesh.data": 9}, "config.mesh.data=9, .*9 device.* but 8 device"),
    "no device": ({"mesh.data": 0}, "config.mesh.data=0, .*expected 1 or more"),
    "two open axes": ({"mesh.data": -1, "mesh.fsdp": -1}, "config.mesh.fsdp=-1.*at most one -1"),
    "mesh does not divide": (
        {"mesh.data": -1, "mesh.fsdp": 3},
        "config.mesh.fsdp=3.*3 device.* but 8 device",
    ),
    "heads over tensor": (
        {"mesh.data": 1, "mesh.tensor": 4},
        "config.mesh.tensor=4 does not divide the 2 attention heads",
    ),
    "width over fsdp": (
        {
            "mesh.data": 1,
            "mesh.fsdp": 8,
            "networks.student.model.bottleneck_size": 12,
            "networks.student.model.num_heads": 2,
        },
        "config.mesh.fsdp=8 does not divide 12, an axis of 'layers/.*' .* of the student",
    ),
    "batch over devices": (
        {"mesh.data": 8, "stages.distill.batch_size": 12},
        "config.stages.distill.batch_size=12 .*does not divide by 8 .mesh data x fsdp.; use a multiple of 8",
    ),
    "micro-batch over devices": (
        {"mesh.data": 8, "stages.distill.batch_size": 16, "stages.distill.accumulation": 4},
        "distill.batch_size=16 in 4 micro-batch.*use a multiple of 32",
    ),
    "accumulation": (
        {"stages.distill.accumulation": 3},
        "config.stages.distill.batch_size or .accumulation",
    ),
    "pattern": (
        {"stages.distill.moves": ("layer/",)},
        "config.stages.distill.moves: 'layer/' matches no parameter; they begin with embeddings/",
    ),
    "best by nothing": (
        {"stages.distill.best": "los"},
        "config.stages.distill.best='los' is not measured on 'text'; did you mean 'loss'.*mlm_distillation",
    ),
    "best of layers": (
        {"stages.transfer.best": "loss"},
        "config.stages.transfer.best='loss': .*a progressive stage has no best",
    ),
    "spikes": (
        {"stages.distill.skip_above": -1.0},
        "config.stages.distill.skip_above=-1.0; expected 0 .* or 2 ",
    ),
    "strict and more": (
        {
            "stages.transfer.moves": ("layers/", "embeddings/word"),
            "stages.transfer.freezing": "strict",
        },
        "config.stages.transfer.moves=.*'embeddings/word'.*strict.*config.stages.transfer.freezing='soft'",
    ),
    "frozen and never set": (
        {"networks.student.start": "random"},
        "stage 'transfer' freezes 'embeddings/position' and . more, which nothing .*config.stages.transfer.moves",
    ),
    "frozen and of another shape": (
        {"networks.student.model.embedding_size": 4},
        "stage 'transfer' freezes 'embeddings/projection/kernel' and 1 more, which nothing has set",
    ),
    "frozen norm of another kind": (
        {"networks.student.model.norm": "layer_norm", "networks.teacher.model.norm": "no_norm"},
        "stage 'transfer' freezes 'embeddings/norm/bias' and 1 more, which nothing has set",
    ),
}


def changed(changes, source="text.txt"):
    config = tiny_config(source)
    for name, value in changes.items():
        *path, last = name.split(".")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    return config


def resolved(config, num_records=100, **loaded):
    feeds = inputs.outline(config)
    feeds["text"] = dataclasses.replace(feeds["text"], rows=num_records)
    return resolve(
        config, vocab_size=120, feeds=feeds, mesh=sharding.make_mesh(**config.mesh), **loaded
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(BadInput, match=message) as caught:
        resolved(changed(changes))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"networks.student.model.num_layers": 1, "stages.transfer.layer_map": (1,)},
        {"networks.student.model.norm": "layer_norm"},
        {
            "networks.student.model.norm": "layer_norm",
            "networks.teacher.model.norm": "no_norm",
            "stages.transfer.moves": ("layers/", "embeddings/norm"),
        },
        {"networks.student.start": "random", "stages.transfer.moves": ("layers/", "embeddings/")},
        {"stages.transfer.attention": 0.0, "networks.student.model.num_heads": 4},
        {"order": ("distill",), "networks.teacher.init": "folder"},
        {"order": ("random_start",), "baselines": True},
        {"mesh.data": 8},
    ],
    ids=str,
)
def test_what_the_messages_advise_works(changes):
    recipe = resolved(changed(changes))
    for stage in recipe.stages:
        trace(recipe, stage, sharding.make_mesh(1))


def test_the_recipe_as_written():
    """Models, order, starts, and where each network's data begins: stages of one network follow
    each other."""
    recipe = resolved(changed({"baselines": True}))
    assert [stage.name for stage in recipe.stages] == [
        "teacher",
        "transfer",
        "distill",
        "random_start",
        "copied_start",
    ]
    assert recipe.first_example == {
        "teacher": 0,
        "transfer": 0,
        "distill": 48,
        "random_start": 0,
        "copied_start": 0,
    }
    assert recipe.begins == {
        "teacher": Begin("random"),
        "student": Begin("copy", "teacher"),
        "random_start": Begin("random"),
        "copied_start": Begin("copy", "teacher"),
    }
    networks = recipe.networks
    assert networks["teacher"].config.vocab_size == networks["student"].config.vocab_size == 120
    assert networks["student"] == networks["random_start"] == networks["copied_start"]
    assert [stage.name for stage in resolved(changed({})).stages] == [
        "teacher",
        "transfer",
        "distill",
    ]


def test_no_teacher_is_built_when_nothing_needs_one():
    recipe = resolved(changed({"order": ("random_start",), "baselines": True}))
    assert list(recipe.networks) == ["random_start"]


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({"steps": 0, "examples": 100}, 12),
        ({"steps": 0, "epochs": 2.0}, 25),
        ({"steps": 0, "epochs": 0.01}, 1),
        ({"steps": 3}, 3),
    ],
)
def test_lengths_in_steps_examples_and_epochs(changes, steps):
    """In batches of 8, of 100 records; at least one step."""
    recipe = resolved(changed({f"stages.distill.{name}": value for name, value in changes.items()}))
    assert recipe.stages[-1].steps == steps


def test_loaded_models_take_the_place_of_the_sections():
    made = resolved(changed({}))
    config = changed(
        {
            "networks.teacher.init": "a",
            "networks.student.init": "b",
            "order": ("transfer", "distill"),
        }
    )
    loaded = {
        name: Model(made.networks[name].config.replace(num_layers=3))
        for name in ("teacher", "student")
    }
    assert resolved(config, loaded=loaded).networks == loaded


def test_a_traced_batch_is_like_a_real_one():
    """Names, shapes and dtypes of what the loader gives."""
    real, abstract = (
        pretraining_batch(rows=4, length=6, predictions=2),
        abstract_batch(pretraining_row(6, 2), 4),
    )
    assert real.keys() == abstract.keys()
    assert all(
        (real[k].shape, real[k].dtype) == (abstract[k].shape, abstract[k].dtype) for k in real
    )


def test_a_traced_packed_batch_is_like_a_real_one():
    plain = pretraining_batch(rows=4, length=6, predictions=2)
    row = np.arange(4)
    real = packing.join(plain, row, num_rows=4, pad=0, predictions=3, max_segments=2)
    abstract = abstract_batch(pretraining_row(6, 3, segments=2), 4)
    assert real.keys() == abstract.keys()
    assert all(
        (real[k].shape, real[k].dtype) == (abstract[k].shape, abstract[k].dtype) for k in real
    )


def test_packed_batches_are_traced_and_tf1_padding_is_refused():
    config = changed({"data.packing": True})
    recipe = resolved(config)
    for stage in recipe.stages:
        trace(recipe, stage, sharding.make_mesh(1))
    with pytest.raises(BadInput, match="packing=True.*'transfer'.*tf1_unmasked"):
        resolved(changed({"data.packing": True, "stages.transfer.tf1_unmasked": True}))


def test_a_dropout_seed_a_stage():
    assert stage_seed(0, "teacher") == stage_seed(0, "teacher") != stage_seed(1, "teacher")
    assert stage_seed(0, "teacher") != stage_seed(0, "distill")


@pytest.mark.parametrize(
    "kind, layer_map, expected",
    [
        ("joint", (0, 2), True),
        ("joint", (-1, 1), True),
        ("joint", (0, 1, 2), False),
        ("progressive", (0, 2), False),
    ],
)
def test_losses_are_fused_on_a_cpu_where_layers_of_the_teacher_have_no_follower(
    text_source, kind, layer_map, expected
):
    """Plain losses would keep the taps of all layers of the teacher up to the last that is
    followed."""
    stage = make_stage(kind, num_layers=len(layer_map), layer_map=layer_map)
    config, mesh = tiny_config(text_source), sharding.make_mesh(1)
    assert choose_fused(config, mesh, cast_of(stage)) is expected


def test_losses_are_fused_where_memory_is_dear(text_source):
    """By themselves on anything but a CPU; on request anywhere, or nowhere; and a mistyped wish is
    refused."""
    cpu = sharding.make_mesh(1)
    tpu = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))
    config = tiny_config(text_source)
    cast = cast_of(make_stage("joint"))
    assert not choose_fused(config, cpu, cast) and choose_fused(config, tpu, cast)
    assert (
        not resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=cpu).stages[0].fused
    )
    config.objectives.fused = True
    assert all(
        stage.fused
        for stage in resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=cpu).stages
    )
    config.objectives.fused = False
    assert not choose_fused(config, tpu, cast)
    with pytest.raises(TypeError):
        config.objectives.fused = "no"


def test_a_model_from_a_folder_computes_as_the_recipe_says(text_source):
    """A folder knows the architecture; in which dtypes it runs is the recipe's."""
    config = tiny_config(text_source)
    config.order = ("transfer",)
    config.networks.teacher.init = config.networks.student.init = "somewhere"
    config.networks.teacher.model.dtype = config.networks.student.model.residual_dtype = "bfloat16"
    given = {whose: Model(resolve_config(config, whose)) for whose in ("teacher", "student")}
    recipe = resolve(
        config,
        vocab_size=120,
        feeds=inputs.outline(config),
        mesh=sharding.make_mesh(1),
        loaded=given,
    )
    teacher, student = (recipe.networks[name].config for name in ("teacher", "student"))
    assert (teacher.dtype, teacher.residual_dtype) == ("bfloat16", "float32")
    assert (student.dtype, student.residual_dtype) == ("float32", "bfloat16")


def resolve_config(config, whose):
    """The architecture of a section as a folder would give it: in float32."""
    return model_config(config.networks[whose], 120).replace(
        dtype="float32", residual_dtype="float32"
    )


def test_a_padded_table_of_a_given_model_sets_the_length_of_the_other(text_source):
    """Its tokenizer has fewer words than it has rows; copies and soft targets need as many rows in
    both networks."""
    config = tiny_config(text_source)
    padded = Model(model_config(config.networks.teacher, 128))
    config.networks.teacher.init = "folder"
    found = resolve(
        config,
        vocab_size=120,
        feeds=inputs.outline(config),
        mesh=sharding.make_mesh(1),
        loaded={"teacher": padded},
    )
    assert {model.config.vocab_size for model in found.networks.values()} == {128}
    config.networks.student.model.vocab_size = 120
    with pytest.raises(
        BadInput,
        match="have 128 and 120 rows, .* leave vocab_size of the network that is not given at 0",
    ):
        resolve(
            config,
            vocab_size=120,
            feeds=inputs.outline(config),
            mesh=sharding.make_mesh(1),
            loaded={"teacher": padded},
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"networks.student.start": "layers"}, "start='layers': a network of some layers needs like=NAME"),
        ({"networks.student.layers": (0,)}, r"layers=\(0,\): a network of some layers needs like=NAME"),
        ({"networks.student.start": "like"}, "start='like' needs like=NAME"),
        ({"networks.copied_start.start": "layers"}, "say which of 'student' it begins as"),
        (
            {"networks.copied_start.start": "layers", "networks.copied_start.layers": (0, 2), "baselines": True},
            r"config.networks.copied_start.layers=\(0, 2\): expected different layers of 'teacher', counted from 0 to 1; given: 2",
        ),
        (
            {"networks.copied_start.start": "layers", "networks.copied_start.layers": (1, 1), "baselines": True},
            "expected different layers",
        ),
        (
            {
                "networks.copied_start.start": "layers",
                "networks.copied_start.layers": (1,),
                "networks.copied_start.of": "random_start",
                "order": ("copied_start",),
                "baselines": True,
            },
            "starts from the layers of 'random_start', but no earlier stage trains one",
        ),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be(changes, message):
    with pytest.raises(BadInput, match=message):
        resolved(changed(changes))


def test_a_network_of_some_layers():
    config = changed(
        {
            "networks.copied_start.like": "teacher",
            "networks.copied_start.start": "layers",
            "networks.copied_start.layers": (1,),
            "baselines": True,
        }
    )
    recipe = resolved(config)
    found, teacher = recipe.networks["copied_start"].config, recipe.networks["teacher"].config
    assert found == teacher.replace(num_layers=1)
    assert recipe.begins["copied_start"] == Begin("layers", "teacher", (1,))
    config.networks.random_start.update({"like": "teacher", "start": "like"})
    assert resolved(config).begins["random_start"] == Begin("random")


def test_layers_that_no_stage_moved_are_not_set(tmp_path):
    """A hint trains the lower part of a random stack; what is above it may not be frozen next."""
    config = load_config("fitnets:smoke")
    config.stages.hint.update({"guided_layer": 0, "hint_layer": 0})
    config.feeds.task.source = str(write_table(tmp_path / "task.tsv"))
    resolved(config)
    config.stages.distill.moves = ("embeddings/", "pooler/", "sequence_classification/")
    with pytest.raises(BadInput, match="stage 'distill' freezes 'layers/.*, which nothing has set"):
        resolved(config)
    config.stages.hint.update({"guided_layer": 1, "hint_layer": 1})
    resolved(config)


def variants():
    """Every shipped recipe, as it is and in each of its variants."""
    for name, file in sorted(shipped_recipes().items()):
        if name == "from_hf":  # its student has the depth of the model that it takes
            continue
        found = re.search(r"check_variant\(variant, (.*)\)", file.read_text())
        yield from (name, *(f"{name}:{word}" for word in re.findall(r'"(\w+)"', found[1])))


@pytest.mark.parametrize("name", variants())
def test_every_recipe_resolves(name, tmp_path):
    """Its stages, networks and feeds fit each other; models that a user must give are made up."""
    config = load_config(name)
    trained = {config.stages[stage].network for stage in config.order}
    for section in config.feeds.values():
        if section.get("source") == "default":
            section.source = str(write_table(tmp_path / "task.tsv", rows=2000))
    feeds = inputs.outline(config)
    feeds["text"] = dataclasses.replace(feeds["text"], rows=100_000)
    config, loaded = with_task_heads(config, feeds), {}
    for network, section in config.networks.items():
        given = section.init or network not in trained
        if "model" in section and (given or (":paper" in name and network == "teacher")):
            section.init = "FOLDER"
            loaded[network] = Model(model_config(section, 120))
    mesh = sharding.make_mesh(**{**config.mesh, "data": 1})
    recipe = resolve(config, vocab_size=120, feeds=feeds, mesh=mesh, loaded=loaded)
    assert [stage.name for stage in recipe.stages] == list(config.order)


def test_an_epoch_of_a_derived_feed_is_all_of_its_rows(tmp_path):
    """Of copies that are added, and of a stretch of them that ends where the rows do."""
    config = load_config("tinybert_task")
    config.feeds.task.source = str(write_table(tmp_path / "task.tsv", rows=160))
    config.order = ("words", "finetune", "intermediate", "distill")
    config.stages.distill.rows = (300, 10**6)
    feeds = inputs.outline(config)
    feeds["text"] = dataclasses.replace(feeds["text"], rows=100_000)
    recipe = resolve(config, vocab_size=120, feeds=feeds, mesh=sharding.make_mesh(1))
    rows = recipe.feeds["more"].rows
    assert rows == 3 * feeds["task"].rows > 300
    steps = {stage.name: stage.steps for stage in recipe.stages}
    assert steps["intermediate"] == round(3 * rows / 32) and steps["distill"] == round(
        3 * (rows - 300) / 32
    )
    assert recipe.stages[-1].schedule.warmup_steps == int(0.1 * steps["distill"])


def test_frozen_layers_that_nothing_set_are_seen_above_those_that_move_too(tmp_path):
    config = load_config("finetune")
    config.feeds.task.source = str(write_table(tmp_path / "task.tsv"))
    name = config.stages.finetune.network
    config.networks[name].model.num_layers = 2
    config.stages.finetune.layers = (0, 1)
    with pytest.raises(BadInput, match="freezes 'layers/"):
        resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=sharding.make_mesh(1))


@pytest.mark.parametrize("rows", [("a", "b"), (None, 2), (3,)])
def test_rows_that_are_no_numbers(tmp_path, rows):
    config = load_config("finetune")
    config.feeds.task.source = str(write_table(tmp_path / "task.tsv"))
    config.stages.finetune = defaults.stage(
        "finetune", config.stages.finetune.network, feed="task", epochs=1.0, rows=rows
    )
    with pytest.raises(BadInput, match=r"config.stages.finetune.rows="):
        resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=sharding.make_mesh(1))

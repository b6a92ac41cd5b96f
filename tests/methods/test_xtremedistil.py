"""XtremeDistil: which state follows which, each by a slow loop; the projection that is the network's own, from
the first stage to the exported folder."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import checks, defaults, interop, run
from jaxdistill.errors import BadInput
from jaxdistill.interop.folding import folded
from jaxdistill.methods.base import Cast
from jaxdistill.methods.xtremedistil import unfrozen
from jaxdistill.models import Model
from jaxdistill.models.heads import HEADS
from jaxdistill.models.parameters import flatten
from jaxdistill.models.sizes import forward_flops, parameters_by_part
from jaxdistill.training import sharding, state
from jaxdistill.training.step import Given
from tests.conftest import random_params
from tests.methods.test_task_methods import jitted, network, one_step, stage_of, task_batch, teacher

WIDE = 10  # of the teacher; the student has 6


def projecting(head="token_classification", **changes):
    return network(head, hidden_size=6, num_heads=2, projected_size=WIDE, **changes)


def of_topmost(model=None, **changes):
    changes = {"attention_probability_mse": 1.0, **changes}
    return dataclasses.replace(stage_of("topmost", model=model, **changes), dropout=False)


def test_topmost_states_each_through_a_projection_of_its_own():
    stage = stage_of("topmost", teacher_layer=4, attention_probability_mse=0.5)
    assert {term.name: (term.loss, term.layer_map, term.projection) for term in stage.terms} == {
        "state_0": ("embedding_hidden_mse", (1,), "state_0"),
        "state_1": ("hidden_mse", (2, -1, -1), "state_1"),
        "state_2": ("hidden_mse", (-1, 3, -1), "state_2"),
        "state_3": ("hidden_mse", (-1, -1, 4), "state_3"),
        "attention": ("attention_probability_mse", (2, 3, 4), ""),
    }
    assert not stage.heads()
    last = stage_of("topmost", teacher_layer=4, states="last", first_token=True)
    assert [(term.loss, term.layer_map) for term in last.terms] == [
        ("first_token_mse", (-1, -1, 4))
    ]
    equal = stage_of("topmost", teacher_layer=2)
    assert [term.name for term in equal.terms] == ["state_1", "state_2", "state_3", "state_0"]
    assert equal.terms[-1].loss == "embedding_mse"


def test_a_student_deeper_than_its_teacher_has_no_topmost_states():
    with pytest.raises(BadInput, match="teacher_layer=1: .* at least 2 for the 3 layers"):
        stage_of("topmost", teacher_layer=1)


@pytest.mark.parametrize("deep", [5, 3])
@pytest.mark.parametrize("own", [False, True])
def test_topmost_states_by_hand(deep, own):
    """One step's losses against a loop over the states, in one batch with pads."""
    other, theirs = teacher(num_layers=deep, hidden_size=WIDE, num_heads=2)
    model = projecting() if own else network(hidden_size=6, num_heads=2)
    stage = of_topmost(model, teacher_layer=deep - 1)
    cast, batch = Cast(stage, model, (("teacher", other),)), task_batch()
    checks.check_fit(cast)
    now = state.create(cast, random_params(model), jax.random.key(0))
    after, metrics = jitted(cast)(now, Given({"teacher": theirs}, np.int32(0)), batch)
    (_, ours), (_, tops) = (
        m.apply(p, batch, taps=("embeddings", "hidden", "attention_scores"), heads=())
        for m, p in ((model, now.params), (other, theirs))
    )
    real = batch["attention_mask"].astype(bool)
    states = [np.concatenate([taps["embeddings"][None], taps["hidden"]]) for taps in (ours, tops)]
    for number in range(4):
        maps = now.params["projections"].get(f"state_{number}")
        if own and number == 3:
            assert maps is None
            maps = now.params["projection"]["dense"]
        wide = states[0][number] @ np.asarray(maps["kernel"]) + np.asarray(maps["bias"])
        expected = np.mean((wide - states[1][deep - 3 + number])[real] ** 2)
        np.testing.assert_allclose(metrics[f"raw/state_{number}"], expected, rtol=1e-4)
    total, pairs = 0.0, 0
    for layer in range(3):
        weights = [
            np.asarray(jax.nn.softmax(x, -1))
            for x in (ours["attention_scores"][layer], tops["attention_scores"][layer + deep - 3])
        ]
        for row, length in enumerate(real.sum(1)):
            part = ((weights[0] - weights[1])[row, :, :length, :length] ** 2).mean(0)
            total, pairs = total + part.sum(), pairs + part.size / 3
    np.testing.assert_allclose(metrics["raw/attention"], total / pairs, rtol=1e-4)
    before, moved = flatten(now.params), flatten(after.params)
    still = {name for name in before if np.array_equal(before[name], moved[name])}
    assert not any(name.startswith(("projection", "layers/", "embeddings/")) for name in still)
    assert any(name.startswith(stage_heads(model)) for name in still)


def stage_heads(model):
    return tuple(f"{head}/" for head in model.config.heads)


def test_an_own_projection_of_another_width_is_refused():
    model, (other, _) = projecting(), teacher(num_layers=3, hidden_size=8, num_heads=2)
    stage = of_topmost(model, teacher_layer=2)
    with pytest.raises(BadInput, match=r"own projection, whose width is 10; .*projected_size=8"):
        checks.check_fit(Cast(stage, model, (("teacher", other),)))


def test_embeddings_follow_a_layer_that_there_is():
    model, (other, _) = network(hidden_size=6), teacher(num_layers=3)
    stage = of_topmost(model, teacher_layer=6)
    with pytest.raises(BadInput, match="follow layer 3; the teacher's layers are 0 to 2"):
        checks.check_fit(
            Cast(dataclasses.replace(stage, terms=stage.terms[-2:-1]), model, (("teacher", other),))
        )


@pytest.mark.parametrize(
    "head, pooler, reads",
    [
        ("token_classification", "tanh", True),
        ("question_answering", "tanh", True),
        ("sequence_classification", "tanh", False),
        ("sequence_classification", "none", True),
        ("sequence_classification", "first_token", True),
    ],
)
def test_what_heads_read_and_the_same_numbers_without_the_projection(head, pooler, reads):
    model, batch = projecting(head, pooler=pooler), task_batch()
    params = random_params(model)
    plain, fewer = folded(model, params)
    assert plain.config == model.config.replace(projected_size=None)
    assert "projection" not in fewer and "projection" in params
    ours, _ = model.apply(params, batch)
    theirs, _ = plain.apply(fewer, batch)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-5)
    # By hand, and the gradient reaches the projection if it is read.
    kernel, bias = (params["projection"]["dense"][name] for name in ("kernel", "bias"))
    read = (
        ours["last_hidden_state"]
        if HEADS[head].reads == "tokens"
        else ours["last_hidden_state"][:, 0]
    )
    if pooler == "tanh" and HEADS[head].reads == "pooled":
        read = ours["pooler_output"]
    read = read @ kernel + bias if reads else read
    by_hand = read @ params[head]["dense"]["kernel"] + params[head]["dense"]["bias"]
    found = ours.get("logits")
    if found is None:
        found = jnp.stack([ours["start_logits"], ours["end_logits"]], -1)
    np.testing.assert_allclose(found, by_hand, rtol=2e-5, atol=2e-5)
    flops = forward_flops(model.config, 7, heads=(head,))
    assert ("projection" in flops) == reads
    if reads:
        assert flops["projection"] == 2 * 6 * WIDE * (7 if HEADS[head].reads == "tokens" else 1)
    parts = parameters_by_part(model.config)
    assert parts["projection"] == 6 * WIDE + WIDE
    assert parts["total"] == sum(x.size for x in jax.tree.leaves(params))


def test_a_folder_of_hugging_face_has_the_product_and_ours_the_projection(tmp_path):
    import transformers

    model, batch = projecting(), task_batch()
    params = random_params(model)
    assert "6" not in (interop.why_not_huggingface(model.config) or "6")
    plain, fewer = interop.for_format(model, params)
    assert interop.save_pretrained(tmp_path / "hf", plain, fewer).format == "huggingface"
    flax = transformers.FlaxBertForTokenClassification.from_pretrained(tmp_path / "hf")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    np.testing.assert_allclose(
        flax(**inputs).logits, model.apply(params, batch)[0]["logits"], rtol=1e-4, atol=1e-4
    )
    kept = interop.for_format(model, params, interop.OWN_FORMAT)
    assert kept[0] is model and kept[1] is params
    interop.save_pretrained(tmp_path / "own", model, params)
    again, same = interop.from_pretrained(tmp_path / "own")
    assert again.config == model.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, same, params)))
    # A head of texts that no pooler stands before has no class there, so nothing is folded.
    texts = projecting("sequence_classification", pooler="none")
    assert interop.for_format(texts, random_params(texts))[0] is texts


def test_the_same_on_eight_devices_and_with_more_pads():
    model, (other, theirs) = projecting(), teacher(num_layers=5, hidden_size=WIDE, num_heads=2)
    stage, batch = of_topmost(model, teacher_layer=4), task_batch()
    teachers = {"teacher": (other, theirs)}
    alone, told = one_step(stage, model, teachers, batch)
    spread, said = one_step(stage, model, teachers, batch, mesh=sharding.make_mesh(8))
    longer = {n: np.pad(x, ((0, 0), (0, 3))) if x.ndim == 2 else x for n, x in batch.items()}
    padded, heard = one_step(stage, model, teachers, longer)
    for name in told:
        np.testing.assert_allclose(said[name], told[name], rtol=2e-5, err_msg=name)
        np.testing.assert_allclose(heard[name], told[name], rtol=2e-5, err_msg=name)
    for name, x in alone.items():
        np.testing.assert_allclose(spread[name], x, rtol=1e-4, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(padded[name], x, rtol=1e-4, atol=2e-6, err_msg=name)


def test_unfrozen_from_the_top_down():
    plain, projected = unfrozen(3, projected=False), unfrozen(3, projected=True)
    assert [group.get("layers") for group in plain] == [None, (2, 3), (1, 3), (0, 3), None]
    assert [len(group["moves"]) for group in plain] == [1, 2, 2, 2, 3]
    assert [group["moves"][1:] for group in projected] == [
        (),
        ("projection/",),
        *[("projection/", "layers/")] * 3,
        ("projection/", "layers/", "embeddings/"),
    ]
    heads = ("sequence_classification", "token_classification", "question_answering")
    for name in flatten(random_params(Model(projecting().config.replace(heads=heads)))):
        reached = [any(re.match(p, name) for p in group["moves"]) for group in projected]
        assert reached == sorted(reached) and reached[-1], name


def tagger(tmp_path, **student):
    """A recipe with a tagged file, a teacher of three layers and a narrower student of two."""
    sentences = (f"paris B-LOC\nis O\nold{n} O\n" for n in range(80))
    (tmp_path / "tags.txt").write_text("\n".join(sentences))
    config = defaults.recipe("kept")
    config.feeds.task = defaults.task(
        "tagging", source=str(tmp_path / "tags.txt"), sequence_length=12
    )
    shape = dict(max_positions=12, num_heads=2, intermediate_size=16, heads=("task",))
    config.networks.teacher = defaults.network("bert_base", num_layers=3, hidden_size=16, **shape)
    config.networks.student = defaults.network(
        "bert_base", num_layers=2, hidden_size=8, **student, **shape
    )
    config.stages.teach = defaults.stage("finetune", "teacher", **SHORT)
    config.stages.topmost = defaults.stage("topmost", "student", teacher_layer=2, **SHORT)
    config.order = ("teach", "topmost")
    config.mesh.data, config.export = 1, False
    return config


SHORT = dict(
    feed="task", steps=2, batch_size=8, optimizer="adamw", learning_rate=1e-2, weight_decay=0.0
)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_chunk_goes_on_with_the_projections_of_the_one_before(tmp_path, stopped):
    """So the state that it begins with is as good as the one handed on; also where another call ran it."""
    config = tagger(tmp_path)
    config.stages.topmost.update({"steps": 0, "epochs": 2.0})
    defaults.in_chunks(config, "topmost", rows=24, chunks=2)
    config.stages.topmost_1.learning_rate = 0.0
    if stopped:
        run.train(config, tmp_path / "run", stages=("teach", "topmost_0"))
    run.train(config, tmp_path / "run")
    first, second = (
        json.loads((tmp_path / "run" / "stages" / name / "stage.json").read_text())
        for name in ("topmost_0", "topmost_1")
    )
    assert [step for step, _ in first["measured"]] == [0, 6] and first["best"] == 6
    np.testing.assert_allclose(second["measured"][0][1], first["measured"][1][1], rtol=1e-6)


def test_stored_states_give_the_sums_of_a_teacher_beside_it(tmp_path):
    """The embeddings follow a layer of a deeper teacher, whose place among the stored ones is another."""
    losses = {}
    for stored in (False, True):
        config = tagger(tmp_path)
        stage = config.stages.topmost
        stage.dropout = False
        if stored:
            taps = dict(taps=("hidden",), layers=(2, 1, 0))
            config.feeds.said = defaults.derived("outputs", of="task", by="teacher", **taps)
            stage.update({"feed": "said", "teacher": "batch"})
        workdir = tmp_path / str(stored)
        run.train(config, workdir)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        losses[stored] = [
            line["loss"] for line in map(json.loads, lines) if line.get("stage") == "topmost" and "loss" in line
        ]  # fmt: skip
    assert losses[True] and np.allclose(losses[True], losses[False], rtol=1e-5)


def test_the_projection_goes_on_and_layers_wait_for_their_turn(tmp_path):
    """A run: topmost states, then the classifier alone, the projection too, the last layer too."""
    config = tagger(tmp_path, projected_size=0)
    config.export = True
    groups = unfrozen(2, projected=True)
    for number, moving in enumerate(groups[:3]):
        config.stages[f"hard_{number}"] = defaults.stage("finetune", "student", **SHORT, **moving)
    config.order = ("teach", "topmost", "hard_0", "hard_1", "hard_2")
    results = run.train(config, tmp_path / "run")
    kept = [
        flatten(interop.from_pretrained(tmp_path / "run" / "stages" / name)[1])
        for name in config.order[1:]
    ]
    moved = [{n for n in a if not np.array_equal(a[n], b[n])} for a, b in zip(kept, kept[1:])]
    assert moved[0] == {"token_classification/dense/kernel", "token_classification/dense/bias"}
    assert moved[1] == moved[0] | {"projection/dense/kernel", "projection/dense/bias"}
    above = moved[2] - moved[1]
    assert above and all(name.startswith("layers/") for name in above)
    assert all(np.array_equal(kept[2][name][0], kept[3][name][0]) for name in above)
    assert results["export"]["format"] == "huggingface"
    exported, _ = interop.from_pretrained(tmp_path / "run" / "student")
    assert exported.config.projected_size is None

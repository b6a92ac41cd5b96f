"""What a teacher says of rows, stored once: by row, by token, of some layers, and from a file."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from jaxdistill import defaults
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.rows import training_batches
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import derived, teacher_file
from jaxdistill.evaluation.derivation import Making
from jaxdistill.evaluation.derived import Derived
from jaxdistill.methods.base import Cast
from jaxdistill.methods.kinds import build
from jaxdistill.models import Model, preset
from jaxdistill.models.parameters import flatten
from jaxdistill.resolve import with_labels, with_stored
from jaxdistill.training import sharding, state
from jaxdistill.training.step import Given, make_losses
from tests.conftest import WORDS, random_params, write_table

SHAPE = dict(
    vocab_size=120, hidden_size=24, num_heads=2, intermediate_size=20, max_positions=16,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
HEAD = ("sequence_classification",)
SHALLOW = preset("bert_base").replace(**SHAPE, num_layers=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """(feed, its parts, teacher, its parameters)."""
    folder = tmp_path_factory.mktemp("derived")
    write_table(folder / "task.tsv", rows=60)
    section = defaults.task("classification", source=str(folder / "task.tsv"), sequence_length=12)
    feed = open_task("task", section, seed=0)
    tokenizer = train_wordpiece([" ".join(WORDS)] * 20, 120)
    teacher = with_labels(
        Model(preset("bert_base").replace(**SHAPE, num_layers=3, heads=HEAD)), feed.labels
    )
    return feed, feed.read(tokenizer), teacher, random_params(teacher, 1)


def making(folder, params, tokenizer=None, fingerprint="x"):
    def path(part):
        return epath.Path(folder) / f"{part}.array_record"

    return Making(params, sharding.make_mesh(1), 8, ALONE, tokenizer, path, fingerprint)


def store(folder, task, made):
    """The reader of the derived feed, made in `folder`."""
    _, base, _, params = task
    reader = made.read(base, making(folder, params))
    kept = [file.read_bytes() for file in sorted(folder.iterdir())]
    made.read(base, making(folder, None))  # found again: nothing is computed
    assert kept == [file.read_bytes() for file in sorted(folder.iterdir())]
    return reader


def gradients(stage, student, others, batch, given):
    cast = Cast(stage, student, others)
    params = state.create(cast, random_params(student, 2), jax.random.key(3)).params
    losses = make_losses(cast)

    def loss(params):
        sums, counts = losses(params, Given(given, 0), batch, 0)
        return sum(term.weight * sums[term.name] / counts[term.name] for term in stage.terms)

    return flatten(jax.jit(jax.grad(loss))(params))


RELATIONS = dict(relation_heads=4, teacher_layer=1)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind, settings, taps, layers, dtype, packed, tolerance",
    [
        ("soft_labels", {}, (), (), "float32", 2, 1e-6),
        ("intermediate", dict(attention_mse=0.0, layer_map=(0, 2)), ("embeddings", "hidden"), (2, 0), "float32", 2, 1e-6),
        pytest.param("relations", RELATIONS, ("query", "key", "value"), (1,), "float32", 1, 1e-6, marks=SLOW),
        ("patient", dict(layer_map=(1, -1), projection=True), ("hidden",), (1,), "float32", 2, 1e-6),
        pytest.param("soft_labels", {}, (), (), "bfloat16", 1, 2e-2, marks=SLOW),
    ],
)  # fmt: skip
def test_stored_outputs_give_the_gradients_of_the_teacher_itself(
    task, tmp_path, kind, settings, taps, layers, dtype, packed, tolerance
):
    """Where `packed` texts share a row too."""
    feed, base, teacher, params = task
    student = with_labels(
        Model(preset("bert_base").replace(**{**SHAPE, "hidden_size": 8}, num_layers=2, heads=HEAD)),
        feed.labels,
    )
    spec = Derived(
        "outputs", "task", "teacher", (("taps", taps), ("layers", layers), ("dtype", dtype))
    )
    made = spec.derivation(feed, teacher)
    reader = store(tmp_path, task, made)
    outlined = derived.outlined("stored", spec, feed, teacher)
    batches = [
        next(training_batches(parts.train, dataclasses.replace(parts.order, packed=packed), 8))
        for parts in (base.parts, reader.parts)
    ]
    of_packed = {"segment_ids", "position_ids", "cls_positions"} if packed > 1 else set()
    assert batches[1].keys() == outlined.row.keys() | of_packed

    def stage_of(teacher_name):
        section = defaults.stage(kind, "student", steps=4, teacher=teacher_name, **settings)
        stage = build("it", section, SHALLOW, feed.losses)
        return dataclasses.replace(stage, fused=False)  # whose sums can be differentiated

    live = gradients(
        stage_of("teacher"), student, (("teacher", teacher),), batches[0], {"teacher": params}
    )
    stage = with_stored(stage_of("batch"), outlined, made.layers, 2)
    ours = gradients(stage, student, (), batches[1], {})
    assert live.keys() == ours.keys() and any(np.abs(x).max() > 1e-3 for x in live.values())
    largest = max(np.linalg.norm(x) for x in live.values())
    for name, expected in live.items():  # a key's bias has no gradient but for rounding
        distance = np.linalg.norm(ours[name] - expected)
        assert distance <= tolerance * np.linalg.norm(expected) + 1e-7 * largest, name


def test_nothing_is_stored_of_pads(task, tmp_path):
    """A record has as many entries as its row has tokens."""
    feed, base, teacher, _ = task
    spec = Derived("outputs", "task", "teacher", (("taps", ("hidden",)), ("layers", (0, 1))))
    made = spec.derivation(feed, teacher)
    store(tmp_path, task, made)
    records = ArrayRecordDataSource([str(tmp_path / "train.array_record")])
    tokens, rows = base.parts.train.lengths.sum(), base.parts.train.number
    assert sum(len(records[i]) for i in range(len(records))) == 4 * (tokens * 2 * 24 + rows * 2)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(taps=("attention_scores",), layers=(0,)), "'attention_scores' cannot be stored"),
        (dict(taps=("hidden",)), "name the layers whose taps are stored, from 0 to 2"),
        (dict(taps=("hidden",), layers=(3,)), "from 0 to 2"),
        (dict(layers=(1,)), "none without such taps"),
    ],
)
def test_what_cannot_be_stored(task, settings, words):
    feed, _, teacher, _ = task
    with pytest.raises(BadInput, match=words):
        derived.outputs(feed, teacher, **settings)


def test_a_layer_that_is_not_stored_is_named(task):
    feed, _, teacher, _ = task
    spec = Derived("outputs", "task", "teacher", (("taps", ("hidden",)), ("layers", (2,))))
    stage = build(
        "it",
        defaults.stage(
            "intermediate", "student", steps=4, teacher="batch", layer_map=(0, 2), attention_mse=0.0, embedding_mse=0.0
        ),
        SHALLOW,
        feed.losses,
    )  # fmt: skip
    with pytest.raises(
        BadInput, match="follows layer 0 of the teacher, but 'stored' holds the layers 2"
    ):
        with_stored(stage, derived.outlined("stored", spec, feed, teacher), (2,), 2)


def answers_of(feed, base):
    """Any logits, by key, in an order of their own and with rows of others between them."""
    keys = np.concatenate([base.parts.train.keys, base.parts.heldout.keys, [5, 6]])
    rng = np.random.default_rng(0)
    rng.shuffle(keys)
    logits = rng.normal(size=(len(keys), len(feed.labels))).astype(np.float32)
    return keys, logits, dict(zip(keys.tolist(), logits))


def test_a_teacher_from_another_framework_is_found_row_by_row(task, tmp_path):
    feed, base, _, _ = task
    keys, logits, of = answers_of(feed, base)
    turned = feed.labels[::-1]
    file = tmp_path / "teacher.safetensors"
    teacher_file.write(str(file), keys, {"logits": logits[:, ::-1]}, labels=turned)
    made = derived.teacher_outputs(feed, None, file=str(file))
    reader = store(tmp_path, task, made)
    for part in ("train", "heldout"):
        rows = getattr(reader.parts, part)
        found = rows.fetch(np.arange(rows.number), 12)["stored_logits"]
        np.testing.assert_array_equal(found, [of[key] for key in rows.keys.tolist()])


def test_a_key_is_what_the_documentation_says(task):
    """Whoever writes such a file needs nothing of ours."""
    feed, base, _, _ = task
    lines = pathlib.Path(feed.tables["train"]).read_text("utf-8").splitlines()
    by_hand = {
        int.from_bytes(
            hashlib.sha256((line.split("\t")[0] + "\0").encode()).digest()[:8], "big", signed=True
        )
        for line in lines
    }
    assert set(base.parts.train.keys.tolist()) <= by_hand


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, m: t.pop("keys"), "no tensor 'keys'"),
        (lambda t, m: t.update(keys=t["keys"].astype(np.int32)), "no tensor 'keys', int64"),
        (lambda t, m: t.update(keys=t["keys"] + 1), "no answer to"),
        (lambda t, m: t.update(logits=t["logits"][:-1]), "expected .* rows, one for each key"),
        (lambda t, m: t.update(logits=t["logits"][:, :1]), "'logits' has rows of shape"),
        (lambda t, m: t.update(logits=t["logits"] * np.nan), "not finite"),
        (lambda t, m: t.update(logits=t["logits"].astype(np.int64)), "'logits' is I64"),
        (lambda t, m: t.pop("logits"), "holds keys alone"),
        (lambda t, m: m.update(labels='["wet", "cold"]'), "'labels' names wet, cold"),
        (lambda t, m: m.pop("labels"), "'labels' names"),
        (lambda t, m: m.update(labels="wet"), "expected a JSON list"),
        (lambda t, m: t.update(hidden=np.zeros((9, 2, 4), np.float32)), "'lengths', int32"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(task, tmp_path, change, words):
    feed, base, _, _ = task
    keys, logits, _ = answers_of(feed, base)
    tensors = {"keys": keys, "logits": logits}
    metadata = {"labels": json.dumps(list(feed.labels))}
    change(tensors, metadata)
    file = tmp_path / "teacher.safetensors"
    safetensors.numpy.save_file(tensors, str(file), metadata)
    with pytest.raises(BadInput, match=words):
        store(tmp_path, task, derived.teacher_outputs(feed, None, file=str(file)))


def test_no_such_file_and_no_safetensors(task, tmp_path):
    (tmp_path / "x").write_text("words")
    for file in (tmp_path / "absent", tmp_path / "x"):
        with pytest.raises(BadInput, match="cannot be read as a safetensors file"):
            derived.teacher_outputs(task[0], None, file=str(file))
    with pytest.raises(BadInput, match="needs file="):
        derived.teacher_outputs(task[0], None)


def test_another_fingerprint_is_made_anew(task, tmp_path):
    """Of another teacher, text, tokenizer or length: the fingerprint holds them all."""
    feed, base, teacher, params = task
    made = derived.outputs(feed, teacher)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    logits = []
    for given, fingerprint in ((params, "x"), (doubled, "x"), (doubled, "y")):
        rows = made.read(base, making(tmp_path, given, fingerprint=fingerprint)).parts.train
        logits.append(rows.fetch(np.arange(4), 12)["stored_logits"])
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 0.1


def test_without_a_layer_map_layer_i_follows_layer_i(task):
    """However many layers are stored, and in whatever order."""
    feed, _, teacher, _ = task
    spec = Derived("outputs", "task", "teacher", (("taps", ("hidden",)), ("layers", (2, 1, 0))))
    section = defaults.stage(
        "intermediate", "student", steps=4, teacher="batch", attention_mse=0.0, embedding_mse=0.0
    )
    stage = build("it", section, SHALLOW, feed.losses)
    outlined = derived.outlined("stored", spec, feed, teacher)
    assert with_stored(stage, outlined, (2, 1, 0), 2).terms[0].layer_map == (2, 1)

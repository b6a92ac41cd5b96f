"""A labelled task as a feed of the ordinary run: fine-tuned, distilled by soft labels, resumed."""

import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from jaxdistill import cli, defaults, interop, readers, run
from jaxdistill.data.tokenizers import load_tokenizer, save_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput, Interrupted
from jaxdistill.evaluation import stored
from jaxdistill.models.parameters import digest
from tests.conftest import WORDS, tiny_config, write_table, write_text

SHAPE = dict(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
    initializer_range=0.2,
)
HEADS = ("sequence_classification",)


def recipe(folder, **task):
    """A teacher learns the task, a thin student its soft labels; no stage reads text."""
    config = defaults.recipe("tasks")
    config.data.tokenizer = str(folder / "tokenizer")
    config.feeds.rivers = defaults.task(
        "classification", source=str(folder / "task.tsv"), sequence_length=12, **task
    )
    config.networks.teacher = defaults.network("bert_base", heads=HEADS, **SHAPE)
    config.networks.student = defaults.network(
        "bert_base", heads=HEADS, **{**SHAPE, "num_layers": 1}
    )
    learning = dict(
        feed="rivers",
        steps=80,
        batch_size=16,
        optimizer="adamw",
        learning_rate=2e-3,
        warmup_ratio=0.1,
    )
    config.stages.finetune = defaults.stage("finetune", "teacher", **learning)
    config.stages.distill = defaults.stage("soft_labels", "student", **learning)
    config.order = ("finetune", "distill")
    if "student" in config.networks:
        config.ensembles.both = ("teacher", "student")
    config.evaluation.batch_size, config.checkpoint.every_steps = 8, 20
    config.log_every, config.mesh.data = 20, 1
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_table(folder / "task.tsv", rows=320)
    save_tokenizer(train_wordpiece([" ".join(WORDS)], 100), folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """(workdir, results) of the whole recipe."""
    return folder / "run", run.train(recipe(folder), folder / "run")


def test_a_student_learns_a_task_from_its_teacher(done):
    workdir, results = done
    for name in ("teacher", "student"):
        row = results["networks"][name]["rivers"]
        assert row["accuracy"] > row["majority_accuracy"] + 0.2, name
        lines = (workdir / "predictions" / "rivers" / f"{name}.tsv").read_text().splitlines()
        cells = [line.split("\t") for line in lines[1:]]
        assert np.mean([a == b for a, b, _ in cells]) == pytest.approx(row["accuracy"])
    facts = results["tasks"]["rivers"]
    assert facts["labels"] == ["dry", "wet"] and facts["rows"] + facts["heldout_rows"] == 320
    assert "corpus" not in results and "text" not in results["networks"]["student"]
    assert not (workdir / "data").exists()  # no text was read
    assert json.loads((workdir / "inputs.json").read_text())["text"] == {}


def test_an_ensemble_answers_with_the_mean_of_logits(done, folder):
    workdir, results = done
    lines = (workdir / "predictions" / "rivers" / "student.tsv").read_text().splitlines()[1:]
    labels, _, texts = zip(*(line.split("\t") for line in lines))
    tokenizer = load_tokenizer(folder / "tokenizer")
    shape = dict(padding=True, truncation=True, max_length=12, return_tensors="np")
    batch = dict(tokenizer(list(texts), **shape))
    logits = []
    for stage in ("finetune", "distill"):
        model, params = interop.from_pretrained(workdir / "stages" / stage)
        logits.append(model.apply(params, batch)[0]["logits"])
    log_probs = jax.nn.log_softmax((logits[0] + logits[1]) / 2)
    expected = -np.mean([row[int(label == "wet")] for row, label in zip(log_probs, labels)])
    found = results["ensembles"]["both"]
    assert found["networks"] == ["teacher", "student"]
    assert found["rivers"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["rivers"].keys() == results["networks"]["student"]["rivers"].keys()


@pytest.mark.parametrize(
    "members, words",
    [
        (("teacher",), "expected two different networks or more"),
        (("teacher", "teacher"), "expected two different networks or more"),
        (("teacher", "studnt"), "did you mean 'student'"),
    ],
)
def test_an_ensemble_of_what_is_not_there_is_refused(folder, tmp_path, members, words):
    config = recipe(folder)
    config.ensembles.both = members
    refused(config, tmp_path / "w", "config.ensembles.both", words)


def test_what_is_exported_knows_its_labels(done, tmp_path, capsys):
    workdir, _ = done
    assert json.loads((workdir / "student" / "config.json").read_text())["id2label"] == {
        "0": "dry",
        "1": "wet",
    }
    assert (
        cli.main(["export", f"--model={workdir}", f"--out={tmp_path / 'x'}", "--network=teacher"])
        == 0
    )
    assert json.loads((tmp_path / "x" / "config.json").read_text())["label2id"]["wet"] == 1
    capsys.readouterr()


def test_the_table_and_the_card_name_the_task(done, capsys):
    workdir, _ = done
    assert cli.main(["train", f"--workdir={workdir}"]) == 0  # reported again
    out = capsys.readouterr().out
    assert (
        "rivers" in out
        and "accuracy" in out
        and "\nboth " in out
        and "held-out MLM loss" not in out
    )
    assert "rivers: accuracy" in (workdir / "student" / "README.md").read_text()


def test_an_interrupted_task_goes_on_to_the_same_weights(done, folder, tmp_path, monkeypatch):
    """Killed in the distillation, on two devices; the finished stage is not run again."""
    _, results = done
    config, real = recipe(folder), run.Run.batches
    shutil.copytree(
        folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("distill", "student")
    )

    def batches(self, stage, first_row):
        for i, batch in enumerate(real(self, stage, first_row)):
            if i == 30:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "batches", batches)
        with pytest.raises(Interrupted):
            run.train(config, tmp_path / "run")
    again = run.train(config, tmp_path / "run")
    assert again["student_sha256"] == results["student_sha256"]
    assert again["networks"]["student"]["rivers"] == results["networks"]["student"]["rivers"]


def test_a_given_teacher_may_count_its_labels_otherwise(done, folder, tmp_path):
    """Its classes are put in the task's order: a student learns the same from it."""
    workdir, results = done
    model, params = interop.from_pretrained(workdir / "stages" / "finetune")
    head = params["sequence_classification"]["dense"]
    turned = {name: value[..., ::-1] for name, value in head.items()}
    students = []
    for name, dense, labels in (
        ("as_is", head, ("dry", "wet")),
        ("turned", turned, ("wet", "dry")),
    ):
        given = {**params, "sequence_classification": {"dense": dense}}
        interop.save_pretrained(tmp_path / name, model, given, folder / "tokenizer", labels=labels)
        config = recipe(folder)
        config.networks.teacher = defaults.network(init=str(tmp_path / name))
        config.order, config.stages.distill.steps = ("distill",), 10
        found = run.train(config, tmp_path / f"{name}_run")
        students.append(found["student_sha256"])
        assert found["networks"]["teacher"]["rivers"] == results["networks"]["teacher"]["rivers"]
    assert students[0] == students[1]


def test_a_student_learns_the_same_from_stored_outputs(done, folder, tmp_path, monkeypatch):
    """The teacher's answers are computed once, kept in the workdir, and stand in the batch."""
    config = recipe(folder)
    config.networks.teacher = defaults.network(init=str(folder / "run" / "stages" / "finetune"))
    config.order, config.stages.distill.steps = ("distill",), 15
    live = run.train(config, tmp_path / "live")
    config.feeds.stored = defaults.derived("outputs", of="rivers", by="teacher")
    config.stages.distill.update({"feed": "stored", "teacher": "batch"})
    run.train(config, tmp_path / "stored")
    students = [
        interop.from_pretrained(tmp_path / name / "student")[1] for name in ("live", "stored")
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, students), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    page = json.loads((tmp_path / "stored" / "stages" / "distill" / "stage.json").read_text())
    assert page["teachers"]["teacher"]["sha256"] == live["networks"]["teacher"]["sha256"]
    held, train = sorted((tmp_path / "stored" / "derived").glob("*.array_record"))
    assert [held.stem, train.stem] == ["stored-heldout", "stored-train"]

    def again(made):
        """Trains the stage once more; how often the outputs are made."""
        shutil.rmtree(tmp_path / "stored" / "stages")
        real, calls = stored.write, []
        with monkeypatch.context() as patch:
            patch.setattr(stored, "write", lambda *given: calls.append(1) or real(*given))
            run.train(config, tmp_path / "stored")
        assert len(calls) == made

    again(0)  # they are still there
    train.write_bytes(train.read_bytes()[:-8])
    again(1)  # a damaged file is made again
    _, params = interop.from_pretrained(tmp_path / "stored" / "student")
    for ours, theirs in zip(*map(jax.tree.leaves, (students[1], params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_student_learns_the_same_from_packed_rows(done, folder, tmp_path, capfd):
    """From the same texts in each step; and rows are read back alone."""
    students = {}
    for name, settings in (("plain", dict(buckets=False)), ("packed", dict(packed=4))):
        config = recipe(folder, **settings)
        config.networks.teacher = defaults.network(init=str(folder / "run" / "stages" / "finetune"))
        config.order, config.stages.distill.steps = ("distill",), 15
        config.stages.distill.accumulation = 2
        run.train(config, tmp_path / name)
        students[name] = interop.from_pretrained(tmp_path / name / "student")[1]
    assert "4 of 'rivers' share a row" in capfd.readouterr().err
    for ours, theirs in zip(*map(jax.tree.leaves, students.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_packed_rows_must_be_shared_by_devices_and_micro_batches(folder, tmp_path):
    config = recipe(folder, packed=4)
    config.stages.distill.accumulation = 8
    refused(config, tmp_path / "w", "batch_size=16", "4 texts to a row", "use a multiple of 32")


def test_other_texts_in_the_file_of_a_transfer_set_are_refused(done, folder, tmp_path):
    config = recipe(folder)
    config.networks.teacher = defaults.network(init=str(folder / "run" / "stages" / "finetune"))
    more = tmp_path / "more.txt"
    more.write_text("river stone\nwinter paper\n")
    config.feeds.transfer = defaults.derived("transfer_set", of="rivers", unlabelled=str(more))
    config.stages.distill.update({"feed": "transfer", "hard_labels": 0.0, "steps": 2})
    config.order = ("distill",)
    sha256 = run.train(config, tmp_path / "w")["student_sha256"]
    assert run.train(config, tmp_path / "w")["student_sha256"] == sha256
    more.write_text("river stone\nwinter garden\n")
    with pytest.raises(BadInput, match="'distill' in this workdir was run with other settings"):
        run.train(config, tmp_path / "w")


def refused(config, workdir, *words):
    with pytest.raises(BadInput) as error:
        run.train(config, workdir)
    assert all(word in str(error.value) for word in words), error.value
    assert not workdir.exists()


def test_a_teacher_without_a_classifier_is_refused_before_anything_is_made(done, folder, tmp_path):
    workdir, _ = done
    model, params = interop.from_pretrained(workdir / "stages" / "finetune", heads=())
    interop.save_pretrained(tmp_path / "bare", model, params, folder / "tokenizer")
    config = recipe(folder)
    config.networks.teacher = defaults.network(init=str(tmp_path / "bare"))
    config.order = ("distill",)
    refused(config, tmp_path / "w", "'sequence_classification'", "teacher")
    config.networks.teacher = defaults.network(init=str(tmp_path / "bare"), heads=HEADS)
    refused(config, tmp_path / "w", "new: the model has none", "earlier stage")


def test_stages_and_feeds_that_do_not_fit_are_refused(folder, tmp_path):
    def changed(**changes):
        config = recipe(folder)
        for name, value in changes.items():
            section, _, field = name.rpartition("__")
            (config.stages[section] if section else config)[field] = value
        return config

    refused(
        changed(finetune__feed="river"), tmp_path / "w", "feed='river'", "did you mean 'rivers'"
    )
    refused(
        changed(finetune__feed="text"), tmp_path / "w", "'finetune'", "its feed is text", "a task"
    )
    config = recipe(folder)
    config.networks.teacher.heads = ("mlm", *HEADS)
    config.stages.words = defaults.stage("pretrain", "teacher", feed="rivers", steps=1, nsp=0.0)
    config.order = ("words",)
    refused(config, tmp_path / "w", "'rivers'", "no mlm_positions", "text")
    config = recipe(folder)
    config.feeds.stored = defaults.derived("outputs", of="rivrs", by="teacher")
    config.stages.distill.update({"feed": "stored", "teacher": "batch"})
    refused(config, tmp_path / "w", "config.feeds.stored.of='rivrs'", "did you mean 'rivers'")
    config.feeds.stored.update({"of": "rivers", "by": "student"})
    refused(config, tmp_path / "w", "'student'", "its own teacher")
    config.feeds.stored.by = "teacher"
    config.order = ("distill",)
    refused(config, tmp_path / "w", "needs a teacher", "'teacher'")
    config = recipe(folder)
    config.stages.distill.teacher = "batch"
    refused(config, tmp_path / "w", "no stored_logits", "stages.distill.feed")
    config = recipe(folder)
    config.networks.batch = defaults.network(like="teacher")
    refused(config, tmp_path / "w", "config.networks.batch", "another name")
    config = recipe(folder)
    config.feeds.steps = config.feeds.rivers
    refused(config, tmp_path / "w", "config.feeds.steps", "another name")
    config = recipe(folder)
    config.feeds.rivers.sequence_length = 17
    refused(config, tmp_path / "w", "config.feeds.rivers.sequence_length=17", "max_positions=16")
    config = recipe(folder)
    config.feeds.others = defaults.task(
        "classification",
        source=str(write_table(tmp_path / "o.tsv", ("no", "yes"))),
        sequence_length=12,
    )
    config.stages.more = defaults.stage("finetune", "teacher", feed="others", steps=1, batch_size=8)
    config.order = ("finetune", "more")
    refused(config, tmp_path / "w", "one classifier", "'rivers' (dry, wet)", "'others' (no, yes)")


def test_text_and_a_task_in_one_run(tmp_path):
    """A network is pre-trained on text, then learns a task; both are measured, and each stage begins at
    the first row of its feed."""
    config = tiny_config(write_text(tmp_path / "text.txt"))
    config.feeds.rivers = defaults.task(
        "classification", source=str(write_table(tmp_path / "task.tsv")), sequence_length=16
    )
    config.networks.student.start = "random"
    config.networks.student.heads = ("mlm", "nsp", *HEADS)
    config.stages.words = defaults.stage("pretrain", "student", steps=3, batch_size=8)
    config.stages.task = defaults.stage(
        "finetune", "student", feed="rivers", epochs=1.0, batch_size=8, best="loss"
    )
    config.order = ("words", "task")
    results = run.train(config, tmp_path / "run")
    row = results["networks"]["student"]
    assert 0 < row["text"]["mlm_loss"] < 20 and 0 <= row["rivers"]["accuracy"] <= 1
    pages = [
        json.loads((tmp_path / "run" / "stages" / name / "stage.json").read_text())
        for name in config.order
    ]
    assert [page["first_example"] for page in pages] == [0, 0]
    assert pages[1]["steps"] == round(results["tasks"]["rivers"]["rows"] / 8) and "best" in pages[1]
    assert pages[0]["inputs"] != pages[1]["inputs"]
    _, params = interop.from_pretrained(tmp_path / "run" / "stages" / "task")
    assert digest(params) == results["student_sha256"]


OWN = """
import dataclasses

import numpy as np

from jaxdistill import defaults
from jaxdistill.data import tasks
from jaxdistill.data import encoded
from jaxdistill.data.feeds import Answers, Feed, Order, Parts, Shape
from jaxdistill.data.files import digest_of
from jaxdistill.data.rows import reader_of
from jaxdistill.evaluation import scores


def long_lines(about, *, source: str = "", words: int = 5, heldout_fraction: float = 0.5) -> Feed:
    lines = open(source).read().splitlines()
    labels = np.array([len(line.split()) > words for line in lines], np.int32)

    def read(tokenizer):
        rows = dataclasses.replace(encoded.encode(lines, None, tokenizer, 16), columns={"labels": labels}).rows
        parts = Parts(rows, rows, Order(about.seed, 16))
        return reader_of(parts, lambda outputs: Answers(labels, outputs["logits"], {}))

    digest = digest_of([lines, words])
    return Feed(about.name, encoded.shapes(16, labels=Shape((), "int32")), read, len(lines), len(lines),
                digests={"train": digest, "heldout": digest}, head="sequence_classification",
                losses=("classification",), labels=("short", "long"), score="errors")


def errors(answers, feed):
    return {"error_rate": float(np.mean(answers.found.argmax(-1) != answers.truth))}


tasks.register(long_lines)
scores.register("errors", scores.Score(errors, (), ("error_rate",)))


def get_config():
    config = defaults.recipe("own_task")
    config.feeds.lines = defaults.task("long_lines", source=SOURCE, words=3)
    config.networks.model = defaults.network(
        "bert_base", heads=("sequence_classification",), num_layers=1, hidden_size=16, num_heads=2,
        intermediate_size=16, max_positions=16)
    config.data.tokenizer = TOKENIZER
    config.stages.learn = defaults.stage(
        "finetune", "model", feed="lines", steps=6, batch_size=8, best="error_rate", best_every=3)
    config.order, config.mesh.data, config.evaluation.batch_size = ("learn",), 1, 8
    return config
"""


def test_a_task_and_a_score_of_ones_own(folder, tmp_path, tables, capsys):
    lines = [" ".join(WORDS[i : i + 1 + i % 6]) for i in range(18)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    places = f"SOURCE, TOKENIZER = {str(tmp_path / 'lines.txt')!r}, {str(folder / 'tokenizer')!r}\n"
    (tmp_path / "own.py").write_text(places + OWN)
    options = [
        f"--config={tmp_path / 'own.py'}",
        f"--workdir={tmp_path / 'w'}",
        "--config.feeds.lines.heldout_fraction=0.5",
    ]
    assert cli.main(["train", *options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    row = results["networks"]["model"]["lines"]
    assert 0 <= row["error_rate"] <= 1 and results["tasks"]["lines"]["rows"] == 18
    page = json.loads((tmp_path / "w" / "stages" / "learn" / "stage.json").read_text())
    assert [step for step, _ in page["measured"]] == [3, 6]
    assert row["error_rate"] == min(value for _, value in page["measured"])
    (tmp_path / "own.py").write_text(places + OWN.replace('score="errors"', 'score="erors"'))
    assert cli.main(["train", options[0], f"--workdir={tmp_path / 'v'}"]) == 2
    assert "the score 'erors' is unknown; did you mean 'errors'" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()  # and not at the very end
    (tmp_path / "own.py").write_text(places + OWN)
    assert cli.main(["train", *options, "--config.feeds.lines.word=4"]) == 2
    assert "did you mean 'words'" in capsys.readouterr().err
    # Of rows that differ from epoch to epoch nothing can be stored.
    loose = OWN.replace("{}))\n", "{}))._replace(parts=None)\n").replace(
        "    config.order,",
        """    config.feeds.stored = defaults.derived("outputs", of="lines", by="model")
    config.networks.small = defaults.network(like="model", start="random")
    config.stages.soft = defaults.stage(
        "soft_labels", "small", feed="stored", teacher="batch", steps=1, batch_size=8)
    config.order,""",
    )
    (tmp_path / "own.py").write_text(places + loose.replace('("learn",)', '("learn", "soft")'))
    assert cli.main(["train", options[0], f"--workdir={tmp_path / 'v'}"]) == 2
    assert "config.feeds.stored" in (said := capsys.readouterr().err) and "reader_of" in said


def test_chunks_of_a_feed_one_after_the_other_and_none_that_makes_it_worse(folder, tmp_path):
    """Each stage learns rows of its own; the second one, whose rate is far too high, hands on what it began
    with; the third goes on from there."""
    config = recipe(folder)
    config.stages.finetune.update({"steps": 0, "epochs": 2.0, "batch_size": 8})
    config.order, config.ensembles = ("finetune",), {}
    defaults.in_chunks(config, "finetune", rows=16, chunks=3)
    assert config.order == ("finetune_0", "finetune_1", "finetune_2")
    config.stages.finetune_1.update({"learning_rate": 50.0, "warmup_ratio": 0.0})
    seen = {}

    def batches(self, stage, first_row):
        for batch in real(self, stage, first_row):
            seen.setdefault(stage.name, set()).update(
                tuple(row[mask > 0])
                for row, mask in zip(batch["input_ids"], batch["attention_mask"])
            )
            yield batch

    real = readers.Readers.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers.Readers, "train", batches)
        results = run.train(config, tmp_path / "run")
    assert not any(a & b for a, b in itertools.combinations(seen.values(), 2))
    pages = {
        name: json.loads((tmp_path / "run" / "stages" / name / "stage.json").read_text())
        for name in config.order
    }
    assert {page["steps"] for page in pages.values()} == {4} and pages["finetune_1"]["best"] == 0
    assert [page["first_example"] for page in pages.values()] == [0, 0, 0]
    assert (
        min(value for _, value in pages["finetune_0"]["measured"])
        == pages["finetune_1"]["measured"][0][1]
    )
    assert pages["finetune_1"]["measured"][0][1] == pages["finetune_2"]["measured"][0][1]
    assert not any("moved" in line for line in results["warnings"])
    config = recipe(folder)
    config.stages.finetune.rows = (10**6, 10**6 + 1)
    refused(config, tmp_path / "w", "config.stages.finetune.rows=", "begin below that")

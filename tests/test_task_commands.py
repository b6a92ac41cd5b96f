"""finetune and evaluate on labelled tasks: every kind, small, from the file to the scores."""

import errno
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from jaxdistill import cli, conversion, defaults, interop, run, task_commands
from jaxdistill.configuration import load_config
from jaxdistill.data import data_sets, tasks
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.found_set import Found, Table
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.evaluation.scores import SCORES
from jaxdistill.models import Model, preset
from jaxdistill.workdir import lock
from tests.interop.tiny import SHRUNK, random_params

WORDS = ("stone", "engine", "winter", "paper", "garden", "signal", "river", "Paris", "Anna")


def task_file(path, rows=160):
    """The label is whether the word "river" is in the sentence: learnable by any encoder."""
    rng = np.random.default_rng(0)
    words = np.array(["stone", "engine", "winter", "paper", "garden", "signal"])
    lines = ["sentence\tlabel"]
    for i in range(rows):
        sentence = list(rng.choice(words, 4))
        if i % 2:
            sentence[rng.integers(4)] = "river"
        lines.append(" ".join(sentence) + "\t" + ("wet" if i % 2 else "dry"))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_finetune_learns_writes_predictions_and_a_model(finished, tmp_path):
    file = task_file(tmp_path / "task.tsv")

    def finetune(epochs=4):
        return task_commands.finetune(
            str(finished[1] / "student"),
            str(file),
            tmp_path / "ft",
            text_column="sentence",
            label_column="label",
            epochs=epochs,
            batch_size=8,
            learning_rate=1e-2,
            sequence_length=16,
        )

    results = finetune()
    scores = results["heldout"]
    assert scores["accuracy"] > max(scores["majority_accuracy"], 0.5) + 0.2
    rows = (
        next(pathlib.Path(p) for p in results["predictions"] if p.endswith("tsv"))
        .read_text()
        .splitlines()
    )
    assert rows[0] == "label\tprediction\ttext" and len(rows) == 1 + results["heldout_examples"]
    right = np.mean([row.split("\t")[0] == row.split("\t")[1] for row in rows[1:]])
    assert right == pytest.approx(scores["accuracy"])
    model, params = interop.from_pretrained(tmp_path / "ft" / "model")
    assert isinstance(model, Model) and model.config.heads == ("sequence_classification",)
    assert jax.tree.leaves(params)
    assert finetune()["heldout"] == scores
    with pytest.raises(BadInput, match="epochs"):
        finetune(epochs=3)


def test_finetune_holds_its_workdir_and_says_when_the_disk_is_full(finished, tmp_path, monkeypatch):
    def train(*_):
        with pytest.raises(BadInput, match="in use by another run"), lock(tmp_path / "ft"):
            pass
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.Run, "batches", train)
    with pytest.raises(TrainingStopped, match="cannot write .*make room"):
        task_commands.finetune(
            str(finished[1] / "student"),
            str(task_file(tmp_path / "task.tsv")),
            tmp_path / "ft",
            sequence_length=16,
        )


def test_finetune_refuses_what_it_cannot_use(finished, tmp_path):
    student = str(finished[1] / "student")
    file = task_file(tmp_path / "task.tsv")
    with pytest.raises(BadInput, match="did you mean 'label'"):
        task_commands.finetune(
            student,
            str(file),
            tmp_path / "a",
            text_column="sentence",
            label_column="lable",
            sequence_length=16,
        )
    with pytest.raises(BadInput, match="max_positions"):
        task_commands.finetune(
            student, str(file), tmp_path / "a", text_column=0, label_column=1, sequence_length=128
        )
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder without heads, in a folder."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    config = preset("bert_base").replace(
        **{**SHRUNK, "vocab_size": 100, "max_positions": 48}, pooler="tanh", heads=()
    )
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100)
    interop.save_pretrained(folder, Model(config), random_params(config), tokenizer)
    return folder


def conll(path, sentences=120):
    """Paris is a place, Anna a person, two of them one person."""
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(sentences):
        words = [str(word) for word in rng.choice(WORDS, 5)]
        last = ""
        for word in words:
            kind = {"Paris": "LOC", "Anna": "PER"}.get(word, "")
            tag = "O" if not kind else f"{'I' if last == kind else 'B'}-{kind}"
            lines.append(f"{word} x {tag}")
            last = kind
        lines.append("")
    path.write_text("\n".join(lines))
    return path


def squad(path, questions=40):
    rng = np.random.default_rng(2)
    rows = []
    for number in range(questions):
        words = [str(word) for word in rng.permutation(WORDS[:6])]
        context = " ".join(words)
        wanted = words[int(rng.integers(6))]
        impossible = number % 4 == 0
        answers = [] if impossible else [{"text": wanted, "answer_start": context.index(wanted)}]
        rows.append(
            {
                "id": str(number),
                "question": "where is Anna" if impossible else f"where is {wanted}",
                "answers": answers,
                "is_impossible": impossible,
                "context": context,
            }
        )
    paragraphs = [{"context": row.pop("context"), "qas": [row]} for row in rows]
    page = {"version": "v2.0", "data": [{"title": "Things", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(page))
    return path


def scores_table(path, rows=80):
    """A pair of texts and how many words they share."""
    rng = np.random.default_rng(3)
    lines = []
    for _ in range(rows):
        a, b = (set(map(str, rng.choice(WORDS, 3, replace=False))) for _ in range(2))
        lines.append(f"{' '.join(sorted(a))}\t{' '.join(sorted(b))}\t{len(a & b)}.5")
    path.write_text("\n".join(lines) + "\n")
    return path


def command(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


SETTINGS = ("--learning_rate=5e-3", "--batch_size=8", "--sequence_length=24")


@pytest.mark.parametrize(
    "task, write, options, head",
    [
        ("tagging", conll, ("--epochs=12",), "token_classification"),
        (
            "question_answering",
            squad,
            ("--epochs=2", "--task.stride=8", "--task.question_length=6"),
            "question_answering",
        ),
        pytest.param(
            "regression",
            scores_table,
            ("--epochs=2", "--pair_column=1", "--label_column=2"),
            "sequence_classification",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_task_from_its_file_to_its_scores(
    task, write, options, head, encoder, tmp_path, capsys
):
    """And the model that comes out scores the same when it is evaluated, as a Hugging Face folder."""
    data = write(tmp_path / f"data{'.json' if task == 'question_answering' else '.tsv'}")
    where = (f"--task={task}", f"--data={data}")
    call = (
        "finetune",
        f"--model={encoder}",
        *where,
        f"--heldout={data}",
        f"--workdir={tmp_path / 'w'}",
    )
    code, found = command(capsys, *call, *SETTINGS, *options)
    assert code == 0, found
    assert found["head"] == "new: the model has none"
    settings = [option for option in options if option.startswith("--task.")]
    settings += [f"--task.{o[2:]}" for o in options if "column" in o]
    out = f"--out={tmp_path / 'out'}"
    folder = tmp_path / "w" / "model"
    assert interop.read_config(folder).heads == (head,)
    code, again = command(
        capsys, "evaluate", f"--model={folder}", *where, out, *settings, "--sequence_length=24"
    )
    assert code == 0, again
    metric = found["metric"]
    assert again["metric"] == metric
    scores = found["heldout"]
    for name in scores:
        assert again[name] == pytest.approx(scores[name], abs=1e-5), name
    written = {
        pathlib.Path(path).name.split(".", 1)[1]: pathlib.Path(path)
        for path in found["predictions"]
    }
    for path in map(pathlib.Path, again["answers"]):
        ending = path.name.split(".", 1)[1]
        if ending in ("tsv", "predictions.json"):  # the others hold long numbers
            assert path.read_text() == written.pop(ending).read_text()
    assert written.keys() <= {"nbest_predictions.json", "null_odds.json", "details.json"}
    low, high = again["details"]["interval"]
    assert low - 1e-9 <= again[metric] <= high + 1e-9 and "uncertain" in again["notices"][-1]
    if task == "tagging":
        assert scores["entity_f1"] > 0.7 > scores["majority_entity_f1"]
        assert found["labels"][0] == "O" and "B-PER" in found["labels"]
    if task == "question_answering":
        assert json.loads((tmp_path / "out" / "answers.predictions.json").read_text()).keys() == {
            str(n) for n in range(40)
        }


def test_a_glue_folder_is_enough(encoder, tmp_path, capsys):
    folder = tmp_path / "CoLA"
    folder.mkdir()
    rows = [
        f"gj04\t{n % 2}\t{'' if n % 2 else '*'}\t{WORDS[n % 4]} {WORDS[n % 5]}" for n in range(24)
    ]
    (folder / "train.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dev.tsv").write_text("\n".join(rows[:6]) + "\n")
    call = (f"--model={encoder}", "--task=cola", f"--data={folder}")
    code, found = command(
        capsys, "finetune", *call, f"--workdir={tmp_path / 'w'}", "--epochs=1", *SETTINGS
    )
    assert code == 0, found
    assert found["metric"] == "matthews" and -1 <= found["heldout"]["matthews"] <= 1
    assert (found["train_examples"], found["heldout_examples"]) == (24, 6)
    assert found["labels"] == ["0", "1"]
    (folder / "dev.tsv").unlink()
    code, said = command(capsys, "evaluate", *call)
    assert code == 2 and "has no dev.tsv" in said


def test_a_set_by_name_is_bound_to_its_content_and_not_to_its_place(
    encoder, tmp_path, capsys, monkeypatch
):
    """The run goes on where the same rows come from a file, and not where the set has changed."""
    rows = [(f"{WORDS[n % 4]} {WORDS[n % 5]}", n % 2) for n in range(24)]

    def find(source):
        parts = {"train": rows, "validation": rows[:6]}
        split = source.removeprefix("hf:nyu-mll/glue:cola").removeprefix(":")
        classes = {"sentence": (), "label": ("unacceptable", "acceptable")}
        return Found(split, (*parts,), lambda split: Table(classes, lambda _: iter(parts[split])))

    monkeypatch.setattr(data_sets, "_find", find)
    source = "hf:nyu-mll/glue:cola"
    model, workdir = f"--model={encoder}", f"--workdir={tmp_path / 'w'}"
    call = ("finetune", model, "--task=cola", workdir, "--epochs=1", *SETTINGS)
    code, found = command(capsys, *call, f"--data={source}")
    assert code == 0, found
    assert (found["train_examples"], found["heldout_examples"]) == (24, 6)
    assert found["data"] == f"{source}:train" and found["labels"] == ["0", "1"]
    answer = ("evaluate", f"--model={tmp_path / 'w'}", "--task=cola", f"--data={source}")
    code, again = command(capsys, *answer, "--sequence_length=24")
    assert code == 0, again
    assert again["matthews"] == pytest.approx(found["heldout"]["matthews"])
    assert again["data"] == f"{source}:validation"
    for part, held in (("train", rows), ("dev", rows[:6])):
        lines = [f"gj04\t{label}\t*\t{text}\n" for text, label in held]
        (tmp_path / f"{part}.tsv").write_text("".join(lines))
    code, moved = command(capsys, *call, f"--data={tmp_path}")
    assert code == 0, moved
    assert moved["heldout"] == found["heldout"]
    rows[3] = (rows[3][0], 1 - rows[3][1])
    code, said = command(capsys, *call, f"--data={source}")
    assert code == 2 and "other contents of the train table" in said and source in said


def test_mnli_is_judged_in_the_order_of_the_models_labels(encoder, tmp_path, capsys):
    """Models on the Hub count entailment, neutral and contradiction in every order."""
    names = ["entailment", "neutral", "contradiction"]
    config = preset("bert_base").replace(
        **{**SHRUNK, "vocab_size": 100, "max_positions": 48}, pooler="tanh",
        heads=("sequence_classification",), num_labels=3)  # fmt: skip
    params = random_params(config)
    dev = tmp_path / "dev.tsv"
    rows = [f"{WORDS[n % 4]}\t{WORDS[n % 5]}\t{names[n % 3]}" for n in range(30)]
    dev.write_text("sentence1\tsentence2\tgold_label\n" + "\n".join(rows) + "\n")
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        head = jax.tree.map(lambda x, o=order: x[..., o], params["sequence_classification"])
        folder = tmp_path / str(order[0])
        turned = {**params, "sequence_classification": head}
        labels = [names[i] for i in order]
        interop.save_pretrained(folder, Model(config), turned, encoder, labels=labels)
        code, one = command(capsys, "evaluate", f"--model={folder}", "--task=mnli", f"--data={dev}")
        assert code == 0, one
        found.append(one)
    assert found[0]["labels"] == names != found[1]["labels"]
    for metric in ("accuracy", "macro_f1", "loss"):
        assert found[0][metric] == pytest.approx(found[1][metric])
    model = tmp_path / "nameless"
    interop.save_pretrained(model, Model(config), params, encoder)
    code, said = command(capsys, "evaluate", f"--model={model}", "--task=mnli", f"--data={dev}")
    assert code == 2 and "LABEL_0" in said and "contradiction" in said


def test_a_model_is_judged_by_its_own_labels(encoder, tmp_path, capsys):
    """Whatever their order; and what it has no name for is refused."""
    task = task_file(tmp_path / "task.tsv")
    options = ("--text_column=sentence", "--label_column=label", "--epochs=2", *SETTINGS)
    code, found = command(
        capsys, "finetune", f"--model={encoder}", f"--data={task}", f"--heldout={task}", f"--workdir={tmp_path / 'w'}", *options,
    )  # fmt: skip
    assert code == 0, found
    model, params = interop.from_pretrained(tmp_path / "w" / "model")
    tokenizer = tmp_path / "w" / "model"
    turned = jax.tree.map(lambda x: x, params)
    turned["sequence_classification"] = jax.tree.map(
        lambda x: x[..., ::-1], params["sequence_classification"]
    )
    interop.save_pretrained(tmp_path / "turned", model, turned, tokenizer, labels=("wet", "dry"))
    interop.save_pretrained(tmp_path / "others", model, params, tokenizer, labels=("no", "yes"))
    columns = ("--task.text_column=sentence", "--task.label_column=label")
    where = ("--task=classification", f"--data={task}", *columns, "--task.sequence_length=24")
    code, again = command(capsys, "evaluate", f"--model={tmp_path / 'turned'}", *where)
    assert code == 0, again
    assert again["labels"] == ["wet", "dry"]
    assert again["accuracy"] == pytest.approx(found["heldout"]["accuracy"])
    code, said = command(capsys, "evaluate", f"--model={tmp_path / 'others'}", *where)
    assert code == 2 and "'dry'" in said and "no, yes" in said
    code, said = command(capsys, "evaluate", f"--model={encoder}", *where)
    assert code == 2 and "no head 'sequence_classification'" in said
    code, said = command(capsys, "evaluate", f"--model={encoder}", *where, "--task.heder=no")
    assert code == 2 and "did you mean" in said and "header" in said


@pytest.mark.parametrize(
    "options, words",
    [
        (("--data=x.tsv",), ["--data", "--task"]),
        (("--out=x",), ["--out", "--task"]),
        (("--task.header=no",), ["--task=NAME"]),
        (("--task=cola", "--source=x.txt"), ["--source does not go with --task"]),
        (("--task=cola", "--teacher=x"), ["--teacher does not go with --task"]),
        (("--task=cola", "--data=x", "--sequence_length=1000"), ["1000", "max_positions=48"]),
        (("--task=colla", "--data=x"), ["did you mean 'cola'"]),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(encoder, capsys, options, words):
    code, said = command(capsys, "evaluate", f"--model={encoder}", *options)
    assert code == 2 and all(word in said for word in words), said


def test_test_rows_are_reported_and_choose_nothing(finished, tmp_path):
    data, other = task_file(tmp_path / "task.tsv"), tmp_path / "other.tsv"
    rows = data.read_text().splitlines()
    test, wrong = tmp_path / "test.tsv", {"wet": "dry", "dry": "wet"}
    test.write_text("\n".join(rows[:41]) + "\n")
    turned = [row.split("\t") for row in rows[1:41]]
    lines = [rows[0], *(f"{text}\t{wrong[label]}" for text, label in turned)]
    other.write_text("\n".join(lines) + "\n")

    def finetune(test, name, **more):
        return task_commands.finetune(
            str(finished[1] / "student"),
            data,
            tmp_path / name,
            test=test,
            epochs=1,
            batch_size=8,
            sequence_length=16,
            overrides={"stages.finetune.best": "accuracy", "stages.finetune.best_every": 9},
            **more,
        )

    one = finetune(test, "one", learning_rate=3e-3)
    two = finetune(other, "two", grid=(3e-3,), seeds=(0,))
    assert one["test_examples"] == two["test_examples"] == 40
    (found,) = two["test"]["accuracy"]["by_seed"]
    assert one["test"]["accuracy"] == pytest.approx(1 - found)
    assert one["heldout"]["loss"] == two["heldout"]["loss"]["median"]
    assert all(name in one["predictions"][-1] for name in ("task.test", "model."))
    weights = [pathlib.Path(found["model"], "model.safetensors") for found in (one, two)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((tmp_path / "two" / "finetune.json").read_text())["test"] == two["test"]
    assert conversion.locate(tmp_path / "two") == pathlib.Path(two["model"])
    (tmp_path / "two").rename(tmp_path / "moved")
    moved = conversion.locate(tmp_path / "moved")
    assert moved.is_dir() and moved.name == "model" and "moved" in str(moved)
    with pytest.raises(BadInput, match="holds a run or a model already"):
        finetune(other, "one", seeds=(0, 1))
    alone = task_commands.evaluate_task(one["model"], "classification", test, sequence_length=16)
    assert alone["accuracy"] == one["test"]["accuracy"] and alone["examples"] == 40


@pytest.mark.parametrize("metric, chosen", [("accuracy", 3e-4), ("loss", 1e-5)])
def test_a_learning_rate_is_chosen_by_the_held_out_rows(tmp_path, monkeypatch, metric, chosen):
    """The number that counts decides, in its own direction; what diverged is told and not taken."""
    ran = []

    def one(config, feed, workdir):
        rate, seed = config.stages.finetune.learning_rate, config.seed
        ran.append((rate, seed))
        if rate == 1.0 or seed == 7:
            raise TrainingStopped("half of the updates were skipped")
        value = float("nan") if rate == 0.5 else rate + seed / 10
        return {
            **dict.fromkeys(("task", "data", "labels", "hardware", "versions", "model"), ""),
            "train_examples": 9,
            "heldout_examples": 3,
            "test_examples": 3,
            "predictions": [],
            "metric": metric,
            "seed": seed,
            "seconds": 1.0,
            "warnings": ["doubtful"],
            "model": str(workdir),
            "heldout": {metric: value},
            "test": {metric: -value},
        }

    monkeypatch.setattr(task_commands, "_one", one)
    config = load_config("finetune")
    feed = types.SimpleNamespace(score="classification", metric=metric)
    rates = (1.0, 1e-5, 0.5, 3e-4)
    found = task_commands._several(config, feed, tmp_path, rates, (4, 2, 7))
    assert found["learning_rate"] == chosen
    assert ran == [*((rate, 4) for rate in rates), (chosen, 2), (chosen, 7)]
    assert found["seeds"] == [4, 2]
    assert found["grid"].keys() == {"1e-05", "0.5", "0.0003"}
    lost = [f"learning rate {rate:g}, seed {seed}" for rate, seed in ((1, 4), (chosen, 7))]
    said = "half of the updates were skipped"
    assert found["warnings"] == [*(f"{run}: {said}" for run in lost), "doubtful"]
    best = 4 if metric == "accuracy" else 2
    assert found["model"].endswith(f"seed-{best}")
    low, high = chosen + 0.2, chosen + 0.4
    assert found["heldout"][metric]["by_seed"] == [high, low]
    assert found["test"][metric]["median"] == pytest.approx(-chosen - 0.3)
    assert (found["heldout"][metric]["low"], found["heldout"][metric]["high"]) == (low, high)
    with pytest.raises(TrainingStopped, match="half of the updates"):
        task_commands._several(config, feed, tmp_path, (1.0,), (0,))


def test_nothing_is_learned_or_chosen_from_test_rows(tmp_path, capsys):
    table = task_file(tmp_path / "task.tsv")
    given = ["--config=finetune:smoke", f"--workdir={tmp_path / 'run'}"]
    given += [f"--config.feeds.task.{name}={table}" for name in ("source", "test")]
    for field in ("feed=task.test", "best_on=task.test"):
        more = ["--config.stages.finetune.best=accuracy", f"--config.stages.finetune.{field}"]
        assert cli.main(["train", *given, *more]) == 2
        assert "test rows are reported, and nothing is learned or chosen" in capsys.readouterr().err
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize(
    "given, words",
    [
        (("--grid=1e-4,x",), ("grid", "numbers with commas")),
        (("--grid=1e-4,1e-4",), ("grid=", "different learning rates")),
        (("--grid=0",), ("grid=", "learning rates, as 3e-5,1e-4")),
        (("--seeds=0,0",), ("seeds=", "twice")),
        (("--seeds=-1",), ("seed",)),
        (("--grid=1e-4", "--learning_rate=1e-3"), ("--learning_rate would do nothing",)),
        (("--seeds=0,1", "--seed=3"), ("--seed would do nothing",)),
        (("--test=",), ("test=''",)),
        (("--grid=1e-3,0.00100000001",), ("grid=", "different learning rates")),
        (
            ("--grid=1e-4", "--config.stages.finetune.learning_rate=0.5"),
            ("learning_rate would do",),
        ),
        (("--seeds=0,1", "--config.seed=9"), ("config.seed would do nothing",)),
        (("--task=retrieval", "--heldout=x"), ("is evaluated, not learned",)),
        (("--task=similarity",), ("is evaluated, not learned",)),
        (("--sequence_length=0",), ("sequence_length=0",)),
    ],
)
def test_several_runs_are_refused_before_the_first(finished, tmp_path, capsys, given, words):
    table = task_file(tmp_path / "task.tsv")
    model, out = finished[1] / "student", tmp_path / "out"
    code = cli.main(["finetune", f"--model={model}", f"--data={table}", f"--workdir={out}", *given])
    said = capsys.readouterr().err
    assert code == 2 and all(word in said for word in words) and len(said.splitlines()) == 1
    assert not out.exists()


def test_questions_are_parted_by_article(tmp_path):
    from jaxdistill.data.question_answering import by_article
    from jaxdistill.data.squad import Question, Questions

    rows = tuple(
        Question(
            f"{title}{n}", title and f"title {title}", f"context {title}{n % 2}", "q", (), True
        )
        for title in ("", *"abcdefghijklm")
        for n in range(4)
    )
    train, held = by_article(Questions(rows, notices=("said once",)), 0.3)
    assert sorted((*train.rows, *held.rows)) == sorted(rows) and len(held) and len(train)
    for part in ("title", "context"):
        ours, theirs = ({getattr(row, part) for row in rows.rows} for rows in (train, held))
        assert not (ours & theirs) - {""}
    assert (train.notices, held.notices) == (("said once",), ())


def test_the_positive_class_is_known_by_its_name(encoder, tmp_path, capsys):
    """A model whose labels are in the other order has the same F1, baseline and interval."""
    folder = tmp_path / "MRPC"
    folder.mkdir()
    rows = [f"{int(n % 3 > 0)}\t1\t2\t{WORDS[n % 4]}\t{WORDS[n % 5]}" for n in range(24)]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    (folder / "dev.tsv").write_text("\n".join([header, *rows]) + "\n")
    model, params = interop.from_pretrained(encoder)
    config = model.config.replace(heads=("sequence_classification",))
    params |= {"sequence_classification": random_params(config)["sequence_classification"]}
    turned = jax.tree.map(lambda x: x, params)
    turned["sequence_classification"] = jax.tree.map(
        lambda x: x[..., ::-1], params["sequence_classification"]
    )
    found = []
    for name, weights, labels in (("as", params, ("0", "1")), ("turned", turned, ("1", "0"))):
        tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100)
        interop.save_pretrained(tmp_path / name, Model(config), weights, tokenizer, labels=labels)
        call = (f"--model={tmp_path / name}", "--task=mrpc", f"--data={folder}")
        code, answer = command(capsys, "evaluate", *call, "--sequence_length=24")
        assert code == 0, answer
        found.append(answer)
    assert found[0]["labels"] != found[1]["labels"] and 0 < found[0]["accuracy"] < 1
    for name in ("accuracy", "f1", "majority_f1", "matthews"):
        assert found[0][name] == pytest.approx(found[1][name]), name
    low, high = found[1]["details"]["interval"]
    assert low <= found[1]["f1"] <= high
    assert found[0]["details"]["interval"] == pytest.approx([low, high], abs=0.05)


def test_test_rows_must_be_apart(encoder, tmp_path, capsys):
    table = task_file(tmp_path / "task.tsv", 40)
    other = tmp_path / "moved.tsv"
    other.write_bytes(table.read_bytes())
    call = ("finetune", f"--model={encoder}", f"--data={table}", f"--workdir={tmp_path / 'out'}")
    code, said = command(capsys, *call, f"--heldout={table}", f"--test={other}")
    assert code == 2 and "its rows are those that are learned from" in said
    dev = task_file(tmp_path / "dev.tsv", 20)
    code, said = command(capsys, *call, f"--heldout={dev}", f"--test={dev}")
    assert code == 2 and "its rows are those that are chosen by" in said
    assert not (tmp_path / "out" / "stages").exists()


def test_test_tags_are_read_as_the_training_tags(tmp_path):
    """A file that by itself would be taken for IOB1."""
    train = conll(tmp_path / "train.conll")
    (tmp_path / "test.conll").write_text("Paris x I-LOC\nstone x O\n\nAnna x I-PER\n")

    def opened(scheme):
        files = {"source": str(train), "test": str(tmp_path / "test.conll")}
        section = defaults.task("tagging", scheme=scheme, **files)
        feed = tasks.open_task("it", section, 0)
        return feed, tasks.test_of(feed, section, 0)

    (feed, test), (_, told) = opened("auto"), opened("BIO")
    assert feed.decided == {"scheme": "BIO"} and test.labels == feed.labels
    assert test.score == feed.score == "entities" and test.digests == told.digests
    file = str(tmp_path / "test.conll")
    alone = defaults.task("tagging", source=file, heldout=file, labels=feed.labels)
    guessed = tasks.open_task("it", alone, 0)
    assert guessed.digests["heldout"] != test.digests["test"]


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_labels_of_test_rows_that_training_lacks(tmp_path, task):
    """Refused, or wrong answers, as those of held-out rows."""
    files = {
        "classification": ("text\tlabel\na b\tyes\nc d\tno\n", "text\tlabel\na\tyes\nq\tmaybe\n"),
        "tagging": ("Paris B-LOC\nx O\n\nAnna B-PER\n", "Paris B-LOC\nBonn B-ORG\n"),
    }
    for name, text in zip(("train", "test"), files[task]):
        (tmp_path / f"{name}.tsv").write_text(text)
    columns = {"text_column": "text", "label_column": "label"} if task == "classification" else {}
    train, test = str(tmp_path / "train.tsv"), str(tmp_path / "test.tsv")
    section = defaults.task(task, source=train, heldout=train, test=test, **columns)
    feed = tasks.open_task("it", section, 0)
    with pytest.raises(BadInput, match="is not known"):
        tasks.test_of(feed, section, 0)
    section.unseen_labels = "wrong"
    found = tasks.test_of(feed, section, 0)
    assert found.labels == feed.labels
    tokenizer = train_wordpiece(["Paris Bonn Anna a b c d q x"] * 3, 100)
    reader = found.read(tokenizer)
    (batch,) = reader.heldout(4, None, ALONE)
    logits = np.zeros((2, len(found.labels)) if task == "classification" else (1, 9, 3), np.float32)
    at = feed.labels.index("yes" if task == "classification" else "B-LOC")
    logits[..., at] = 1
    answers = reader.answers({"logits": logits})
    scores = SCORES[found.score].of(answers, found)
    name = "accuracy" if task == "classification" else "token_accuracy"
    assert scores[name] == 0.5 and len(batch["input_ids"]) == 4

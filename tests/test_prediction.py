"""predict: every kind of answer, in every format, a row for each row; through the command line."""

import gzip
import json

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from jaxdistill import cli, interop
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import answering, predictions
from jaxdistill.models import Model, preset
from jaxdistill.prediction import _only_head, predict
from tests.interop.tiny import SHRUNK, random_params

WORDS = ("stone", "engine", "winter", "paper", "garden", "signal", "river", "Paris", "Anna")
LABELS, TAGS = ("dry", "wet", "so so"), ("O", "B-LOC", "B-PER")
TEXTS = ("river", "", "stone " * 40, "Anna in Paris", " ", "a\u2028b 😀", "winter " * 6, "x",
         "garden " * 9, "garden " * 7, "paper " * 30, "paper " * 29, "signal " * 5)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Networks of random numbers in folders. Some are MobileBERTs, whose tokens see their neighbours."""
    base = tmp_path_factory.mktemp("models")
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100)
    shrunk = {**SHRUNK, "vocab_size": 100, "max_positions": 32}
    bert = preset("bert_base").replace(**shrunk, pooler="tanh", num_labels=3)
    mobile = preset("mobilebert").replace(**shrunk, embedding_size=6, bottleneck_size=6, num_ffn=2)
    made = {
        "classes": mobile.replace(heads=("sequence_classification",), num_labels=3),
        "tags": bert.replace(heads=("token_classification",)),
        "number": bert.replace(heads=("sequence_classification",), num_labels=1, regression=True),
        "spans": mobile.replace(heads=("question_answering",)),
        "bert": bert.replace(heads=("sequence_classification",)),
    }
    for name, config in made.items():
        labels = {"tags": TAGS, "classes": LABELS, "bert": LABELS}.get(name)
        params = random_params(config)
        if name == "tags":  # else one of them is always the best
            params["token_classification"]["dense"]["kernel"] *= 10
            params["token_classification"]["dense"]["bias"][:] = -7, 4, 0
        interop.save_pretrained(base / name, Model(config), params, tokenizer, labels=labels)
    return base


def command(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


def lines(path, texts=TEXTS):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def objects(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.mark.parametrize("name", ["classes", "embedding", "tags"])
def test_a_row_is_answered_alike_in_any_company(name, models, tmp_path, monkeypatch):
    """Alone, in any order, on one device or eight, at the border of a stretch."""
    ending = "jsonl" if name == "tags" else "npy"

    def answers(texts, rows, batch_size):
        monkeypatch.setattr(answering, "ROWS", rows)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.{ending}"
        file = lines(tmp_path / "a.txt", texts)
        folder = models / ("bert" if name == "embedding" else name)
        head = name if name == "embedding" else None
        done = predict(folder, file, out, batch_size=batch_size, head=head)
        found = objects(out) if ending == "jsonl" else np.load(out, allow_pickle=False)
        assert len(found) == len(texts) == done["rows"]
        return found

    order = np.random.default_rng(0).permutation(len(TEXTS))
    alone = answers(TEXTS, 1, 8)
    others = [answers(TEXTS, 4, 8), answers([TEXTS[n] for n in order], 100, 8)]
    others[1] = [others[1][n] for n in np.argsort(order)]
    if name == "tags":
        assert others == [alone] * 2 and len({row["tags"][-1] for row in alone if row["tags"]}) > 1
        return
    assert alone.std() > 0.01
    on_one_device = [answers(TEXTS, 100, 3)] if name == "classes" else []
    for found in (*others, *on_one_device):
        # Of the largest: an absolute 1e-6 is two units in the last place of a number around 4.
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-6 * max(1, np.abs(alone).max()))


def test_classes_as_transformers_has_them(models, tmp_path, capsys):
    """In .tsv, .jsonl and .npy, of texts and of pairs, whatever is in their cells."""
    table = tmp_path / "a.csv.gz"
    rows = [
        ('a\tb\n"river"', "Anna"),
        ("", "x"),
        ("é stone 😀", "paper " * 30),
        ("Paris", "garden"),
    ]
    quoted = [",".join('"' + c.replace('"', '""') + '"' for c in row) for row in rows]
    table.write_bytes(gzip.compress(("\ufeffq,p\r\n" + "\r\n".join(quoted)).encode()))
    found = {}
    for ending in ("tsv", "jsonl", "npy"):
        code, said = command(
            capsys, "predict", f"--model={models / 'bert'}", f"--input={table}",
            f"--out={tmp_path / 'deep' / 'a'}.{ending}", "--text-column=q", "--pair-column=p",
        )  # fmt: skip
        assert code == 0, said
        assert (said["rows"], said["labels"]) == (4, list(LABELS)) and "1 of 4" in said["notices"][
            0
        ]
        found[ending] = tmp_path / "deep" / f"a.{ending}"
    logits = np.load(found["npy"], allow_pickle=False)
    assert logits.shape == (4, 3) and logits.dtype == np.float32
    answers = objects(found["jsonl"])
    assert [(row["text"], row["pair"]) for row in answers] == rows
    theirs = AutoModelForSequenceClassification.from_pretrained(models / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    for row, ours, own in zip(rows, answers, logits):
        with torch.no_grad():
            expected = theirs(
                **tokenizer(*row, truncation=True, max_length=32, return_tensors="pt")
            )
        np.testing.assert_allclose(own, expected.logits[0], atol=1e-5)
        assert ours["label"] == theirs.config.id2label[int(expected.logits.argmax())]
        assert [*ours["probabilities"]] == list(LABELS)
        np.testing.assert_allclose(
            jax.nn.softmax(own), [*ours["probabilities"].values()], atol=1e-6
        )
    header, *cells = [row.split("\t") for row in found["tsv"].read_text().split("\n")[:-1]]
    assert header == ["label", *LABELS, "text", "pair"] and len(cells) == 4
    assert cells[0][-2:] == ['a b "river"', "Anna"] and cells[1][-2:] == ["", "x"]
    for row, answer in zip(cells, answers):
        assert row[0] == answer["label"]
        assert [*map(float, row[1:4])] == [*answer["probabilities"].values()]


def test_numbers_and_embeddings(models, tmp_path, capsys):
    file = lines(tmp_path / "a.txt")
    for name, width in (("number", 1), ("embedding", 12)):
        model = (f"--model={models / 'bert'}", "--head=embedding")
        model = model if name == "embedding" else (f"--model={models / name}",)
        call = ("predict", *model, f"--input={file}")
        for ending in ("npy", "jsonl", "tsv"):
            code, said = command(capsys, *call, f"--out={tmp_path / name}.{ending}")
            assert code == 0, said
            assert "labels" not in said and said["rows"] == len(TEXTS)
        own = np.load(tmp_path / f"{name}.npy", allow_pickle=False)
        assert own.shape == (len(TEXTS), width)
        answers = objects(tmp_path / f"{name}.jsonl")
        assert [row["text"] for row in answers] == list(TEXTS)
        key = "score" if name == "number" else "embedding"
        given = np.reshape([row[key] for row in answers], own.shape)
        np.testing.assert_allclose(given, own, rtol=1e-6)
        header, *rows = (tmp_path / f"{name}.tsv").read_text().split("\n")[:-1]
        assert len(rows) == len(TEXTS)
        assert header.split("\t")[-1] == "text" and len(header.split("\t")) == width + 1
        np.testing.assert_array_equal([[*map(float, r.split("\t")[:-1])] for r in rows], given)


def test_an_embedding_is_the_mean_over_tokens(models, tmp_path):
    out = tmp_path / "a.npy"
    predict(models / "bert", lines(tmp_path / "a.txt", ["Anna in Paris"]), out, head="embedding")
    theirs = AutoModel.from_pretrained(models / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    with torch.no_grad():
        hidden = theirs(**tokenizer("Anna in Paris", return_tensors="pt")).last_hidden_state
    mean = hidden.mean(1)
    np.testing.assert_allclose(np.load(out), mean / np.linalg.norm(mean), atol=1e-5)


def test_the_only_head_that_answers_is_taken():
    assert _only_head(("mlm", "nsp", "embedding"), "x") == "embedding"
    with pytest.raises(BadInput, match="several heads.*sequence_classification or embedding"):
        _only_head(("sequence_classification", "embedding"), "x")
    with pytest.raises(BadInput, match="no head that answers.*mlm.*head=embedding"):
        _only_head(("mlm",), "x")


def test_tags_are_those_of_evaluate(models, tmp_path, capsys):
    """Of text lines, of CoNLL's columns, of sentences longer than a row; and blank lines stay."""
    sentences = [("Anna", "in", "Paris"), ("stone",) * 50, ("a\u00a0b",)]
    conll = "".join("".join(f"{w} x O\n" for w in words) + "\n" for words in sentences)
    file = tmp_path / "a.conll"
    file.write_text("-DOCSTART- x O\n\n" + conll.replace("Paris x O", "Paris x B-LOC"))
    shown = " \t".join(map(" ".join, sentences[:1]))
    text = lines(tmp_path / "a.txt", [f" {shown}", "", " ".join(sentences[1]), *sentences[2]])
    model = models / "tags"
    code, said = command(
        capsys, "evaluate", f"--model={model}", "--task=tagging", f"--data={file}", f"--out={tmp_path}",
    )  # fmt: skip
    assert code == 0, said
    answers = (tmp_path / "answers.tsv").read_text().split("\n")
    expected = [line.split("\t")[::2] for line in answers]
    call = ("predict", f"--model={model}")
    columns, words = tmp_path / "columns.tsv", tmp_path / "words.tsv"
    assert command(capsys, *call, f"--input={file}", f"--out={columns}")[0] == 0
    code, said = command(capsys, *call, f"--input={text}", f"--out={words}")
    assert code == 0, said
    assert said["rows"] == 4 and "cut between words" in said["notices"][0]
    found = columns.read_text()
    assert [line.split("\t") for line in found.split("\n")[:-1]] == expected
    first, rest = found.split("\n\n", 1)
    assert words.read_text() == f"{first}\n\n\n{rest}"
    assert len({cells[-1] for cells in expected}) > 2
    out = tmp_path / "a.jsonl"
    code, said = command(
        capsys, *call, f"--input={file}", f"--out={out}", "--token-column=-2", "--separator= "
    )
    assert code == 0, said
    assert [row["tokens"] for row in objects(out)] == [["x"] * len(words) for words in sentences]
    code, said = command(
        capsys, *call, f"--input={file}", f"--out={tmp_path / 'b.tsv'}", "--header=no"
    )
    assert code == 2 and "columns of words" in said


def test_answers_to_questions_are_those_of_evaluate(models, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(2)
    contexts = [" ".join(rng.permutation(WORDS * 8)) for _ in range(5)]
    rows = [{"id": f"n{n}", "context": c, "question": "é Anna"} for n, c in enumerate(contexts)]
    labelled = [
        {**row, "answers": {"text": [], "answer_start": []}, "is_impossible": n > 2}
        if n > 2
        else {**row, "answers": [{"text": row["context"][:5], "answer_start": 0}]}
        for n, row in enumerate(rows)
    ]
    bare, file = tmp_path / "bare.json", tmp_path / "labelled.json"
    bare.write_text(json.dumps(rows))
    file.write_text(json.dumps(labelled))
    monkeypatch.setattr(answering, "_QUESTIONS", 2)
    by = {"stride": 8, "question_length": 6, "sequence_length": 24}
    code, said = command(
        capsys, "evaluate", f"--model={models / 'spans'}", "--task=question_answering", f"--data={file}",
        f"--out={tmp_path}", "--sequence_length=24", "--task.stride=8", "--task.question_length=6",
    )  # fmt: skip
    assert code == 0, said
    options = [f"--{name}={value}" for name, value in by.items()]
    call = ("predict", f"--model={models / 'spans'}", f"--input={bare}", *options)
    code, said = command(capsys, *call, f"--out={tmp_path / 'a.json'}")
    assert code == 0, said
    assert len(said["out"]) == 3
    for name, path in zip(("predictions", "nbest_predictions", "null_odds"), said["out"]):
        theirs = json.loads((tmp_path / f"answers.{name}.json").read_text())
        with open(path) as ours:
            ours = json.load(ours)
        if name == "predictions":
            assert ours == theirs
        elif name == "null_odds":
            assert ours == pytest.approx(theirs, abs=1e-5)
        else:
            assert [one["text"] for one in ours["n3"]] == [one["text"] for one in theirs["n3"]]
    code, said = command(capsys, *call, f"--out={tmp_path / 'b.json'}", "--null_threshold=inf")
    assert code == 0, said
    assert all(json.loads((tmp_path / "b.json").read_text()).values()) and len(said["out"]) == 2


@pytest.mark.parametrize(
    "name, out, options, words",
    [
        ("classes", "a.txt", (), [".jsonl, .npy, .tsv"]),
        ("tags", "a.npy", (), ["token_classification", ".tsv, .jsonl"]),
        ("spans", "a.tsv", (), ["question_answering", ".json"]),
        ("classes", "a.tsv", ("--head=embeding",), ["did you mean 'embedding'"]),
        ("classes", "a.npy", ("--head=question_answering",), ["no head 'question_answering'"]),
        ("classes", "a.tsv", ("--stride=8",), ["stride does not go", "text_column"]),
        ("classes", "a.tsv", ("--token_column=1",), ["token_column does not go"]),
        ("bert", "a.npy", ("--head=embedding", "--pair_column=1"), ["pair_column"]),
        ("classes", "a.tsv", ("--sequence_length=99",), ["99", "max_positions=32"]),
        ("classes", "a.tsv", ("--batch_size=0",), ["batch_size=0"]),
        ("classes", "a.tsv", ("--text_column=b",), ["no column 'b'", "valid: 'a'|valid: river"]),
        ("classes", "a.tsv", ("--label_column=b",), ["--label_column=b", "unknown"]),
        ("classes", "there.tsv", (), ["there already"]),
        ("nowhere", "a.tsv", (), ["nowhere"]),
        ("multi", "a.tsv", (), ["any number of labels", ".npy"]),
        ("alike", "a.tsv", (), ["several classes called 'dry'"]),
        ("broken", "a.tsv", (), ["not finite"]),
    ],
)
def test_what_cannot_be_answered_is_refused(models, tmp_path, capsys, name, out, options, words):
    """In one line, and nothing is left behind."""
    model = models / name
    if name in ("multi", "alike"):
        model = tmp_path / name
        model.mkdir()
        for file in (models / "bert").iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        values = json.loads((model / "config.json").read_text())
        values["problem_type"] = "multi_label_classification" if name == "multi" else None
        if name == "alike":
            values["id2label"] = {"0": "dry", "1": "dry", "2": "wet"}
        (model / "config.json").write_text(json.dumps(values))
    if name == "broken":
        found, params = interop.from_pretrained(models / "bert")
        params["sequence_classification"] = jax.tree.map(
            lambda x: np.full_like(x, 3e38), params["sequence_classification"]
        )
        model = tmp_path / name
        interop.save_pretrained(model, found, params, models / "bert", labels=LABELS)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "there.tsv").write_text("dear\n")
    code, said = command(
        capsys, "predict", f"--model={model}", f"--input={lines(tmp_path / 'a.txt')}",
        f"--out={folder / out}", *options,
    )  # fmt: skip
    assert code == 2 and all(any(w in said for w in word.split("|")) for word in words), said
    assert said.startswith("jaxdistill: ") or "predicting" in said
    assert [path.name for path in folder.iterdir()] == ["there.tsv"]
    assert (folder / "there.tsv").read_text() == "dear\n"


def test_a_stopped_call_leaves_no_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "ROWS", 4)
    true, calls = predictions.predict, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(predictions, "predict", stopped)
    out = tmp_path / "out" / "a.tsv"
    with pytest.raises(KeyboardInterrupt):
        predict(models / "bert", lines(tmp_path / "a.txt"), out)
    assert len(calls) == 3 and not list(out.parent.iterdir())
    out.touch()  # as mktemp makes it: nothing is lost
    calls += [1]
    predict(models / "bert", tmp_path / "a.txt", out)
    assert len(out.read_text().splitlines()) > len(TEXTS)


# What the files of GLUE's test sets look like, and the name of a model that can answer.
GLUE_TESTS = {
    "cola": ("test.tsv", "index\tsentence", "{n}\t{a}", "two"),
    "sst2": ("test.tsv", "index\tsentence", "{n}\t{a}", "two"),
    "mrpc": ("test.tsv.gz", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "{n}\t1\t2\t{a}\t{b}", "two"),
    "stsb": ("test.tsv", "index\tsentence1\tsentence2", "{n}\t{a}\t{b}", "number"),
    "mnli_mm": ("test_mismatched.tsv", "index\tsentence1\tsentence2", "{n}\t{a}\t{b}", "three"),
}  # fmt: skip


@pytest.mark.parametrize("task", GLUE_TESTS)
def test_a_submission_to_glue(task, models, tmp_path, capsys, monkeypatch):
    name, header, form, model = GLUE_TESTS[task]
    monkeypatch.setattr(answering, "ROWS", 3)
    labels = {"two": ("0", "1"), "three": ("neutral", "contradiction", "entailment")}.get(model)
    folder = models / "number"
    if labels:
        config = preset("bert_base").replace(
            **{**SHRUNK, "vocab_size": 100, "max_positions": 32, "num_labels": len(labels)},
            heads=("sequence_classification",),
            pooler="tanh",
        )
        folder, tokenizer = tmp_path / "model", AutoTokenizer.from_pretrained(models / "number")
        interop.save_pretrained(
            folder, Model(config), random_params(config), tokenizer, labels=labels
        )
    pairs = [(f'{a} "', b) for a, b in zip(WORDS, WORDS[1:])]  # a mark that no quoting closes
    rows = [header, *(form.format(n=n, a=a, b=b) for n, (a, b) in enumerate(pairs))]
    data = ("\n".join(rows) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    call = ("predict", f"--model={folder}", f"--task={task}", f"--input={tmp_path}")
    code, done = command(capsys, *call, f"--out={tmp_path / 'T.tsv'}")
    assert code == 0 and done["rows"] == len(pairs), done
    head, *found = (tmp_path / "T.tsv").read_text().splitlines()
    assert head == "index\tprediction"
    assert [line.split("\t")[0] for line in found] == [str(n) for n in range(len(pairs))]
    table = tmp_path / "plain.jsonl"
    both = "pair" if "b" in form.format(n=0, a="a", b="b") else ""
    table.write_text("".join(json.dumps({"text": a, "pair": b}) + "\n" for a, b in pairs))
    plain = [f"--pair_column={both}"] if both else []
    out = tmp_path / "plain_out.jsonl"
    assert command(capsys, *call[:2], f"--input={table}", f"--out={out}", *plain)[0] == 0
    answers = [str(row.get("label", row.get("score"))) for row in objects(out)]
    assert [line.split("\t")[1] for line in found] == answers
    assert model == "number" or set(answers) <= set(labels)


@pytest.mark.parametrize(
    "model, options, words",
    [
        ("classes", ("--task=cola", "--out=x.tsv"), ("dry, wet, so so", "asks for 0, 1")),
        ("number", ("--task=rte", "--out=x.tsv"), ("answers with a number", "entailment")),
        ("number", ("--task=stb", "--out=x.tsv"), ("did you mean 'stsb'",)),
        ("number", ("--task=stsb", "--out=x.npy"), ("takes a .tsv file",)),
        ("number", ("--task=stsb", "--out=x.tsv", "--header=no"), ("header does not go with",)),
        (
            "number",
            ("--task=stsb", "--out=x.tsv", "--head=embedding"),
            ("does not go with the head",),
        ),
        ("number", ("--task=stsb", "--out=x.tsv"), ("has no test.tsv; it holds",)),
    ],
)
def test_no_submission_of_what_was_not_asked(
    model, options, words, models, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, said = command(
        capsys, "predict", f"--model={models / model}", f"--input={tmp_path}", *options
    )
    assert code == 2 and all(word in said for word in words), said
    assert not any(tmp_path.iterdir())


def test_rows_that_come_or_go_meanwhile_are_refused(tmp_path):
    stream = answering._Stream([("a",)], 2, tmp_path / "a.jsonl", 8)
    with pytest.raises(BadInput, match="2 rows and then 1"):
        stream.answer(lambda stretch, _: answering._Answers(iter([{"text": "a"}]), {}))
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(models, tmp_path, capsys):
    """Neither beside the answers to questions, nor where no folder can be made; and no setting is lost."""
    (tmp_path / "a.null_odds.json").write_text("mine")
    (tmp_path / "file.tsv").write_text("mine")
    squad = {"id": "1", "context": "Anna in Paris", "question": "river", "answers": []}
    (tmp_path / "q.jsonl").write_text(json.dumps(squad) + "\n")
    (tmp_path / "t.csv").write_text('"a"\n"b"\n')
    lines(tmp_path / "t.txt")
    short = ("--sequence_length=30", "--question_length=6", "--stride=6")
    for model, file, out, options, words in (
        (
            "spans",
            "q.jsonl",
            "a.json",
            short,
            "which is written beside the answers, is there already",
        ),
        ("spans", "q.jsonl", "b.json", (*short, "--null_threshold=nan"), "null_threshold=nan"),
        ("number", "t.txt", "file.tsv/x.tsv", (), "writing"),
        ("number", "t.txt", "x.tsv", ("--sequence_length=0",), "sequence_length=0: expected 8"),
        ("number", "t.csv", "x.tsv", ("--quoting=none",), "cells of a .csv are quoted"),
    ):
        call = (
            f"--model={models / model}",
            f"--input={tmp_path / file}",
            f"--out={tmp_path / out}",
        )
        code, said = command(capsys, "predict", *call, *options)
        assert code == 2 and words in said and len(said.splitlines()) == 1, said
    assert {(tmp_path / name).read_text() for name in ("a.null_odds.json", "file.tsv")} == {"mine"}
    call = (f"--model={models / 'spans'}", f"--input={tmp_path / 'q.jsonl'}")
    code, _ = command(
        capsys, "predict", *call, f"--out={tmp_path / 'c.json'}", *short, "--null_threshold=-inf"
    )
    assert code == 0 and json.loads((tmp_path / "c.json").read_text()) == {"1": ""}

"""Intents and slots as an ordinary task: learnt, evaluated, distilled by soft labels, and read by
transformers."""

import json
import pathlib

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.bert.modeling_bert import BertForTokenClassification

from jaxdistill import defaults, interop, prediction, run, task_commands
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.models import Model, preset
from tests.interop.tiny import random_params
from tests.test_task_commands import WORDS

torch.set_num_threads(1)
SLOTS = {"Paris": "B-place", "Anna": "B-person"}
SHAPE = dict(
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
    initializer_range=0.2,
)
BATCH = 12  # which does not split over the devices of the tests: one compiles faster


def utterances(folder, number, seed):
    """The intent is whether a river is among the words."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rows = [[str(word) for word in rng.choice(WORDS, 5)] for _ in range(number)]
    for name, lines in (
        ("seq.in", map(" ".join, rows)),
        ("seq.out", (" ".join(SLOTS.get(word, "O") for word in row) for row in rows)),
        ("label", ("Swim" if "river" in row else "Walk" for row in rows)),
    ):
        (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intents")
    utterances(folder / "train", 240, 0)
    utterances(folder / "valid", 60, 1)
    return folder


@pytest.fixture(scope="module")
def tuned(folder):
    """What `finetune` says of an encoder without heads."""
    config = preset("bert_base").replace(**SHAPE, vocab_size=100, heads=())
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100)
    interop.save_pretrained(folder / "encoder", Model(config), random_params(config), tokenizer)
    return task_commands.finetune(
        folder / "encoder",
        folder / "train",
        folder / "tuned",
        task="intent_slots",
        heldout=folder / "valid",
        epochs=6,
        batch_size=BATCH,
        learning_rate=6e-3,
        overrides=("stages.finetune.dropout=False",),
    )


def check_learnt(row):
    assert row["frame_accuracy"] > row["majority_frame_accuracy"] + 0.3, row
    assert row["intent_accuracy"] > row["majority_intent_accuracy"] + 0.2, row
    assert row["slot_f1"] > 0.8, row


def test_it_is_learnt_and_evaluated(folder, tuned):
    check_learnt(tuned["heldout"])
    assert tuned["metric"] == "frame_accuracy" and tuned["head"] == "new: the model has none"
    out = folder / "out"
    again = task_commands.evaluate_task(
        folder / "tuned", "intent_slots", folder / "valid", out=out, batch_size=BATCH
    )
    for name in ("frame_accuracy", "intent_accuracy", "slot_f1", "slot_precision", "slot_recall"):
        assert again[name] == pytest.approx(tuned["heldout"][name]), name
    written = [pathlib.Path(path) for path in tuned["predictions"]]
    (table,) = (path for path in written if path.suffix == ".tsv")
    assert (out / "answers.tsv").read_text() == table.read_text()
    low, high = again["details"]["interval"]
    assert low <= again["frame_accuracy"] <= high


def test_transformers_gives_the_same_answers(folder, tuned):
    """Its own token classifier from the exported folder."""
    network = BertForTokenClassification.from_pretrained(tuned["model"]).eval()
    names = [network.config.id2label[number] for number in range(network.config.num_labels)]
    assert names == ["O", "B-person", "B-place", "intent=Swim", "intent=Walk"]
    table = (folder / "tuned" / "predictions" / "task" / "model.tsv").read_text()
    blocks = [block.splitlines() for block in table.strip().split("\n\n")]
    cells = [list(zip(*(line.split("\t") for line in block[2:]))) for block in blocks]
    inputs = AutoTokenizer.from_pretrained(tuned["model"])(
        [list(words) for words, *_ in cells],
        is_split_into_words=True,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = network(**inputs).logits.numpy()
    right = []
    for row, ((truth, found, *_), (words, tags, answers)) in enumerate(zip(blocks, cells)):
        firsts = [inputs.word_ids(row).index(word) for word in range(len(words))]
        assert [names[number] for number in logits[row, firsts, :3].argmax(-1)] == list(answers)
        intent = names[3 + logits[row, 0, 3:].argmax()].removeprefix("intent=")
        assert found == f"# found = {intent}"
        right.append(truth == f"# intent = {intent}" and tags == answers)
    assert len(right) == 60 and np.mean(right) == pytest.approx(tuned["heldout"]["frame_accuracy"])


def test_predict_tells_intents_and_slots(folder, tuned):
    """The same answers without labels; a line without words has no intent."""
    lines = (folder / "valid" / "seq.in").read_text().splitlines()
    (folder / "words.txt").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    for name in ("found.tsv", "found.jsonl"):
        done = prediction.predict(tuned["model"], folder / "words.txt", folder / name)
        assert done["rows"] == len(lines) + 1
    rows = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    assert rows.pop(1) == {"intent": "", "tokens": [], "tags": []}
    table = (folder / "tuned" / "predictions" / "task" / "model.tsv").read_text()
    blocks = [block.splitlines() for block in table.strip().split("\n\n")]
    assert [f"# found = {row['intent']}" for row in rows] == [block[1] for block in blocks]
    answers = [[line.split("\t")[2] for line in block[2:]] for block in blocks]
    assert [row["tags"] for row in rows] == answers and len(rows) == 60
    written = [block.splitlines() for block in (folder / "found.tsv").read_text().split("\n\n")]
    assert written[0][0] == f"# intent = {rows[0]['intent']}" and written[1] == ["# intent = "]
    assert written[0][1:] == ["\t".join(pair) for pair in zip(rows[0]["tokens"], rows[0]["tags"])]


def test_a_student_learns_both_from_soft_labels_alone(folder, tuned):
    config = defaults.recipe("intents")
    config.feeds.it = defaults.task(
        "intent_slots",
        source=str(folder / "train"),
        heldout=str(folder / "valid"),
        sequence_length=16,
    )
    config.networks.teacher = defaults.network(init=tuned["model"])
    config.networks.student = defaults.network(
        "bert_base", heads=("token_classification",), **SHAPE
    )
    config.stages.distill = defaults.stage(
        "soft_labels", "student", feed="it", batch_size=BATCH, epochs=6.0, optimizer="adamw",
        learning_rate=2e-3, warmup_ratio=0.1, hard_labels=0.0,
    )  # fmt: skip
    config.order, config.mesh.data, config.log_every = ("distill",), 1, 20
    config.evaluation.batch_size = BATCH
    networks = run.train(config, folder / "distilled")["networks"]
    assert networks["teacher"]["it"]["frame_accuracy"] == pytest.approx(
        tuned["heldout"]["frame_accuracy"]
    )
    check_learnt(networks["student"]["it"])

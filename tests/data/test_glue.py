"""GLUE's files in their official columns, as transformers reads them; six rows each, made by hand."""

import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data import examples
from jaxdistill.data.glue import GLUE
from jaxdistill.data.tasks import open_task
from jaxdistill.errors import BadInput

# The header of each file, "" where there is none; what stands in other columns is filler.
HEADERS = {
    "cola": "",
    "sst2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
}
HEADERS["mnli_mm"] = HEADERS["mnli"]
THEIRS = {"sst2": "sst-2", "stsb": "sts-b", "mnli_mm": "mnli-mm"}
TEXTS = ['He said "no', "it's 5\u00a0km", '"quoted"', "a, b", "one's own", "caf\u00e9 \U0001f600"]


def write(folder, name, rows=6):
    """train.tsv and the dev file; numbers of other columns say which they are."""
    row = GLUE[name]
    header = HEADERS[name].split("|" if "|" in HEADERS[name] else " ") if HEADERS[name] else []
    for part in ("train", row.dev):
        lines = ["\t".join(header)] if header else []
        for n in range(rows):
            label = row.labels[n % len(row.labels)] if row.labels else f"{n}.250"
            if name == "cola":
                cells = ["gj04", label, "*", TEXTS[n]]
            else:
                known = {row.text: TEXTS[n], row.pair: TEXTS[(n + 1) % 6], row.label: label}
                cells = [known.get(column, f"{n}{column[:2]}") for column in header]
            lines.append("\t".join(cells))
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GLUE)
def test_columns_are_those_that_transformers_reads(name, tmp_path, monkeypatch):
    from transformers.data.processors.glue import glue_processors

    folder = write(tmp_path, name)
    processor = glue_processors[THEIRS.get(name, name)]()
    seen = []
    real = examples.read_parts
    monkeypatch.setattr(examples, "read_parts", lambda *a: seen.append(real(*a)) or seen[-1])
    feed = open_task("it", defaults.task(name, source=folder), 0)
    theirs = (processor.get_train_examples(folder), processor.get_dev_examples(folder))
    for ours, expected in zip(seen[0], theirs, strict=True):
        assert len(ours) == len(expected) == 6
        assert list(ours.texts) == [example.text_a for example in expected]
        assert list(ours.pairs or [None] * 6) == [example.text_b for example in expected]
        assert list(ours.labels) == [example.label for example in expected]
    assert list(feed.labels) == [label for label in processor.get_labels() if label is not None]
    scores = {0: "regression", 2: "binary", 3: "classification"}
    assert feed.score == scores[len(feed.labels)]


def test_a_heldout_file_of_ones_own_and_files_in_place_of_the_folder(tmp_path):
    folder = write(tmp_path, "rte")
    (tmp_path / "other.tsv").write_text((tmp_path / "dev.tsv").read_text())
    feed = open_task(
        "it", defaults.task("rte", source=folder, heldout=str(tmp_path / "other.tsv")), 0
    )
    assert feed.tables["heldout"].endswith("other.tsv")
    both = open_task("it", defaults.task("rte", source=folder, heldout=folder), 0)
    assert both.tables["train"] == both.tables["heldout"] == str(tmp_path / "dev.tsv")
    single = defaults.task("rte", source=str(tmp_path / "train.tsv"), heldout_fraction=0.5)
    feed = open_task("it", single, 0)
    assert feed.rows + feed.heldout_rows == 6 and feed.labels == ("entailment", "not_entailment")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"config.feeds.it.source is empty.*'mnli'.*dev_matched.tsv"):
        open_task("it", defaults.task("mnli"), 0)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t1\nb\t0\n")
    with pytest.raises(BadInput, match="has no dev.tsv; it holds train.tsv"):
        open_task("it", defaults.task("sst2", source=str(tmp_path)), 0)
    folder = write(tmp_path, "qnli")
    text = (tmp_path / "dev.tsv").read_text().replace("not_entailment", "neutral")
    (tmp_path / "dev.tsv").write_text(text)
    with pytest.raises(BadInput, match="'neutral'"):
        open_task("it", defaults.task("qnli", source=folder), 0)


def test_scores_that_count_are_glues():
    counts = {name: row.metric for name, row in GLUE.items()}
    assert counts == {
        **dict.fromkeys(GLUE, "accuracy"),
        "cola": "matthews",
        "mrpc": "f1",
        "qqp": "f1",
        "stsb": "pearson",
    }
    assert np.all([row.header == ("no" if name == "cola" else "yes") for name, row in GLUE.items()])

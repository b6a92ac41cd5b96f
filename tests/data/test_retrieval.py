"""Search as a feed: a row for each text, and what is made of their embeddings."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tasks import default_settings, open_task


def opened(**settings):
    section = {"kind": "retrieval", **default_settings("retrieval"), **settings}
    return open_task("it", ConfigDict(section), 0)


@pytest.fixture
def folder(tmp_path):
    """Three documents, two of which are queries too, as in ArguAna."""
    texts = [{"_id": name, "text": f"{name} " * number} for name, number in zip("abc", (3, 40, 5))]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts[:2]))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\tc\t1\nb\ta\t1\n")
    return tmp_path


def test_every_text_is_a_row_queries_first(folder, tokenizer):
    feed = opened(source=str(folder), sequence_length=16)
    assert (feed.rows, feed.heldout_rows, feed.head, feed.losses) == (5, 2, "embedding", ())
    reader = feed.read(tokenizer)
    assert reader.parts.heldout.number == 5
    assert reader.notices == ("2 of 5 texts of 'it' (40.0%) are longer than 16 tokens, and cut",)
    rows = reader.parts.heldout.fetch(np.arange(5), 16)["input_ids"]
    assert rows[0].tolist() == rows[2].tolist() and rows[1].tolist() == rows[3].tolist()
    numbers = [row for batch in reader.heldout(2, None, ALONE) for row in batch["row"]]
    assert sorted(set(numbers)) == [0, 1, 2, 3, 4]
    assert not opened(source=str(folder), sequence_length=64).read(tokenizer).notices


def test_a_query_that_is_a_document_is_not_its_own_answer(folder, tokenizer):
    """By its cosine it would be the first."""
    documents = np.array([[1.0, 0, 0], [0, 1, 0], [0.6, 0, 0.8]], np.float32)
    reader = opened(source=str(folder)).read(tokenizer)
    answers = reader.answers({"embedding": np.concatenate([documents[:2], documents])})
    assert answers.found.ranks == ((1,), (1,)) and answers.truth == ((2,), (0,))
    names, *lines = [line.split("\t") for line in answers.files["tsv"].splitlines()]
    assert names == ["query", "rank", "document_1", "cosine_1", "document_2", "cosine_2",
                     "document_3", "cosine_3", "text"]  # fmt: skip
    assert lines[0] == ["a", "1", "c", "0.6000", "b", "0.0000", "", "", "a a a"]
    assert lines[1][:6] == ["b", "1", "a", "0.0000", "c", "0.0000"]

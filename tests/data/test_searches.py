"""Queries, documents and judgements from every layout: what is kept, merged, left out and counted."""

import json

import pytest

from jaxdistill.data.searches import SearchFiles, read_searches
from jaxdistill.errors import BadInput

DOCUMENTS = "a\tred fox\nb\tblue sky\nc\tgreen tree\n"
QUERIES = "1\twhich fox\n2\twhat is blue\n"


def read(folder, relevant, name="relevant.tsv", documents=DOCUMENTS, queries=QUERIES, **settings):
    where = {"documents": "d.tsv", "queries": "q.tsv", "relevant": name}
    for kind, content in (("documents", documents), ("queries", queries), ("relevant", relevant)):
        (folder / where[kind]).write_text(content)
        where[kind] = str(folder / where[kind])
    return read_searches(SearchFiles(**where, **settings), "config.feeds.it")


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "relevant, name",
    [
        ("1\ta\n2\tb\n1\tc\n", "two.tsv"),
        ("qid\tpid\n1\ta\n2\tb\n1\tc\n", "header.tsv"),
        ("query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t2\n1\tc\t1.0\n", "three.tsv"),
        ("1\ta\t1\n2\tb\t1\n1\tc\t3\n1\tb\t0\n2\ta\t-2\n", "scores.tsv"),
        ("1 0 a 1\n2 0 b 2\n1 0 c 1\n1 0 b 0\n", "trec.txt"),
        ("1\t0\ta\t1\n2\tQ0\tb\t1\n1\t0\tc\t1\n", "trec.tsv"),
        ("1   0  a  1\n\n2   0  b  2\n1   0  c  1\n\n", "aligned.qrels"),
        ("query,document,score\n1,a,1\n2,b,1\n1, c ,1\n", "three.csv"),
        ("\ufeff1\ta\t1\r\n2\tb\t1\r\n1\tc\t1\r\n", "windows.tsv"),
        ("1\ta\n1\ta\n2\tb\n1\tc\n2\tb\n", "twice.tsv"),
    ],
)
def test_every_form_of_judgements(relevant, name, tmp_path):
    found = read(tmp_path, relevant, name)
    assert found.query_ids == ("1", "2") and found.document_ids == ("a", "b", "c")
    assert found.queries == ("which fox", "what is blue")
    assert found.documents == ("red fox", "blue sky", "green tree")
    assert found.relevant == ((0, 2), (1,))
    assert found.left_out_Q.tolist() == [-1, -1] and not found.notices


def test_a_first_row_is_never_lost(tmp_path):
    """A word for a score is a header only where the ids are of no file, as are the names of ids."""
    with pytest.raises(BadInput, match="line 1 has the score 'x', expected a number"):
        read(tmp_path, "1\ta\tx\n2\tb\t1\n")
    with pytest.raises(BadInput, match="line 1 names the query '9'"):
        read(tmp_path, "9\tz\n2\tb\n")
    with pytest.raises(BadInput, match="line 1 names the query '9'"):
        read(tmp_path, "9\tz\t1\n2\tb\t1\n")
    with pytest.raises(BadInput, match="line 1 names the document 'z'"):
        read(tmp_path, "1\tz\tscore\n2\tb\t1\n")
    with pytest.raises(BadInput, match="line 2 names the query 'qid'"):
        read(tmp_path, "2\tb\nqid\tpid\n")


def test_queries_without_a_relevant_document_are_left_out_and_counted(tmp_path):
    found = read(tmp_path, "1\ta\t0\n2\tb\t1\n")
    assert found.query_ids == ("2",) and found.relevant == ((1,),)
    (said,) = found.notices
    assert said.startswith("1 of 2 queries of ") and said.endswith("and are left out")


@pytest.mark.parametrize(
    "queries, settings",
    [
        ("qid\ttext\n" + QUERIES, {}),
        ("_id\tquestion\n" + QUERIES, {}),
        ("Nummer\tFrage\n" + QUERIES, {"header": "yes"}),
        (QUERIES, {"header": "no"}),
        (QUERIES.replace("\t", ";"), {"separator": ";"}),
        ('1\t"which\nfox"\n2\t"what is blue"\n', {"quoting": "quoted"}),
    ],
)
def test_every_form_of_a_table_of_texts(queries, settings, tmp_path):
    documents = DOCUMENTS
    if settings.get("header") == "yes":
        documents = "Nummer\tText\n" + documents
    found = read(
        tmp_path, "1\ta\n2\tb\n", queries=queries, **settings,
        documents=documents.replace("\t", settings.get("separator", "\t")),
    )  # fmt: skip
    assert [" ".join(text.split()) for text in found.queries] == ["which fox", "what is blue"]
    assert len(found.documents) == 3


def beir(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(jsonl(*corpus))
    (folder / "queries.jsonl").write_text(jsonl(*queries))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return read_searches(SearchFiles(source=str(folder), split="dev"), "config.feeds.it")


def test_a_beir_folder(tmp_path):
    """A title is a part of the text; ids may be numbers; other keys do not matter."""
    found = beir(
        tmp_path,
        [
            {"_id": "a", "title": " Fox ", "text": "It is red.", "metadata": {"url": "x"}},
            {"_id": "b", "title": "", "text": "Blue sky."},
            {"_id": "c", "title": None, "text": "Green."},
            {"_id": 7, "text": ""},
        ],
        [{"_id": 1, "text": "which fox", "metadata": {}}, {"_id": "2", "text": "other split"}],
        "1\ta\t1\n",
    )
    assert found.documents == ("Fox It is red.", "Blue sky.", "Green.", "")
    assert found.document_ids == ("a", "b", "c", "7") and found.query_ids == ("1",)
    empty, left_out = found.notices
    assert "the text of 1 of 4 ids is empty" in empty and left_out.startswith("1 of 2 queries")
    assert found.place == str(tmp_path)


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path):
    """As in ArguAna; unless it is said to be relevant."""
    texts = [{"_id": name, "text": f"text {name}"} for name in "abc"]
    found = beir(tmp_path, texts, texts, "a\tb\t1\nb\tc\t1\nc\tc\t1\n")
    assert found.left_out_Q.tolist() == [0, 1, -1]
    assert found.notices[0].startswith("2 queries of ") and "as BEIR does" in found.notices[0]
    # Numbers of queries and of documents in three files have nothing to do with each other.
    assert read(tmp_path, "1\t2\n2\t1\n", documents=QUERIES).left_out_Q.tolist() == [-1, -1]


def test_equal_texts_of_pairs_are_one(tmp_path):
    file = tmp_path / "faq.tsv"
    rows = ["question\tanswer", "how\tso", "why\t so ", "how\tlike this", "how\tso", "when\tnow"]
    file.write_text("\n".join(rows) + "\n")
    found = read_searches(SearchFiles(source=str(file)), "config.feeds.it")
    assert found.queries == ("how", "why", "when") and found.query_ids == ("2", "3", "6")
    assert found.documents == ("so", "like this", "now") and found.document_ids == ("2", "4", "6")
    assert found.relevant == ((0, 1), (0,), (2,))
    assert found.notices == (
        f"5 rows of {str(file)!r} have 3 different queries and 3 different documents",
    )
    by_name = SearchFiles(source=str(file), query_column="answer", document_column="question")
    turned = read_searches(by_name, "config.feeds.it")
    assert turned.queries == found.documents and turned.documents == found.queries
    two = read_searches(SearchFiles(source=f"{file},{file}"), "config.feeds.it")
    assert two.queries == found.queries and two.query_ids[0] == f"{file}:2"


def test_the_digest_is_of_all_that_scores_depend_on(tmp_path):
    same = [read(tmp_path, "1\ta\n2\tb\n"), read(tmp_path, "1 0 a 1\n2 0 b 1\n", "b.txt")]
    other = [
        read(tmp_path, "1\ta\n2\tc\n"),
        read(tmp_path, "1\ta\n2\tb\n", documents=DOCUMENTS + "d\tx\n"),
        read(tmp_path, "1\ta\n2\tb\n", queries=QUERIES.replace("blue", "red")),
    ]
    assert len({found.digest for found in same}) == 1
    assert len({found.digest for found in (*same, *other)}) == 4

"""A sentence encoder on queries and documents, through the command line: every layout of the files, and
every one that cannot be used."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxdistill import cli, defaults, interop, run, workdir
from jaxdistill.data.tokenizers import load_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, preset
from tests.conftest import WORDS
from tests.interop.tiny import SHRUNK, random_params

NUMBERS = ("recall@1", "recall@5", "recall@10", "mrr@10", "mrr")


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 3 + number % 4)) for number in range(count)]


DOCUMENTS = {f"d{number}": text for number, text in enumerate(sentences(24, 0))}
QUERIES = {f"q{number}": text for number, text in enumerate(sentences(20, 1))}
# Every document answers something, or pairs could not hold it; some queries have two answers.
RELEVANT = [(f"q{number % 20}", f"d{number}") for number in range(24)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose embedding is the mean of its words."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    config = preset("bert_base").replace(
        **{**SHRUNK, "vocab_size": 100, "max_positions": 48}, heads=("embedding",)
    )
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 100)
    interop.save_pretrained(folder, Model(config), random_params(config), tokenizer)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wt") as file:
        file.write(text)
    return path


def objects(texts: dict[str, str], **more: str) -> str:
    rows = [{"_id": name, **more, "text": text} for name, text in texts.items()]
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: Any) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


QRELS = table([("query-id", "corpus-id", "score"), *((*pair, 1) for pair in RELEVANT)])


def beir(folder: Path, packed: str = "") -> Path:
    write(folder / f"corpus.jsonl{packed}", objects(DOCUMENTS, title=""))
    write(folder / f"queries.jsonl{packed}", objects(QUERIES))
    write(folder / "qrels" / f"test.tsv{packed}", QRELS)
    return folder


def three(folder: Path, **contents: str) -> list[str]:
    """The options that name three files; `contents`: of some of them, in place of good ones."""
    good = {"documents": table(DOCUMENTS.items()), "queries": table(QUERIES.items()),
            "relevant": table(RELEVANT)}  # fmt: skip
    made = {name: write(folder / f"{name}.tsv", contents.get(name, good[name])) for name in good}
    return [f"--task.{name}={path}" for name, path in made.items()]


def evaluate(capsys: pytest.CaptureFixture[str], encoder: Path, *more: Any) -> tuple[int, Any]:
    options = [f"--model={encoder}", "--task=retrieval", *map(str, more)]
    code = cli.main(["evaluate", *options])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


def refused(capsys: pytest.CaptureFixture[str], encoder: Path, *more: Any) -> str:
    code, said = evaluate(capsys, encoder, *more)
    assert code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def by_hand(encoder: Path) -> tuple[dict[str, float], dict[str, list[tuple[str, float]]]]:
    """(scores, for each query all documents, best first), a text and a pair at a time."""
    model, params = interop.from_pretrained(encoder)
    tokenizer = load_tokenizer(encoder)

    apply = jax.jit(lambda tokens: model.apply(params, tokens)[0]["embedding"])

    def vector(text: str) -> list[float]:
        padded = tokenizer(text, padding="max_length", max_length=24, return_tensors="np")
        return np.asarray(apply(dict(padded)))[0].tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    documents = {name: vector(text) for name, text in DOCUMENTS.items()}
    orders, found = {}, dict.fromkeys(NUMBERS, 0.0)
    for query, text in QUERIES.items():
        ours = vector(text)
        cosines = {name: cosine(ours, theirs) for name, theirs in documents.items()}
        order = sorted(documents, key=lambda name: -cosines[name])
        orders[query] = [(name, cosines[name]) for name in order]
        wanted = [document for asked, document in RELEVANT if asked == query]
        rank = 1 + min(map(order.index, wanted))
        found["mrr"] += 1 / rank / len(QUERIES)
        found["mrr@10"] += (1 / rank if rank <= 10 else 0) / len(QUERIES)
        for k in (1, 5, 10):
            hits = sum(name in wanted for name in order[:k])
            found[f"recall@{k}"] += hits / len(wanted) / len(QUERIES)
    return found, orders


def test_every_layout_gives_what_sorting_by_hand_gives(encoder, by_hand, tmp_path, capsys):
    expected, orders = by_hand
    assert 0.05 < expected["mrr@10"] < 0.9  # neither all nor nothing
    pairs = write(
        tmp_path / "faq.csv",
        "question,answer\n" + "".join(f"{QUERIES[q]},{DOCUMENTS[d]}\n" for q, d in RELEVANT),
    )
    (tmp_path / "three").mkdir()
    out = tmp_path / "out"
    for more in (
        [f"--data={beir(tmp_path / 'plain')}", f"--out={out}"],
        [f"--data={beir(tmp_path / 'packed', '.gz')}"],
        three(tmp_path / "three"),
        [f"--data={pairs}"],
    ):
        code, found = evaluate(capsys, encoder, *more)
        assert code == 0, found
        assert {name: found[name] for name in NUMBERS} == pytest.approx(expected)
        assert found["metric"] == "mrr@10" and found["examples"] == 20
        assert (found["details"]["queries"], found["details"]["documents"]) == (20, 24)
        low, high = found["details"]["interval"]
        assert low < found["mrr@10"] < high and "20 held-out rows" in found["notices"][-1]
        assert 0 < found["random_mrr@10"] < 1 and found["random_recall@10"] == pytest.approx(
            10 / 24
        )
    names, *lines = (out / "answers.tsv").read_text().splitlines()
    assert names.split("\t")[:4] == ["query", "rank", "document_1", "cosine_1"]
    for (query, order), line in zip(orders.items(), lines, strict=True):
        name, rank, *best, text = line.split("\t")
        assert (name, text) == (query, QUERIES[query])
        assert best[::2] == [document for document, _ in order[:10]]
        assert [float(cosine) for cosine in best[1::2]] == pytest.approx(
            [cosine for _, cosine in order[:10]], abs=1e-4
        )
        wanted = [document for asked, document in RELEVANT if asked == query]
        assert int(rank) == 1 + min([name for name, _ in order].index(d) for d in wanted)


@pytest.mark.parametrize(
    "contents, said",
    [
        ({"relevant": table([*RELEVANT, ("q1", "d99")])}, "'d99', which .*documents.tsv' lacks"),
        ({"relevant": table([*RELEVANT, ("q99", "d1")])}, "'q99', which .*queries.tsv' lacks"),
        ({"documents": table([*DOCUMENTS.items(), ("d3", "x")])}, "line 25 has the id 'd3', as line 4"),
        ({"queries": table([*QUERIES.items(), ("q3", "x")])}, "line 21 has the id 'q3', as line 4"),
        ({"queries": table([*QUERIES.items(), ("", "x")])}, "line 21 has no id"),
        ({"queries": table([*QUERIES.items(), ("q", "x", "y")])}, "line 21 has 3 cells, expected 2"),
        ({"relevant": table([*((*pair, 1) for pair in RELEVANT), ("q1", "d2", "x")])},
         "line 25 has the score 'x', expected a number"),
        ({"relevant": table([*((*pair, 1) for pair in RELEVANT), ("q1", "d1", 0)])},
         "line 25 says of query 'q1' and document 'd1' what a line before it denies"),
        ({"relevant": table([*RELEVANT, ("q1",)])}, "line 25 has 1 columns, expected 2"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_by_its_line_or_counted(contents, said, encoder, tmp_path, capsys):
    options = three(tmp_path, **contents)
    line = refused(capsys, encoder, *options)
    (number,) = (len(text.splitlines()) for text in contents.values())
    assert f"line {number} " in line and "skip_bad_rows" in line
    assert re.search(said, line), line


def test_bad_rows_may_be_left_out(encoder, tmp_path, capsys):
    """And then all is as without them."""
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    _, expected = evaluate(capsys, encoder, *three(tmp_path / "good"))
    options = three(
        tmp_path / "bad",
        documents=table(
            [*DOCUMENTS.items(), ("d3", "x"), ("", "y"), ("d", "y", "z"), ("d", "y\0")]
        ),
        relevant=table([("q99", "d1"), *RELEVANT, ("q1", "d99")]),
    )
    code, found = evaluate(capsys, encoder, *options, "--task.skip_bad_rows=True")
    assert code == 0, found
    for name in NUMBERS:
        assert found[name] == expected[name]
    assert "4 bad rows of " in found["notices"][0] and "'d3', as line 4" in found["notices"][0]
    assert (
        "2 bad rows of " in found["notices"][1] and "line 1 names the query" in found["notices"][1]
    )


def test_files_that_cannot_be_used_at_all(encoder, tmp_path, capsys):
    for contents, said in (
        ({"documents": ""}, "is empty: expected a document in each line"),
        ({"relevant": ""}, "is empty: expected 2 columns (query, document), 3 "),
        ({"relevant": table([("a", "b", "c", "d", "e")])}, "has 5 columns: expected 2 columns"),
        ({"relevant": table([("q1", "d1", 0)])}, "names no relevant document"),
        ({"relevant": table([("q1", "d1", 0), ("q2", "d1", "-1")])}, "expected a score above 0"),
    ):
        line = refused(capsys, encoder, *three(tmp_path, **contents))
        assert said in line, line
    folder = beir(tmp_path / "folder")
    assert "it holds test.tsv; choose one" in refused(
        capsys, encoder, f"--data={folder}", "--task.split=dev"
    )
    (folder / "corpus.jsonl").write_text('{"id": "1", "text": "a"}\n')
    assert "'_id'" in refused(capsys, encoder, f"--data={folder}")
    (folder / "corpus.jsonl").unlink()
    line = refused(capsys, encoder, f"--data={folder}")
    assert "has no corpus.jsonl; it holds qrels, queries.jsonl; expected BEIR's" in line
    assert "does not exist" in refused(capsys, encoder, f"--data={tmp_path / 'none.tsv'}")


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "config.feeds.task.documents is empty: give documents, queries and relevant, or"),
        (["--task.documents=x"], "config.feeds.task.queries is empty"),
        (["--data=faq.tsv", "--task.queries=x"], "queries='x' would do nothing beside source='faq.tsv'"),
        (["--data=faq.tsv", "--task.split=dev"], "split='dev' would do nothing"),
        (["--data=.", "--task.header=yes"], "header='yes' would do nothing beside source='.'"),
        (["--task.documents=a", "--task.queries=b", "--task.relevant=c", "--task.query_column=1"],
         "query_column='1' would do nothing beside documents='a'"),
        (["--data=x", "--task.qeries=1"], "did you mean 'queries'"),
    ],
)  # fmt: skip
def test_settings_that_are_missing_or_would_do_nothing(options, said, encoder, capsys):
    assert said in refused(capsys, encoder, *options)


def test_only_an_encoder_of_sentences_can_search_and_nothing_learns_it(encoder, tmp_path, capsys):
    folder = beir(tmp_path / "data")
    model, params = interop.from_pretrained(encoder)
    headless = Model(model.config.replace(heads=()))
    interop.save_pretrained(tmp_path / "headless", headless, params, encoder)
    line = refused(capsys, tmp_path / "headless", f"--data={folder}")
    assert "has no head 'embedding'" in line
    call = ("finetune", f"--model={encoder}", "--task=retrieval", f"--data={folder}")
    assert cli.main([*call, f"--workdir={tmp_path / 'w'}"]) == 2
    assert "is evaluated, not learned" in capsys.readouterr().err


def recipe(encoder: Path, folder: Path) -> ConfigDict:
    """A student distilled on the texts of the search itself, its best state by the score."""
    config = defaults.recipe("search")
    files = dict(option.removeprefix("--task.").split("=") for option in three(folder))
    config.feeds.search = defaults.task("retrieval", **files, sequence_length=24, buckets=False)
    config.networks.teacher = defaults.network(init=str(encoder))
    config.networks.student = defaults.network(
        "bert_base", **{**SHRUNK, "num_layers": 1, "max_positions": 48}, heads=("embedding",)
    )
    config.networks.student.model.vocab_size = 0
    config.stages.distill = defaults.stage(
        "relations", "student", feed="search", steps=2, batch_size=8,
        best="mrr@10", best_every=1, relation_heads=2, teacher_layer=1,
    )  # fmt: skip
    config.order = ("distill",)
    config.export, config.mesh.data, config.evaluation.batch_size = False, 1, 8
    config.objectives.fused = False
    return config


def test_a_run_measures_the_networks_that_have_embeddings(encoder, by_hand, tmp_path):
    results = run.train(recipe(encoder, tmp_path / "data"), tmp_path / "run")
    expected, orders = by_hand
    row = results["networks"]["teacher"]["search"]
    assert {name: row[name] for name in NUMBERS} == pytest.approx(expected)
    assert 0 < results["networks"]["student"]["search"]["mrr@10"] <= 1
    facts = results["tasks"]["search"]
    assert (facts["rows"], facts["heldout_rows"], facts["metric"]) == (44, 20, "mrr@10")
    moved = recipe(encoder, tmp_path / "moved")  # what a file holds counts, not where it is
    workdir.check(tmp_path / "run", moved.to_dict())
    lines = (tmp_path / "run" / "predictions" / "search" / "teacher.tsv").read_text().splitlines()
    assert [line.split("\t")[2] for line in lines[1:]] == [order[0][0] for order in orders.values()]


def test_a_network_that_cannot_be_measured_is_found_at_the_start(encoder, tmp_path):
    """Not after the first steps, or when all of them are done."""
    config = recipe(encoder, tmp_path / "data")
    config.networks.student.heads = ()
    with pytest.raises(BadInput, match="best='mrr@10' is measured on 'search' by the head 'embedd"):
        run.train(config, tmp_path / "run")
    config = recipe(encoder, tmp_path / "data")
    config.networks.student.model.max_positions = 16
    config.stages.distill.update({"feed": "short", "best_on": "search"})
    config.feeds.short = defaults.task(
        "retrieval", source=str(beir(tmp_path / "data")), sequence_length=16
    )
    with pytest.raises(
        BadInput, match="search.sequence_length=24 exceeds max_positions=16 of 'stu"
    ):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sentence_transformers_says_the_same(encoder, tmp_path, capsys):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    relevant: dict[str, set[str]] = {}
    for query, document in RELEVANT:
        relevant.setdefault(query, set()).add(document)
    ks = [1, 5, 10]
    theirs = InformationRetrievalEvaluator(
        QUERIES, DOCUMENTS, relevant, mrr_at_k=[10], precision_recall_at_k=ks, accuracy_at_k=ks
    )(SentenceTransformer(str(encoder), device="cpu"))
    code, found = evaluate(capsys, encoder, f"--data={beir(tmp_path / 'data')}")
    assert code == 0, found
    for name in ("recall@1", "recall@5", "recall@10", "mrr@10"):
        assert found[name] == pytest.approx(theirs[f"cosine_{name}"])

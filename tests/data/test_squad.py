"""SQuAD's files, the windows of BERT, and answers out of logits; `transformers` is the oracle."""

from __future__ import annotations

import copy
import gzip
import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, BertTokenizerFast
from transformers.data.metrics.squad_metrics import compute_predictions_logits
from transformers.data.processors import squad as oracle

from jaxdistill.data.answers import Decoding, answer_files, decode
from jaxdistill.data.question_answering import answerable
from jaxdistill.data.squad import Answer, Question, Questions, read_squad
from jaxdistill.data.windows import Windows, _cuts, windows
from jaxdistill.errors import BadInput

LONG = (
    "The river Ret runs north from Old Town, past the mill and the tower, to the sea. In 1880 a "
    "Swedish builder, Anna Holm, put up the tower for 3,500 crowns; the mill is older. It burnt down "
    "in March 1902 and was built again by her son, who lived in the tower until 1931."
)
UNICODE = "Le café de Zoë \u00e0 Li\u00e8ge: 北京大学 and \U0001f600 \U0001f44d\U0001f3fd (na\u00efve) Cafe\u0301 \ufeffend."
MARKUP = "The tower is [SEP] the mill [MASK] old [CLS]."


def qa(id: str, question: str, *answers: str, context: str = LONG, **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": context.index(text)} for text in answers]
    return {"id": id, "question": question, "answers": found, **more}


PAGES: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ret",
            "paragraphs": [
                {
                    "context": LONG,
                    "qas": [
                        qa("first", "Which river?", "The river Ret", "Ret", is_impossible=False),
                        qa("middle", "Who put up the tower?", "Anna Holm", is_impossible=False),
                        qa("last", "Until when did he live there?", "1931", is_impossible=False),
                        qa("number", "What did it cost?", "3,500 crowns", is_impossible=False),
                        qa(
                            "long",
                            "What happened? " * 9,
                            LONG[LONG.index("Anna") : LONG.index(", who")],
                            is_impossible=False,
                        ),
                        qa("none", "Who sold the mill?", is_impossible=True),
                    ],
                }
            ],
        },
        {
            "title": "Li\u00e8ge",
            "paragraphs": [
                {
                    "context": UNICODE,
                    "qas": [
                        qa(f"u{number}", "Où?", text, context=UNICODE, is_impossible=False)
                        for number, text in enumerate(
                            [
                                "café",
                                "Zoë",
                                "北京",
                                "大学",
                                "\U0001f600",
                                "Cafe\u0301",
                                "end",
                                "naïve",
                            ]
                        )
                    ],
                }
            ],
        },
        {
            "title": "BERT",
            "paragraphs": [
                {
                    "context": MARKUP,
                    "qas": [
                        qa("markup", "[SEP]?", "[SEP] the", context=MARKUP, is_impossible=False)
                    ],
                }
            ],
        },
    ],
}
WORDS = (
    "the a in to and by was who what which did it until when for her son is old town river mill tower sea "
    "anna holm swedish builder crowns north from past put up ##s ##t ##e run ##s burn march again live ##d 3 500 18 "
    "##80 1902 193 ##1 , . ; : ( ) ? [ ] ret l ##e cafe de zoe lie ##ge 北 京 大 naive end ##t"
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split())]
    path.write_text("\n".join(words) + "\n")
    return path


@pytest.fixture(scope="module")
def fast(vocabulary: Path) -> Any:
    return BertTokenizerFast(vocab_file=str(vocabulary))


@pytest.fixture(scope="module")
def slow(vocabulary: Path) -> Any:
    return BertTokenizer(vocab_file=str(vocabulary))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return read_squad(written(tmp_path_factory.mktemp("squad") / "a.json", PAGES))


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def flat(pages: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of Hugging Face's datasets, which do not say `is_impossible`."""
    rows = []
    for article in pages["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                both = {
                    key: [one[key] for one in asked["answers"]] for key in ("text", "answer_start")
                }
                rows.append(
                    {
                        "id": asked["id"],
                        "title": article["title"],
                        "context": paragraph["context"],
                        "question": asked["question"],
                        "answers": both,
                    }
                )
    return rows


# Reading


def test_the_official_form(questions: Questions) -> None:
    assert len(questions) == 15 and questions.labelled and questions.notices == ()
    assert questions.rows[0] == Question(
        "first",
        "Ret",
        LONG,
        "Which river?",
        (Answer("The river Ret", 0), Answer("Ret", LONG.index("Ret"))),
        False,
    )
    assert [row.id for row in questions.rows if row.impossible] == ["none"]
    assert questions.impossible.tolist() == [False] * 5 + [True] + [False] * 9
    assert questions.rows[5].answers == () and questions.rows[6].title == "Liège"


def test_packed_and_flat_files_are_the_same(tmp_path: Path, questions: Questions) -> None:
    text = json.dumps(PAGES).encode()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(text))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + text)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in flat(PAGES))
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    written(tmp_path / "rows.json", flat(PAGES))
    for path in tmp_path.iterdir():
        assert read_squad(path) == questions, path
        assert read_squad(path).digest == questions.digest


def test_a_line_separator_in_a_row_ends_no_line(tmp_path: Path) -> None:
    row = {**flat(PAGES)[0], "context": LONG + "\u2028 more"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    assert read_squad(tmp_path / "a.jsonl").rows[0].context.endswith("\u2028 more")


@pytest.mark.parametrize("how", ["empty", "missing", "said possible", "flat", "flat missing"])
def test_files_without_answers(tmp_path: Path, how: str) -> None:
    pages = copy.deepcopy(PAGES)
    for article in pages["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                asked["answers"] = []
                asked["is_impossible"] = False
                if how != "said possible":
                    del asked["is_impossible"]
                if how == "missing":
                    del asked["answers"]
    value = pages
    if how.startswith("flat"):
        value = flat(PAGES)
        for row in value:
            row["answers"] = {"text": [], "answer_start": []}
            if how == "flat missing":
                del row["answers"]
    found = read_squad(written(tmp_path / "a.json", value))
    assert len(found) == 15 and not found.labelled
    assert not found.impossible.any() and not any(row.answers for row in found.rows)


def test_a_file_of_impossible_questions_only_has_labels(tmp_path: Path) -> None:
    pages = {"data": [{"title": "a", "paragraphs": [{"context": LONG, "qas": [PAGES_QA[5]]}]}]}
    found = read_squad(written(tmp_path / "a.json", pages))
    assert found.labelled and found.impossible.all()


PAGES_QA = PAGES["data"][0]["paragraphs"][0]["qas"]


def with_first(**changes: Any) -> dict[str, Any]:
    """The pages with another first question; None takes a field away."""
    pages = copy.deepcopy(PAGES)
    asked = pages["data"][0]["paragraphs"][0]["qas"][0]
    for name, value in changes.items():
        asked[name] = value
        if value is None:
            del asked[name]
    return pages


BAD_QUESTIONS = {
    "at character 1, where its context has 'he river Ret '": {
        "answers": [{"text": "The river Ret", "answer_start": 1}]
    },
    "at character -5": {"answers": [{"text": LONG[-5:-2], "answer_start": -5}]},
    "expected a text and a number": {"answers": [{"text": "The", "answer_start": "0"}]},
    "the answer '' at 0, expected": {"answers": [{"text": "", "answer_start": 0}]},
    "has the answer None at None": {"answers": [{"answer": "The"}]},
    "expected a list of": {"answers": "The river"},
    "of one length": {"answers": {"text": ["The", "river"], "answer_start": [0]}},
    "is said to be impossible and has answers": {"is_impossible": True},
    "has no answers and is not said": {"answers": []},
    "is_impossible 'no', expected true or false": {"is_impossible": "no"},
    "has an id that another question has": {"id": "middle"},
    "has no 'question'": {"question": None},
    "has no 'id'": {"id": None},
    "a 'id' that is no text but a int": {"id": 7},
    "half a character": {"question": "\ud83d?"},
}


@pytest.mark.parametrize("said", BAD_QUESTIONS)
def test_a_bad_question_is_refused_or_left_out(tmp_path: Path, said: str) -> None:
    path = written(tmp_path / "a.json", with_first(**BAD_QUESTIONS[said]))
    with pytest.raises(BadInput) as error:
        read_squad(path)
    message = str(error.value)
    assert said in message and "a.json" in message and "skip_bad_rows" in message
    assert "\n" not in message and len(message) < 700
    by_place = "question '0 of article 0 paragraph 0'"
    assert (by_place if "no 'id'" in said else "'middle'" if "another" in said else "'") in message
    found = read_squad(path, skip_bad_rows=True)
    assert len(found) == 14 and {row.id for row in found.rows} >= {"middle", "last", "none"}
    [notice] = found.notices
    assert "1 of 15 questions were left out" in notice and said in notice


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    rows = [{**flat(PAGES)[0], "context": "another"}]
    with pytest.raises(BadInput, match="none of its 1 questions can be used; question 'first' has"):
        read_squad(written(tmp_path / "a.json", rows), skip_bad_rows=True)


BAD_FILES: dict[str, tuple[str, bytes]] = {
    "does not exist or is a folder; in": ("b.json", b""),
    "is not JSON (Expecting value": ("a.json", b"context\tquestion\n"),
    "name it .jsonl if each line is a row": ("a.json", b'{"id": "1"}\n{"id": "2"}\n'),
    "has no list 'data' but id, sentence": ("a.json", b'{"id": 1, "sentence": "x"}'),
    "is no JSON object but a int": ("a.json", b"17"),
    "article 0 has no list 'paragraphs'": ("a.json", b'{"data": [{"title": "x"}]}'),
    "article 0 paragraph 0 has no list 'qas'": (
        "a.json",
        b'{"data": [{"paragraphs": [{"context": "x"}]}]}',
    ),
    "question 0 is no JSON object": ("a.json", b'{"data": [{"paragraphs": [{"qas": [1]}]}]}'),
    "has no questions; expected": ("a.json", b'{"data": []}'),
    "line 2 is not JSON": ("a.jsonl", b"{}\nx"),
    "line 1 is no JSON object": ("a.jsonl", b"[]"),
    "is not UTF-8 text at byte 2": ("a.json", b'{"\xe9":1}'),
    "is cut short or damaged": ("a.json.xz", lzma.compress(b"{}" * 999)[:40]),
    "is packed with gzip": ("a.json", gzip.compress(b"{}")),
    "maximum recursion": ("a.json", b"[" * 200_000),
}


@pytest.mark.parametrize("said", BAD_FILES)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, said: str) -> None:
    name, content = BAD_FILES[said]
    (tmp_path / ("other" if not content else name)).write_bytes(content)
    with pytest.raises(BadInput) as error:
        read_squad(tmp_path / name)
    message = str(error.value)
    assert said in message and name in message and "\n" not in message and len(message) < 700


def test_questions_without_an_answer_are_left_out_if_asked(tmp_path: Path) -> None:
    from jaxdistill import defaults
    from jaxdistill.data.tasks import open_task

    path = str(written(tmp_path / "whole.json", PAGES))
    section = defaults.task("question_answering", source=path, heldout=path)
    every = open_task("task", section, 0)
    section.answerable_only = True
    some = open_task("task", section, 0)
    whole = read_squad(path)
    assert (
        0 < some.heldout_rows == int((~whole.impossible).sum()) < every.heldout_rows == len(whole)
    )
    assert some.digests["train"] != every.digests["train"]
    assert any("which have no answer, were left out" in notice for notice in some.notices)
    assert not any("no answer" in notice for notice in every.notices)
    with pytest.raises(BadInput, match="no question has an answer; leave answerable_only out"):
        answerable(Questions(tuple(row for row in whole.rows if row.impossible)), "file")


def test_articles_of_another_file(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.json", PAGES)
    one = written(tmp_path / "one.json", {"data": PAGES["data"][1:]})
    titles = [
        {row.title for row in read_squad(whole, **choice).rows}
        for choice in ({}, {"without_articles_of": one})
    ]
    assert titles == [{"Ret", "Liège", "BERT"}, {"Ret"}]
    with pytest.raises(
        BadInput, match=r"no article that is not in .*whole.json.; its articles: BERT, Li"
    ):
        read_squad(one, without_articles_of=whole)
    nameless = [{**row, "title": ""} for row in flat(PAGES)]
    written(tmp_path / "none.json", nameless)
    for a, b in (("none", "whole"), ("whole", "none")):
        with pytest.raises(BadInput, match="none.json' has questions without the title"):
            read_squad(tmp_path / f"{a}.json", without_articles_of=tmp_path / f"{b}.json")


# Windows


def oracle_examples(questions: Questions) -> list[Any]:
    return [
        oracle.SquadExample(
            row.id,
            row.question,
            row.context,
            row.answers[0].text if row.answers else None,
            row.answers[0].start if row.answers else None,
            row.title,
            is_impossible=row.impossible,
            answers=[answer._asdict() for answer in row.answers],
        )
        for row in questions.rows
    ]


def oracle_features(questions: Questions, slow: Any, length: int, stride: int, asked: int) -> Any:
    """(number of the question, its feature) for all windows."""
    oracle.squad_convert_example_to_features_init(slow)
    found = []
    for number, example in enumerate(oracle_examples(questions)):
        for feature in oracle.squad_convert_example_to_features(
            example, length, stride, asked, "max_length", True
        ):
            feature.example_index, feature.unique_id = number, len(found)
            found.append(feature)
    return found


SIZES = [(32, 5, 8), (32, 18, 8), (48, 9, 20), (40, 16, 12), (29, 1, 10), (400, 128, 64)]


@pytest.mark.parametrize("length,stride,asked", SIZES)
def test_windows_are_those_of_transformers(
    questions: Questions, fast: Any, slow: Any, length: int, stride: int, asked: int
) -> None:
    """But for the names of special tokens in a text, which are words to us."""
    kept = Questions(tuple(row for row in questions.rows if row.id != "markup"))
    ours = windows(kept, fast, length, stride, asked)
    theirs = oracle_features(kept, slow, length, stride, asked)
    assert len(ours) == len(theirs) > len(kept) - 1
    for number, feature in enumerate(theirs):
        size = len(ours.ids[number])
        assert ours.ids[number].tolist() == feature.input_ids[: sum(feature.attention_mask)]
        assert size <= length and ours.ids[number].dtype == np.int32
        begin = ours.second_begins[number]
        assert begin == feature.token_type_ids.index(1)
        assert ours.question[number] == feature.example_index
        flags = [feature.token_is_max_context[begin + place] for place in range(size - begin - 1)]
        assert ours.max_context[number].tolist() == flags
        positions = ours.start_positions[number], ours.end_positions[number]
        assert positions == (feature.start_position, feature.end_position), kept.rows[
            feature.example_index
        ].id
    tokens = [len(fast(row.question, add_special_tokens=False).input_ids) for row in kept.rows]
    assert ours.questions_cut == sum(count > asked for count in tokens)


@pytest.mark.parametrize(
    "tokens,room,stride",
    [(700, 300, 280), (901, 317, 128), (300, 300, 7), (301, 300, 7), (5, 9, 1)],
)
def test_max_context_in_windows_of_real_sizes(tokens: int, room: int, stride: int) -> None:
    """A last window that is shorter by a hundred tokens loses one of the smaller side."""
    cuts = _cuts(tokens, room, stride)
    theirs = [{"start": cut.begin, "length": cut.end - cut.begin} for cut in cuts]
    for number, cut in enumerate(cuts):
        flags = [
            oracle._new_check_is_max_context(theirs, number, place)
            for place in range(cut.begin, cut.end)
        ]
        assert cut.max_context.tolist() == flags


def test_questions_that_are_cut_are_counted(fast: Any) -> None:
    rows = [Question(str(n), "", "the mill", "the old " * n, (), False) for n in range(5)]
    for longest, cut in ((3, 3), (4, 2), (5, 2), (6, 1)):
        made = windows(Questions(tuple(rows), False), fast, 20, 5, longest)
        assert made.questions_cut == cut
        assert max(made.second_begins) == longest + 2


def test_accents_that_are_tokens_stay_with_those(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "e", "##́a"])
    )
    cased = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"), do_lower_case=False)
    rows = (Question("a", "", "e\u0301a", "e", (Answer("e", 0),), False),)
    made = windows(Questions(rows), cased, 20, 5, 5)
    assert made.ids[0].tolist() == [2, 5, 3, 5, 6, 3]
    assert [made.char_starts[0].tolist(), made.char_ends[0].tolist()] == [[0, 1], [1, 3]]
    assert made.start_positions[0] == made.end_positions[0] == 3 and made.answers_widened == 0


def test_a_window_per_stride(questions: Questions, fast: Any) -> None:
    """Every token once or more, the last window ending with the context, and only that."""
    for length, stride, asked in SIZES:
        made = windows(questions, fast, length, stride, asked)
        for number, row in enumerate(questions.rows[:-1]):  # but for special tokens in the text
            here = np.flatnonzero(made.question == number)
            whole = fast(row.context, add_special_tokens=False, return_offsets_mapping=True)
            starts = [begin for begin, _ in whole.offset_mapping]
            rooms = length - made.second_begins[here] - 1
            begins = [starts.index(made.char_starts[window][0]) for window in here]
            assert begins == [stride * order for order in range(len(here))]
            ends = [begin + len(made.char_starts[w]) for begin, w in zip(begins, here)]
            assert ends[-1] == len(starts) and all(end < len(starts) for end in ends[:-1])
            assert all(end - begin == room for begin, end, room in zip(begins, ends, rooms[:-1]))
            assert sum(made.max_context[window].sum() for window in here) == len(starts)


def cut_out(made: Windows, questions: Questions, window: int) -> str:
    """The text that the positions of a window mark."""
    begin = made.second_begins[window]
    first, last = made.start_positions[window] - begin, made.end_positions[window] - begin
    context = questions.rows[made.question[window]].context
    return context[made.char_starts[window][first] : made.char_ends[window][last]]


@pytest.mark.parametrize("length,stride,asked", SIZES)
def test_positions_are_the_characters_of_the_answer(
    questions: Questions, fast: Any, length: int, stride: int, asked: int
) -> None:
    made = windows(questions, fast, length, stride, asked)
    marked = np.flatnonzero(made.start_positions)
    assert len(marked) and (made.end_positions[marked] >= made.start_positions[marked]).all()
    for window in marked:
        assert (
            cut_out(made, questions, window)
            == questions.rows[made.question[window]].answers[0].text
        )
    assert made.answers_widened == 0
    without = set(range(15)) - set(made.question[marked].tolist()) - {5}
    assert made.answers_unmarked == len(without)
    assert without <= {4}  # the long one does not fit into small windows
    assert without or length > 60


def test_answers_that_end_inside_a_token_take_all_of_it(fast: Any) -> None:
    context = "Zoe saw towers, 1931s ret 500 mill."
    taken = {
        "oe": "Zoe",
        "e saw t": "Zoe saw tower",
        "193": "193",
        "saw": "saw",
        "00": "500",
        "mil": "mill",
    }
    rows = tuple(
        Question(text, "", context, "who?", (Answer(text, context.index(text)),), False)
        for text in taken
    )
    made = windows(Questions(rows), fast, 40, 10, 10)
    found = [cut_out(made, Questions(rows), number) for number in range(len(rows))]
    assert found == list(taken.values())
    assert made.answers_widened == 4 and made.answers_unmarked == 0


def test_answers_without_a_token_are_counted(fast: Any) -> None:
    rows = tuple(
        Question(context, "", context, "?", (Answer("\ufeff", context.index("\ufeff")),), False)
        for context in ("river \u200b\ufeff mill", "river \ufeff", "\ufeffriver")
    )
    made = windows(Questions(rows), fast, 20, 5, 5)
    assert made.answers_unmarked == 3 and made.start_positions.tolist() == [0, 0, 0]
    assert made.answers_widened == 0


def test_a_context_without_tokens_has_a_window(fast: Any) -> None:
    rows = (
        Question("a", "", "\ufeff", "river", (), False),
        Question("b", "", "the mill", "", (), False),
    )
    made = windows(Questions(rows, False), fast, 20, 5, 5)
    mill = fast.convert_tokens_to_ids(["the", "mill"])
    river = fast.convert_tokens_to_ids("river")
    assert [ids.tolist() for ids in made.ids] == [[2, river, 3, 3], [2, 3, *mill, 3]]
    decoded = decode(made, Questions(rows, False), *np.zeros((2, 2, 20)))
    assert decoded.texts == ("", "the") and decoded.n_best[0] == ()
    odds = decode(made, Questions(rows), *np.ones((2, 2, 20)), Decoding(impossible=True))
    assert odds.texts == ("", "the") and np.isfinite(odds.null_odds).all()


@pytest.mark.parametrize(
    "length,stride,asked", [(32, 22, 8), (32, 0, 8), (10, 1, 8), (32, 5, 0), (32, -1, 8)]
)
def test_words_are_never_left_out(
    questions: Questions, fast: Any, length: int, stride: int, asked: int
) -> None:
    with pytest.raises(BadInput, match=f"stride={stride}.*length={length}: expected a stride of 1"):
        windows(questions, fast, length, stride, asked)


# Decoding


def spread(made: Windows, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    start, end = random.normal(size=(2, len(made), length)).astype(np.float32) * 3
    return start, end


def obvious(
    made: Windows, questions: Questions, start: Any, end: Any, by: Decoding
) -> list[tuple[list[tuple[str, float]], float]]:
    """The n best different texts with their scores, and the lowest score of no answer, by loops."""
    found = []
    for number, row in enumerate(questions.rows):
        scored, null = [], math.inf
        for window in np.flatnonzero(made.question == number):
            null = min(null, float(start[window, 0]) + float(end[window, 0]))
            begin = made.second_begins[window]
            tokens = len(made.char_starts[window])
            for first in range(tokens):
                for last in range(first, tokens):
                    if last - first + 1 > by.max_answer_length:
                        continue
                    if not made.max_context[window][first]:
                        continue
                    text = row.context[
                        made.char_starts[window][first] : made.char_ends[window][last]
                    ]
                    score = float(start[window, begin + first]) + float(end[window, begin + last])
                    scored.append((text, score))
        best: dict[str, float] = {}
        for text, score in sorted(scored, key=lambda one: -one[1]):
            best.setdefault(text, score)
        found.append((list(best.items())[: by.n_best], null))
    return found


@pytest.mark.parametrize(
    "by",
    [
        Decoding(),
        Decoding(n_best=3, max_answer_length=4),
        Decoding(n_best=1, max_answer_length=1),
        Decoding(n_best=500, max_answer_length=200),
    ],
    ids=str,
)
def test_decoding_is_a_double_loop(questions: Questions, fast: Any, by: Decoding) -> None:
    made = windows(questions, fast, 40, 9, 12)
    start, end = spread(made, 44, 1)
    decoded = decode(made, questions, start, end, by)
    assert decoded.null_odds is None
    for number, (best, _) in enumerate(obvious(made, questions, start, end, by)):
        found = decoded.n_best[number]
        assert [candidate.text for candidate in found] == [text for text, _ in best]
        scores = [candidate.start_logit + candidate.end_logit for candidate in found]
        np.testing.assert_allclose(scores, [score for _, score in best], rtol=0, atol=1e-12)
        assert decoded.texts[number] == decoded.spans[number] == best[0][0]
        powers = [math.exp(score - scores[0]) for score in scores]
        shares = [power / sum(powers) for power in powers]
        np.testing.assert_allclose([c.probability for c in found], shares, rtol=1e-9)


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 2.0])
def test_no_answer_where_that_is_better(questions: Questions, fast: Any, threshold: float) -> None:
    by = Decoding(n_best=4, impossible=True, null_threshold=threshold)
    made = windows(questions, fast, 40, 9, 12)
    start, end = spread(made, 40, 2)
    start[:, 0], end[:, 0] = 0, 4 + made.question % 9
    decoded = decode(made, questions, start, end, by)
    assert decoded.null_odds is not None
    expected = obvious(made, questions, start, end, by)
    odds = np.array([null - best[0][1] for best, null in expected])
    np.testing.assert_allclose(decoded.null_odds, odds, atol=1e-9)
    spans = tuple(best[0][0] for best, _ in expected)
    assert decoded.spans == spans
    assert decoded.texts == tuple("" if o > threshold else s for s, o in zip(spans, odds))
    assert 0 < sum(text == "" for text in decoded.texts) < len(questions)
    places = set()
    for (best, null), found in zip(expected, decoded.n_best):
        listed = [(c.text, c.start_logit + c.end_logit) for c in found]
        places.add(place := [text for text, _ in listed].index(""))
        assert listed[place][1] == pytest.approx(null)
        assert [score for _, score in listed] == sorted((s for _, s in listed), reverse=True)
        assert [text for text, _ in listed if text] == [t for t, _ in best][: len(listed) - 1]
        assert len(listed) == (5 if place == 4 else 4)
    assert len(places) > 2


@pytest.mark.parametrize("impossible", [False, True])
def test_decoding_is_that_of_transformers(
    tmp_path: Path, questions: Questions, fast: Any, slow: Any, impossible: bool
) -> None:
    """Their lists of best starts and ends are made as long as a window, so that nothing is cut off; and
    words of one spelling, since theirs takes texts from between blanks."""
    context = (
        "the river mill tower sea anna holm swedish builder crowns north from past put up " * 3
    )
    rows = tuple(
        Question(str(n), "", context, text, (Answer("mill", 10),), False)
        for n, text in enumerate(["who", "which river", "until when", "what"])
    )
    some = Questions(rows)
    made = windows(some, fast, 32, 9, 8)
    features = oracle_features(some, slow, 32, 9, 8)
    start, end = spread(made, 32, 3)
    start[:, 0] += 7
    end[:, 0] += 7
    results = [
        oracle.SquadResult(number, start[number].tolist(), end[number].tolist())
        for number in range(len(made))
    ]
    theirs = compute_predictions_logits(
        oracle_examples(some), features, results, 32, 7, True, None, str(tmp_path / "nbest"),
        str(tmp_path / "odds"), False, impossible, 1.5, slow,
    )  # fmt: skip
    by = Decoding(32, 7, impossible, 1.5)
    decoded = decode(made, some, start, end, by)
    files = {name: json.loads(text) for name, text in answer_files(some, decoded).items()}
    assert files["predictions.json"] == dict(theirs)
    assert not impossible or len(set(theirs.values()) - {""}) in range(1, 4)
    listed = json.loads((tmp_path / "nbest").read_text())
    for id in listed:
        ours = files["nbest_predictions.json"][id]
        assert [list(one) for one in ours] == [list(one) for one in listed[id]]
        assert [one["text"] for one in ours] == [one["text"] for one in listed[id]]
        for name in ("probability", "start_logit", "end_logit"):
            np.testing.assert_allclose(
                [one[name] for one in ours], [one[name] for one in listed[id]], rtol=1e-6
            )
    if impossible:
        odds = json.loads((tmp_path / "odds").read_text())
        assert odds == pytest.approx(files["null_odds.json"])
    else:
        assert set(files) == {"predictions.json", "nbest_predictions.json"}


def test_files_keep_the_spelling(questions: Questions, fast: Any) -> None:
    made = windows(questions, fast, 200, 9, 12)
    start, end = marked_logits(made, 200)
    written = answer_files(questions, decode(made, questions, start, end))
    assert "北京" in written["predictions.json"]
    assert json.loads(written["predictions.json"])["u5"] == "Cafe\u0301"


def marked_logits(made: Windows, length: int) -> tuple[np.ndarray, np.ndarray]:
    start, end = np.zeros((2, len(made), length), np.float32)
    rows = np.arange(len(made))
    start[rows, made.start_positions] = end[rows, made.end_positions] = 10
    return start, end


@pytest.mark.parametrize("length,stride,asked", [(64, 20, 12), (64, 45, 12), (400, 128, 64)])
def test_what_is_marked_is_decoded(
    questions: Questions, fast: Any, length: int, stride: int, asked: int
) -> None:
    """The whole way: logits that are right at every window give every answer as it is spelt."""
    made = windows(questions, fast, length, stride, asked)
    assert made.answers_unmarked == (stride == 45)
    by = Decoding(max_answer_length=60, impossible=True)
    found = decode(made, questions, *marked_logits(made, length), by).texts
    for row, text in zip(questions.rows, found):
        if row.id != "long" or length > 64:
            assert text == (row.answers[0].text if row.answers else "")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_equal_scores_and_masked_tokens(seed: int, n_best: int, most: int, ties: bool) -> None:
    """Logits of few values, some -inf: of equal spans the first in the text, as in the loops."""
    random = np.random.default_rng(seed)
    tokens, numbers = random.integers(1, 9), random.integers(1, 4)
    context = "".join(random.choice(list("ab"), 40))
    rows = (Question("a", "", context, "", (), False),)
    begins = [random.integers(0, 30) for _ in range(numbers)]
    made = Windows(
        20, [np.zeros(tokens + 3, np.int32)] * numbers, np.full(numbers, 2), np.zeros(numbers, int),
        np.zeros(numbers, int), np.zeros(numbers, int), [np.arange(tokens) + b for b in begins],
        [np.arange(tokens) + b + 1 for b in begins], [random.random(tokens) < 0.6] * numbers, 0, 0, 0,
    )  # fmt: skip
    start, end = random.choice([0.0, 1.0, 2.0], (2, numbers, 12))
    if not ties:
        start = random.normal(size=start.shape)
    start[:, 2:][random.random((numbers, 10)) < 0.1] = -np.inf
    by = Decoding(n_best, most)
    [found] = decode(made, Questions(rows), start, end, by).n_best
    [(best, _)] = obvious(made, Questions(rows), start, end, by)
    best = [one for one in best if one[1] > -np.inf]
    assert [(c.text, c.start_logit + c.end_logit) for c in found] == best


def test_logits_that_cannot_be(questions: Questions, fast: Any) -> None:
    made = windows(questions, fast, 60, 9, 12)
    start, end = spread(made, 60, 0)
    for wrong in (start[1:], start[:, :40], start[0]):
        with pytest.raises(BadInput, match=r"start_logits has the shape \(.*60 or more\)"):
            decode(made, questions, wrong, end)
    for value in (np.nan, np.inf):
        broken = end.copy()
        broken[3, 5] = value
        for by in (Decoding(), Decoding(impossible=True)):
            with pytest.raises(BadInput, match="end_logits holds numbers that are not finite"):
                decode(made, questions, start, broken, by)
    start[2, 0] = -np.inf
    decode(made, questions, start, end)
    with pytest.raises(BadInput, match="start_logits holds numbers that are not finite"):
        decode(made, questions, start, end, Decoding(impossible=True))
    with pytest.raises(BadInput, match="n_best=0"):
        decode(made, questions, start, end, Decoding(n_best=0))

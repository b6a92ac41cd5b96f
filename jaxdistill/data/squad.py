"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822): questions whose
answers are spans of a context, read from their files.

`windows` makes rows of tokens of them, `answers` turns what a network says of those rows into texts, and
`evaluation.spans` scores the texts. Called by tasks that ask for spans."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxdistill.data import data_sets, files, not_text
from jaxdistill.errors import BadInput, listed, nearest, shortened

LARGEST_FILE = 2**30  # bytes unpacked; the training set of SQuAD 2.0 has 42 MB
_COLUMNS = ("id", "title", "context", "question", "answers", "is_impossible")
_FORM = (
    'expected SQuAD\'s JSON, {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [...]}]}]}, or rows with '
    '"id", "context", "question" and "answers"'
)


class Answer(NamedTuple):
    """`context[start : start + len(text)] == text`."""

    text: str
    start: int


class Question(NamedTuple):
    """`answers`: () where `impossible`, and in files without answers. `title`: of the article, "" if
    the file does not say."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]
    impossible: bool


@dataclasses.dataclass(frozen=True)
class Questions:
    """N questions in the order of their file. `labelled`: whether it has answers, `notices`: lines
    about what was left out. `words`: what answers are compared by, a name in
    `evaluation.spans.WORDS`."""

    rows: tuple[Question, ...]
    labelled: bool = True
    notices: tuple[str, ...] = ()
    words: str = "english"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def impossible(self) -> np.ndarray:
        """bool [N]."""
        return np.array([row.impossible for row in self.rows], bool)

    @property
    def digest(self) -> str:
        """Of all questions, contexts and answers."""
        return files.digest_of([self.rows, self.labelled])


class _Bad(ValueError):
    """Why one question cannot be used."""


class _Row(NamedTuple):
    """One question as it stands in a file: `values` has what belongs to it alone."""

    title: Any
    context: Any
    values: dict[str, Any]
    where: str


def read_squad(
    path: epath.PathLike, *, without_articles_of: epath.PathLike = "", skip_bad_rows: bool = False
) -> Questions:
    """Reads the questions of one file.

    SQuAD's own JSON, or a row with "id", "context", "question" and "answers" per line (.jsonl), as
    Hugging Face's datasets have them; also packed as .xz or .gz. Where no question has an answer and
    none is said to be impossible, the file is one without labels, as the test sets are. Elsewhere a
    question with an empty list of answers is impossible.

    Args:
        path: the file, or a set by name, as hf:rajpurkar/squad:train.
        without_articles_of: another such file, whose articles are left out, by title: what is trained on
            there can be tested here.
        skip_bad_rows: leave out questions that cannot be used, and say so in `notices`.

    Raises:
        BadInput: no such file, not of this form, or without questions; without `skip_bad_rows` also an
            answer that does not stand in its context at its place, an id twice, a field that is missing.
    """
    file = epath.Path(path).expanduser()
    shown = os.fspath(file)
    rows = _without(list(_rows(file)), shown, without_articles_of)
    labelled = any(_says_something(row.values) for row in rows)
    kept: dict[str, Question] = {}
    problems: list[str] = []
    for row in rows:
        try:
            question = _question(row, labelled)
            if question.id in kept:
                raise _Bad("has an id that another question has; ids must differ")
            kept[question.id] = question
        except _Bad as problem:
            said = f"question {shortened(row.values.get('id', row.where))!r} {problem}"
            if not skip_bad_rows:
                raise BadInput(
                    f"{shown!r}: {said}; mend it, or leave such questions out with skip_bad_rows"
                ) from problem
            problems.append(said)
    if not kept:
        why = (
            f"none of its {len(rows):,} questions can be used; {problems[0]}" if rows else "no rows"
        )
        raise BadInput(f"{shown!r}: {why}")
    notice = f"{shown!r}: {len(problems):,} of {len(rows):,} questions were left out"
    notices = (f"{notice}; the first: {problems[0]}",) if problems else ()
    return Questions(tuple(kept.values()), labelled, notices)


def _without(rows: list[_Row], shown: str, other: epath.PathLike) -> list[_Row]:
    """The rows about articles that another file, if one is named, has not. Raises `BadInput` if none
    are."""
    if not os.fspath(other):
        return rows
    file = epath.Path(other).expanduser()
    there = list(_rows(file))
    for name, found in ((shown, rows), (os.fspath(file), there)):
        if not all(isinstance(row.title, str) and row.title for row in found):
            raise BadInput(
                f"{name!r} has questions without the title of an article, so none can be told apart by it; give "
                'each a "title", or leave out no articles'
            )
    titles = {row.title for row in there}
    left = [row for row in rows if row.title not in titles]
    if not left:
        raise BadInput(
            f"{shown!r} has no article that is not in {os.fspath(file)!r}; its articles: "
            f"{listed(sorted({row.title for row in rows}), 5)}; give another file"
        )
    return left


def _rows(file: epath.Path) -> Iterator[_Row]:
    """The questions of a file, or of a set by name, as they stand there, at least one."""
    shown = os.fspath(file)
    if data_sets.is_named(shown):
        for number, values in data_sets.records(shown, _COLUMNS):
            yield _Row(values.get("title", ""), values.get("context"), values, f"row {number}")
        return
    text = _unpacked(file)
    flat: list[tuple[str, Any]]
    if file.name.removesuffix(".xz").removesuffix(".gz").endswith(".jsonl"):
        lines = ((f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        flat = [(where, _json(line, f"{shown!r} {where}")) for where, line in lines]
    else:
        value = _json(text, repr(shown))
        if not isinstance(value, list):
            yield from _official(value, shown)
            return
        flat = [(f"number {number}", held) for number, held in enumerate(value)]
    for where, held in flat:
        if not isinstance(held, dict):
            raise BadInput(f"{shown!r} {where} is no JSON object; {_FORM}")
        yield _Row(held.get("title", ""), held.get("context"), held, where)
    if not flat:
        raise BadInput(f"{shown!r} has no questions; {_FORM}")


def _official(value: Any, shown: str) -> Iterator[_Row]:
    """The questions of SQuAD's own form: articles, their paragraphs, the questions about each."""
    empty = True
    for a, article in enumerate(_list_in(value, "data", f"{shown!r}")):
        place = f"{shown!r} article {a}"
        for p, paragraph in enumerate(_list_in(article, "paragraphs", place)):
            place_p = f"{place} paragraph {p}"
            for q, values in enumerate(_list_in(paragraph, "qas", place_p)):
                if not isinstance(values, dict):
                    raise BadInput(f"{place_p} question {q} is no JSON object; {_FORM}")
                where = f"{q} of article {a} paragraph {p}"
                yield _Row(article.get("title", ""), paragraph.get("context"), values, where)
                empty = False
    if empty:
        raise BadInput(f"{shown!r} has no questions; {_FORM}")


def _list_in(value: Any, key: str, place: str) -> list[Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{place} is no JSON object but a {type(value).__name__}; {_FORM}")
    if not isinstance(value.get(key), list):
        raise BadInput(f"{place} has no list {key!r} but {listed(value, 5)}; {_FORM}")
    return value[key]


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        rows = "; name it .jsonl if each line is a row" if "Extra data" in str(error) else ""
        raise BadInput(f"{place} is not JSON ({shortened(error, 200)}){rows}; {_FORM}") from error


def _unpacked(file: epath.Path) -> str:
    """All of a UTF-8 file, .xz and .gz unpacked. Raises `BadInput` where that cannot be."""
    shown = os.fspath(files.find(file, "SQuAD file"))
    try:
        with files.unpacked(file) as stream:
            content = stream.read(LARGEST_FILE + 1)
        not_text.check_bytes(content[:512], shown)
        if len(content) > LARGEST_FILE:
            raise BadInput(f"{shown!r} holds more than {LARGEST_FILE:,} bytes; give a part of it")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{shown!r} is not UTF-8 text at byte {error.start:,}: convert it, e.g. with iconv -f latin1 -t utf-8"
        ) from error


def _says_something(values: dict[str, Any]) -> bool:
    """Whether a question has an answer or is said to be impossible."""
    given = values.get("answers")
    texts = given.get("text") if isinstance(given, dict) else given
    return bool(texts) or values.get("is_impossible") is True


def _question(row: _Row, labelled: bool) -> Question:
    """Raises `_Bad` if it cannot be used."""
    values = row.values
    fields = {**values, "context": row.context}
    for name in ("id", "context", "question"):
        if name not in fields or fields[name] is None:
            raise _Bad(f"has no {name!r} ({nearest(name, fields)})")
        if not isinstance(fields[name], str):
            raise _Bad(f"has a {name!r} that is no text but a {type(fields[name]).__name__}")
        if not _encodes(fields[name]):
            raise _Bad(f"has half a character (a lone surrogate) in its {name!r}")
    answers: tuple[Answer, ...] = ()
    impossible = False
    if labelled:
        answers = tuple(_answer(pair, row.context) for pair in _pairs(values))
        impossible = _impossible(values, bool(answers))
    title = row.title if isinstance(row.title, str) else ""
    return Question(values["id"], title, row.context, values["question"], answers, impossible)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _impossible(values: dict[str, Any], answered: bool) -> bool:
    said = values.get("is_impossible", not answered)
    if not isinstance(said, bool):
        raise _Bad(f"has is_impossible {shortened(said)!r}, expected true or false")
    if said == answered:
        raise _Bad(
            "is said to be impossible and has answers"
            if answered
            else "has no answers and is not said to be impossible"
        )
    return said


def _pairs(values: dict[str, Any]) -> Sequence[tuple[Any, Any]]:
    """(text, start) of every answer: of a list of objects, or of an object of two lists."""
    given = values.get("answers", [] if values.get("is_impossible") is True else None)
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts))
    elif isinstance(given, list) and all(isinstance(one, dict) for one in given):
        return [(one.get("text"), one.get("answer_start")) for one in given]
    raise _Bad(
        f'has "answers" {shortened(given)}, expected a list of {{"text", "answer_start"}}, or an object of two such '
        "lists of one length"
    )


def _answer(pair: tuple[Any, Any], context: str) -> Answer:
    text, start = pair
    if not isinstance(text, str) or not text or not isinstance(start, int):
        raise _Bad(
            f"has the answer {shortened(repr(text))} at {shortened(repr(start))}, expected a text and a number"
        )
    stands = context[start : start + len(text)] if start >= 0 else ""
    if stands != text:
        raise _Bad(
            f"has the answer {shortened(repr(text))} at character {start}, where its context has {shortened(repr(stands))}"
        )
    return Answer(text, start)

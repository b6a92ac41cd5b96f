"""What the first row of a table is, a header or an example, and which columns are meant. Called by
columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from jaxdistill.data.labels import as_number
from jaxdistill.data.table_rows import Row
from jaxdistill.data.table_text import Text
from jaxdistill.errors import BadInput, listed, nearest, shortened

Column = str | int
HEADERS = ("auto", "yes", "no")
_LABEL_NAMES = (
    "label", "labels", "label_id", "label_name", "label_text", "gold", "gold_label", "class",
    "classes", "class_index", "class_label", "class_name", "category", "categories", "target",
    "targets", "ground_truth", "score", "scores", "quality", "is_duplicate", "duplicate",
    "similarity", "similarity_score", "relatedness", "relatedness_score", "entailment",
    "entailment_label", "entailment_judgment", "entailment_judgement", "judgment", "judgement",
    "annotation", "acceptability", "sentiment", "sentiments", "emotion", "emotions", "polarity",
    "intent", "intents", "topic", "topics", "stance", "tag", "tags", "rating", "ratings", "star",
    "stars", "y",
)  # fmt: skip
_TEXT_NAMES = (
    "text", "texts", "text1", "text2", "text_a", "text_b", "text_1", "text_2", "sentence",
    "sentences", "sentence1", "sentence2", "sentence_1", "sentence_2", "sentence_a", "sentence_b",
    "sent1", "sent2", "s1", "s2", "question", "questions", "question1", "question2", "question_1",
    "question_2", "premise", "hypothesis", "content", "contents", "review", "reviews", "title",
    "headline", "description", "document", "body", "abstract", "comment", "tweet", "query",
    "utterance", "phrase", "message", "passage", "context", "paragraph", "#1_string", "#2_string",
    "answer", "answers", "anchor", "positive",
)  # fmt: skip
_MISSING = frozenset(("na", "n/a", "nan", "none", "null", "nil", "-", "?", "unknown"))
_TAG = re.compile(r"([BIESLUM]-.+|O)$")
_MOST = 0.9


def is_number(column: Column) -> bool:
    """Whether a column is given by its number, from 0."""
    return re.fullmatch("[0-9]{1,9}", str(column)) is not None


def find_places(columns: Sequence[Column], header: Sequence[str] | None, shown: str) -> list[int]:
    """The number of each column. `header`: the names, or None without any.

    Raises:
        BadInput: a name that is not in the header, or is in it twice; one column given twice.
    """
    names = [name.strip() for name in header or ()]
    places: list[int] = []
    for column in columns:
        if isinstance(column, int) or (is_number(column) and column.strip() not in names):
            if not is_number(column):
                raise BadInput(f"column {column}: columns are numbered from 0")
            places.append(int(column))
            continue
        name = column.strip()
        if name not in names:
            raise BadInput(
                f"{shown!r} has no column {shortened(name)!r} in its first row: {nearest(name, map(shortened, names))}; "
                "without a header give columns by their numbers, from 0"
            )
        if names.count(name) > 1:
            raise BadInput(
                f"{shown!r} has {names.count(name)} columns of the name {shortened(name)!r}: rename them, or give the "
                "column by its number, from 0"
            )
        places.append(names.index(name))
    if len(set(places)) < len(places):
        raise BadInput(f"{shown!r}: the columns {listed(columns)} must differ")
    return places


def has_header(
    shown: str,
    rows: Sequence[Row],
    places: Sequence[int],
    label: int | None,
    known: Collection[str],
) -> tuple[bool, str]:
    """Whether the first row is a header where columns are given by numbers, and a notice or "".

    Args:
        shown: the file.
        places: the numbers of the columns.
        label: which of them holds the labels, or None.
        known: labels that are known from elsewhere.

    Raises:
        BadInput: it may be both.
    """
    first = [cell.strip() for cell in rows[0].cells]
    ambiguous = BadInput(
        f"{shown!r} line {rows[0].line} may be a header or an example: {listed(map(_quoted, first), 4)}; "
        "say which with header=yes or header=no"
    )
    numbers = [cell for place, cell in enumerate(first) if place or cell]
    if len(numbers) > 1 and numbers == [str(number) for number in range(len(numbers))]:
        raise ambiguous  # pandas writes such a header for columns without names
    wanted = [first[place] if place < len(first) else "" for place in places]
    if label is None:
        return all(is_usual(cell, _TEXT_NAMES + _LABEL_NAMES) for cell in wanted), ""
    at, cell = places[label], wanted[label]
    if not cell or as_number(cell) is not None or cell in known:
        return False, ""
    texts = [text for number, text in enumerate(wanted) if number != label]
    usual = is_usual(cell, _LABEL_NAMES) or (
        bool(texts) and all(is_usual(text, _TEXT_NAMES) for text in texts)
    )
    # A header may stand in the middle too, where files were joined.
    others = {
        row.cells[at].strip()
        for row in rows[1:]
        if at < len(row.cells) and not (usual and is_repeated(row, first))
    } - {""}
    if cell in others:
        return False, ""
    if usual:
        return True, ""
    if cell.lower() in _MISSING or not others:
        raise ambiguous
    if all(as_number(other) is not None for other in others):
        return True, ""
    if known and all(other in known for other in others):
        return True, (
            f"line {rows[0].line} of {shown!r} is taken as its header, as {shortened(cell)!r} is no known label; if it "
            "is an example, set header=no"
        )
    raise ambiguous


def is_repeated(row: Row, header: Sequence[str]) -> bool:
    """Whether a row is the header once more."""
    return (
        len(row.cells) == len(header) > 1
        and row.cells[0].strip() == header[0]
        and [cell.strip() for cell in row.cells] == list(header)
    )


def _quoted(cell: str) -> str:
    return repr(shortened(cell, 40))


def is_usual(cell: str, names: Sequence[str]) -> bool:
    """Whether a cell is one of `names`, however it is spelt."""
    return re.sub(r"[\s-]+", "_", cell.strip().lower()) in names


def refuse_tagging(text: Text, separator: str, label: Column | None) -> None:
    """Raises BadInput for a file of tagged words, one a line, with blank lines between sentences."""
    lines = [line.strip() for line in text.plain_lines()]
    full = [number for number, line in enumerate(lines) if line.strip(separator)]
    if not full or full[-1] - full[0] == len(full) - 1:
        return
    tagged = 0
    for number in full:
        cells = lines[number].split(separator)
        at = int(label) if label is not None and is_number(label) else -1
        if (
            len(cells) == 1
        ):  # CoNLL's files have blanks between their columns, and the tag is the last
            cells, at = lines[number].split(), -1
        tag = cells.pop(at if at < len(cells) else -1)
        words = bool(cells) and all(len(cell.split()) == 1 for cell in cells)
        tagged += words and _TAG.match(tag.strip()) is not None
    if tagged >= _MOST * len(full):
        raise BadInput(
            f"{text.shown!r} looks like a tagging file, a word and its tag a line and blank lines between sentences: "
            "use task=tagging, or give a table with a text and its label a line"
        )

"""Queries, documents, and which documents answer which query, read from files: a folder as BEIR has it
(Thakur et al. 2021, arXiv:2104.08663), three files, or a table of pairs. Called by retrieval."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from etils import epath

from jaxdistill.data import columns, data_sets, files, table_header, table_rows, table_text
from jaxdistill.data.columns import BadRows, Layout
from jaxdistill.data.examples import several
from jaxdistill.data.labels import as_number
from jaxdistill.data.table_rows import Row
from jaxdistill.data.table_text import Text
from jaxdistill.errors import BadInput, shortened

_IDS = (
    "id", "_id", "qid", "query", "query_id", "did", "docid", "doc_id", "document", "document_id",
    "pid", "passage_id", "cid", "corpus_id",
)  # fmt: skip
_OF_FILE = ("header", "quoting", "separator")  # settings of tables that hold texts
_FORMS = (
    "2 columns (query, document), 3 (query, document, score) or 4 (TREC: query, 0, document, score)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFiles:
    """Where queries, documents and judgements are.

    `source`: BEIR's folder, with corpus.jsonl, queries.jsonl and qrels/`split`.tsv; or a table, or a
    set by name, with a query and its document in each row, in the columns `query_column` and
    `document_column`, by name or by number from 0. Or three files instead: `documents` and `queries`, BEIR's .jsonl or tables of an
    id and a text, and `relevant`, in two columns, in BEIR's three, or in TREC's four. All may be packed
    as .gz or .xz. `header`, `quoting`, `separator`: of the tables that hold texts."""

    source: str = ""
    split: str = "test"
    documents: str = ""
    queries: str = ""
    relevant: str = ""
    query_column: str = "0"
    document_column: str = "1"
    header: Literal["auto", "yes", "no"] = "auto"
    quoting: Literal["auto", "none", "quoted"] = "auto"
    separator: str = ""
    skip_bad_rows: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.header, self.quoting, self.separator, self.skip_bad_rows)


@dataclasses.dataclass(frozen=True)
class Searches:
    """Q queries that have relevant documents, and D documents, each with its id. `relevant`: for each
    query the numbers of its documents, rising. `left_out_Q`: int64, the document that is not ranked
    for a query, -1 for none. `place`: the files. `notices`: what the user should know."""

    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]
    left_out_Q: np.ndarray
    place: str
    notices: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that scores depend on."""
        return files.digest_of(
            [self.queries, self.documents, self.relevant, self.left_out_Q.tolist()]
        )


class _Texts(NamedTuple):
    """The texts of a file by their ids."""

    shown: str
    by_id: Mapping[str, str]
    notices: list[str]


def read_searches(where: SearchFiles, section: str) -> Searches:
    """All queries that have a relevant document. `section`: what a message calls the settings.

    Raises:
        BadInput: files that cannot be used; settings that are missing, or that would do nothing; and a
            bad row, with its line, unless they are skipped: an id that is there twice or that the
            judgements name and no file has.
    """
    three = {name: getattr(where, name) for name in ("documents", "queries", "relevant")}
    if where.source:
        if (folder := epath.Path(where.source).expanduser()).is_dir():
            _check_used(where, section, ("source", "split"))
            return _of_folder(folder, where)
        pairs = ("source", "query_column", "document_column")
        of_file = () if data_sets.is_named(where.source) else _OF_FILE
        _check_used(where, section, (*pairs, *of_file))
        return _of_pairs(where)
    for name, given in three.items():
        if not given:
            raise BadInput(
                f"{section}.{name} is empty: give documents, queries and relevant, or as source BEIR's folder or "
                "a table of queries and their documents"
            )
    _check_used(where, section, (*three, *_OF_FILE))
    return _of_files(three, where)


def _check_used(where: SearchFiles, section: str, used: tuple[str, ...]) -> None:
    """Raises `BadInput` for a setting that would do nothing."""
    for field in dataclasses.fields(where):
        given = getattr(where, field.name)
        if field.name not in (*used, "skip_bad_rows") and given != field.default:
            beside = (
                f"source={where.source!r}" if where.source else f"documents={where.documents!r}"
            )
            raise BadInput(
                f"{section}.{field.name}={given!r} would do nothing beside {beside}; leave one of the two out"
            )


def _of_folder(folder: epath.Path, where: SearchFiles) -> Searches:
    advice = "expected BEIR's corpus.jsonl, queries.jsonl and qrels/test.tsv"
    three: dict[str, epath.PathLike] = {
        "documents": files.in_folder(folder, "corpus.jsonl", advice),
        "queries": files.in_folder(folder, "queries.jsonl", advice),
        "relevant": files.in_folder(
            folder / "qrels", f"{where.split}.tsv", "choose one of them by split"
        ),
    }
    found = _of_files(three, where)
    # A query of ArguAna is one of its documents; BEIR drops what has the query's own id.
    numbers = {name: number for number, name in enumerate(found.document_ids)}
    own = [numbers.get(name, -1) for name in found.query_ids]
    left_out_Q = np.array(
        [-1 if number in wanted else number for number, wanted in zip(own, found.relevant)]
    )
    notices = found.notices
    if count := int(np.sum(left_out_Q >= 0)):
        notices += (
            f"{count:,} queries of {where.source!r} have the id of a document, which is left out of what "
            "is found for them, as BEIR does",
        )
    return dataclasses.replace(found, left_out_Q=left_out_Q, place=where.source, notices=notices)


def _of_files(three: Mapping[str, epath.PathLike], where: SearchFiles) -> Searches:
    documents = _read_texts(three["documents"], "document", where)
    queries = _read_texts(three["queries"], "query", where)
    numbers = {name: number for number, name in enumerate(documents.by_id)}
    text = table_text.read_text(three["relevant"])
    bad = BadRows(text.shown, where.skip_bad_rows)
    relevant: dict[str, set[int]] = {}
    for query, document in _judgements(text, queries, documents, bad):
        relevant.setdefault(query, set()).add(numbers[document])
    if not relevant:
        raise BadInput(
            f"{text.shown!r} names no relevant document of any query in {queries.shown!r}"
            + (f", e.g. {bad.example}" if bad.example else "; expected a score above 0")
        )
    kept = [name for name in queries.by_id if name in relevant]
    notices = [*documents.notices, *queries.notices, *bad.notices()]
    if without := len(queries.by_id) - len(kept):
        notices.append(
            f"{without:,} of {len(queries.by_id):,} queries of {queries.shown!r} have no relevant document in "
            f"{text.shown!r}, and are left out"
        )
    return Searches(
        tuple(kept),
        tuple(queries.by_id[name] for name in kept),
        tuple(documents.by_id),
        tuple(documents.by_id.values()),
        tuple(tuple(sorted(relevant[name])) for name in kept),
        np.full(len(kept), -1),
        ", ".join((documents.shown, queries.shown, text.shown)),
        tuple(notices),
    )


def _read_texts(path: epath.PathLike, what: str, where: SearchFiles) -> _Texts:
    """The texts of a file with an id and a text in each row; a title becomes a part of its text."""
    text = table_text.read_text(path)
    bad = BadRows(text.shown, where.skip_bad_rows)
    rows, notice = _rows_of_texts(text, where.layout)
    by_id: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row in rows:
        name, *parts = (cell.strip() for cell in row.cells or [""])
        if row.fault:
            bad.add(row.line, row.fault)
        elif not name:
            bad.add(row.line, "has no id")
        elif name in by_id:
            bad.add(
                row.line, f"has the id {shortened(name)!r}, as line {lines[name]}; ids must differ"
            )
        else:
            by_id[name], lines[name] = " ".join(filter(None, parts)), row.line
    if not by_id:
        why = f"has bad rows only, e.g. {bad.example}" if bad.example else "is empty"
        raise BadInput(f"{text.shown!r} {why}: expected a {what} in each line")
    notices = [*([notice] if notice else []), *bad.notices()]
    if empty := sum(not content for content in by_id.values()):
        notices.append(f"{text.shown!r}: the text of {empty:,} of {len(by_id):,} ids is empty")
    return _Texts(text.shown, by_id, notices)


def _rows_of_texts(text: Text, layout: Layout) -> tuple[list[Row], str]:
    """Rows of an id and the parts of a text, those with faults too; and a notice, or ""."""
    if text.is_json:
        return table_rows.json_rows(text, ("_id", "title", "text"), optional=("title",)), ""
    separator = layout.separator or text.separator
    quoting = "quoted" if text.is_csv else layout.quoting
    rows, notice = table_rows.table_rows(text, separator, quoting)
    if rows and not rows[0].fault:
        named = table_header.is_usual(rows[0].cells[0], _IDS)
        rows = rows[1:] if layout.header == "yes" or (named and layout.header == "auto") else rows
    checked = []
    for row in rows:
        if not row.fault and len(row.cells) != 2:
            said = table_rows.wrong_width(row, 2, separator)
            row = row._replace(fault=f"{said}; a row is an id and its text")
        checked.append(row)
    return checked, notice


def _judgements(
    text: Text, queries: _Texts, documents: _Texts, bad: BadRows
) -> Iterator[tuple[str, str]]:
    """The ids of a query and of a document that is relevant for it; a score of 0 or less says that it
    is not."""
    rows = _rows_of_ids(text)
    width = table_rows.usual_width(rows) if rows else 0
    if not 2 <= width <= 4:
        shown = f"has {width} columns" if rows else "is empty"
        raise BadInput(f"{text.shown!r} {shown}: expected {_FORMS}")
    judged: dict[tuple[str, str], bool] = {}
    for row in rows:
        if len(row.cells) != width:
            bad.add(row.line, f"has {len(row.cells)} columns, expected {width} as in most lines")
            continue
        query, document = row.cells[0], row.cells[2 if width == 4 else 1]
        score = 1.0 if width == 2 else as_number(row.cells[-1])
        if row is rows[0] and _is_header(row.cells) and query not in queries.by_id:
            continue
        if lacks := _lacks(queries, "query", query) or _lacks(documents, "document", document):
            bad.add(row.line, lacks)
        elif score is None:
            bad.add(row.line, f"has the score {shortened(row.cells[-1])!r}, expected a number")
        elif judged.setdefault((query, document), score > 0) != (score > 0):
            said = f"query {shortened(query)!r} and document {shortened(document)!r}"
            bad.add(row.line, f"says of {said} what a line before it denies")
        elif score > 0:
            yield query, document


def _lacks(texts: _Texts, what: str, name: str) -> str:
    """What is wrong with a row that names a text which is not there; "" of one that is."""
    if name in texts.by_id:
        return ""
    return f"names the {what} {shortened(name)!r}, which {texts.shown!r} lacks"


def _rows_of_ids(text: Text) -> list[Row]:
    """The rows that are not blank; between cells stand tabs, of a .csv commas, else any blanks."""
    lines = [(number, line) for number, line in enumerate(text.plain_lines(), 1) if line.strip()]
    separator: str | None = text.separator
    if lines and separator == "\t" and "\t" not in lines[0][1]:
        separator = None
    return [Row(number, [cell.strip() for cell in line.split(separator)]) for number, line in lines]


def _is_header(cells: list[str]) -> bool:
    """Whether a first row whose ids no file has is a header: of scores it has a word, of ids their
    usual names."""
    if len(cells) > 2:
        return as_number(cells[-1]) is None
    return all(table_header.is_usual(cell, _IDS) for cell in cells)


def _of_pairs(where: SearchFiles) -> Searches:
    """Equal texts are one query or one document, with the line where it stands first as its id."""
    paths, wanted = several(where.source), [where.query_column, where.document_column]
    if data_sets.is_named(where.source):
        skip = where.skip_bad_rows
        found = data_sets.read_columns(paths, wanted, label=None, skip_bad_rows=skip)
    else:
        found = columns.read_columns(paths, wanted, where.layout)
    ids = [str(line) if len(paths) == 1 else f"{file}:{line}" for file, line in found.places]
    (of_query, queries), (of_document, documents) = (_numbered(cells, ids) for cells in found.cells)
    relevant: list[set[int]] = [set() for _ in queries]
    for query, document in zip(of_query, of_document):
        relevant[query].add(document)
    notices = found.notices
    if len(ids) > min(len(queries), len(documents)):
        notices += (
            f"{len(ids):,} rows of {where.source!r} have {len(queries):,} different queries and "
            f"{len(documents):,} different documents",
        )
    return Searches(
        tuple(queries.values()),
        tuple(queries),
        tuple(documents.values()),
        tuple(documents),
        tuple(tuple(sorted(of)) for of in relevant),
        np.full(len(queries), -1),
        where.source,
        notices,
    )


def _numbered(cells: Sequence[str], ids: Sequence[str]) -> tuple[list[int], dict[str, str]]:
    """The number of each cell's text among the different ones, and those with their ids."""
    first: dict[str, str] = {}
    for cell, name in zip(cells, ids):
        first.setdefault(cell.strip(), name)
    numbers = {text: number for number, text in enumerate(first)}
    return [numbers[cell.strip()] for cell in cells], first

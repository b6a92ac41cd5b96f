"""Tagged sentences from files: CoNLL columns, or words and tags in the same lines of two files.

For named entities, chunks, parts of speech and slots. `tagged` makes rows of them. Called by
tagging."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from etils import epath

from jaxdistill.data import files, text_files
from jaxdistill.data.table_text import LARGEST_TABLE
from jaxdistill.data.tag_schemes import Sentences, to_bio
from jaxdistill.errors import BadInput, shortened

Place = tuple[str, int]
_DOCUMENT = "-DOCSTART-"
_LINE_OVERHEAD = 200
BLANKS = " \t"  # and no other: a no-break space or U+2028 may be a token, or part of one
_LANGUAGE = re.compile("[a-z]{2}:", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Sentences of words. `tags`: a tag for each word, or None; `places`: file and line of each
    sentence's first word; `notices`: what a user should know of the files."""

    tokens: Sentences
    tags: Sentences | None
    places: tuple[Place, ...]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """Of the words and their tags."""
        return files.digest_of([self.tokens, self.tags])

    def take(self, rows: Sequence[int]) -> Tagged:
        """Only these sentences, in this order."""
        tags = None if self.tags is None else tuple(self.tags[row] for row in rows)
        return dataclasses.replace(
            self,
            tokens=tuple(self.tokens[row] for row in rows),
            tags=tags,
            places=tuple(self.places[row] for row in rows),
        )

    def place(self, sentence: int, word: int) -> str:
        """Where a word is, for a message."""
        file, line = self.places[sentence]
        shown = shortened(self.tokens[sentence][word])
        return (
            f"{file!r} line {line}, word {word + 1} of the sentence that begins there ({shown!r})"
        )


def read_conll(
    path: epath.PathLike,
    *,
    token_column: int = 0,
    tag_column: int | None = -1,
    separator: str = "",
    skip_bad_rows: bool = False,
) -> Tagged:
    """Reads a token a line, in columns, with a blank line between sentences; also .xz and .gz.

    Left out are lines that begin with -DOCSTART-, which end a sentence, and comments: lines that
    begin with "# " and have fewer columns than needed. WikiANN's "en:" before every token goes.

    Args:
        path: the file.
        token_column, tag_column: numbers from 0, negative ones from the end; `tag_column` None reads no tags.
        separator: between columns. "": tabs if the file has any, else any run of blanks.
        skip_bad_rows: leave out sentences that hold a bad row, with a notice.

    Raises:
        BadInput: no such file, no sentence in it, or a row without its token or tag (file and line).
    """
    if tag_column == token_column:
        raise BadInput(f"token_column and tag_column are both {token_column}; they must differ")
    lines, shown = all_lines(path)
    split = _splitter(lines, separator)
    found, skipped = [], []
    for block in _blocks(lines, split):
        rows: list[tuple[int, str, str]] = []
        for number, line in block:
            cells = split(line)
            if line.startswith("# ") and len(cells) < _needed(token_column, tag_column):
                continue
            if wrong := _problem(cells, token_column, tag_column):
                break
            tag = "" if tag_column is None else cells[tag_column]
            rows.append((number, cells[token_column], tag))
        else:
            if rows:
                numbers, tokens, tags = zip(*rows)
                found.append(((shown, numbers[0]), tokens, tags))
            continue
        if not skip_bad_rows:
            raise BadInput(
                f"{shown!r} line {number} ({shortened(line)!r}) {wrong}; mend the line, set "
                "token_column, tag_column or separator, or leave such sentences out with skip_bad_rows=True"
            )
        skipped.append(number)
    return _tagged(found, shown, tag_column is not None, _skipped_notice(shown, skipped))


def read_parallel_tags(
    tokens_path: epath.PathLike, tags_path: epath.PathLike | None, *, skip_bad_rows: bool = False
) -> Tagged:
    """Reads a sentence a line, and its tags in the same line of another file, both split at blanks.

    Lines that are blank in both files are no sentences. `tags_path` None reads no tags.

    Raises:
        BadInput: no such file, no sentence in it, files of unlike length, or a line with unlike numbers
            of words and tags (file and line).
    """
    lines, shown = all_lines(tokens_path)
    tag_lines, tags_shown = ([""] * len(lines), "") if tags_path is None else all_lines(tags_path)
    if len(lines) != len(tag_lines):
        raise BadInput(
            f"{shown!r} has {len(lines):,} lines but {tags_shown!r} {len(tag_lines):,}: expected the tags of each "
            "line in the same line; give the files that belong together"
        )
    found, skipped = [], []
    for number, (line, tag_line) in enumerate(zip(lines, tag_lines), start=1):
        tokens, tags = _at_blanks(line), _at_blanks(tag_line)
        if tags_path is not None and len(tokens) != len(tags):
            if skip_bad_rows:
                skipped.append(number)
                continue
            raise BadInput(
                f"{shown!r} line {number} has {len(tokens)} words but {tags_shown!r} {len(tags)} tags: expected one "
                "for each word; mend the line, or leave such sentences out with skip_bad_rows=True"
            )
        if tokens:
            found.append(((shown, number), tuple(tokens), tuple(tags)))
    return _tagged(found, shown, tags_path is not None, _skipped_notice(shown, skipped))


def all_lines(path: epath.PathLike) -> tuple[list[str], str]:
    """The lines of a file without their ends, and its name for messages."""
    file = files.find(path, "tagged file")
    shown = os.fspath(file)
    lines, size = [], 0
    for line in text_files.read_lines(file):
        size += len(line) + _LINE_OVERHEAD
        if size > LARGEST_TABLE:
            raise BadInput(
                f"tagged file {shown!r} holds more than fits into {LARGEST_TABLE:,} bytes of memory: give a part of it"
            )
        lines.append(line)
    return lines, shown


def _at_blanks(line: str) -> list[str]:
    return [cell for cell in line.replace("\t", " ").split(" ") if cell]


def _splitter(lines: Iterable[str], separator: str) -> Callable[[str], list[str]]:
    """How a line is split into columns."""
    if separator == "\\t":  # as a shell passes it
        separator = "\t"
    if not separator:
        has_tabs = any("\t" in line.strip(BLANKS) for line in lines if not line.startswith("# "))
        if not has_tabs:
            return _at_blanks
        separator = "\t"
    return lambda line: [cell.strip(BLANKS) for cell in line.split(separator)]


def _blocks(
    lines: Iterable[str], split: Callable[[str], list[str]]
) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines of each sentence."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        is_border = not line.strip(BLANKS) or (
            _DOCUMENT in line and any(cell.startswith(_DOCUMENT) for cell in split(line))
        )
        if not is_border:
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


@functools.cache
def _needed(*columns: int | None) -> int:
    """How many columns a row must have so that these are two."""
    given = [column for column in columns if column is not None]
    least = max(column + 1 if column >= 0 else -column for column in given)
    places = {column % least for column in given}
    return least if len(places) == len(given) else least + 1


def _problem(cells: list[str], token_column: int, tag_column: int | None) -> str:
    """What is wrong with a row, "" if nothing is."""
    needed = _needed(token_column, tag_column)
    if len(cells) < needed:
        return f"has {len(cells)} of the {needed} columns expected"
    if not cells[token_column]:
        return f"has nothing in the token's column {token_column}"
    if tag_column is None:
        return ""
    if token_column % len(cells) == tag_column % len(cells):
        return f"has {len(cells)} columns, of which {token_column} and {tag_column} are one"
    return "" if cells[tag_column] else f"has nothing in the tag's column {tag_column}"


def _skipped_notice(shown: str, skipped: list[int]) -> list[str]:
    if not skipped:
        return []
    return [
        f"{shown!r}: {len(skipped):,} sentences with a bad row were left out, the first for line {skipped[0]}"
    ]


def _tagged(
    found: Sequence[tuple[Place, tuple[str, ...], tuple[str, ...]]],
    shown: str,
    has_tags: bool,
    notices: list[str],
) -> Tagged:
    if not found:
        left_out = f" ({notices[0]})" if notices else ""
        raise BadInput(f"tagged file {shown!r} holds no sentence{left_out}: is it the right file?")
    places, tokens, tags = zip(*found)
    prefix = tokens[0][0][:3]
    if _LANGUAGE.fullmatch(prefix) and all(
        token.startswith(prefix) and len(token) > len(prefix) for token in itertools.chain(*tokens)
    ):
        tokens = tuple(tuple(token[len(prefix) :] for token in sentence) for sentence in tokens)
        notices = [*notices, f"{shown!r}: every token begins with {prefix!r}, which was taken off"]
    return Tagged(tokens, tags if has_tags else None, places, tuple(notices))


def with_bio_tags(tagged: Tagged, scheme: str = "auto") -> tuple[Tagged, str]:
    """`tagged` with its tags in BIO or plain, and the scheme they had; a notice tells of invalid ones."""
    if tagged.tags is None:
        return tagged, "plain" if scheme == "auto" else scheme
    try:
        bio = to_bio(tagged.tags, scheme)
    except BadInput as error:
        raise BadInput(f"{tagged.places[0][0]!r}: {error}") from None
    notices = tagged.notices
    if bio.invalid:
        first = tagged.place(*bio.invalid[0])
        sentences = len({sentence for sentence, _ in bio.invalid})
        notices += (
            f"{len(bio.invalid):,} tags in {sentences:,} sentences break the rules of {bio.scheme} and were kept; "
            f"the first: {first}",
        )
    return dataclasses.replace(tagged, tags=bio.tags, notices=notices), bio.scheme

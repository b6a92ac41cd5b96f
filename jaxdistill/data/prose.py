"""Picks the English prose out of documentation strings: what `default_corpus` is made with.

Docstrings are prose mixed with doctests, code, parameter lists, tables and markup. The rules are
simple and strict: a block that looks like anything but prose goes, markup is unwrapped, and of what
remains only whole sentences that read like English are kept. Losing a good sentence is cheap,
keeping a bad one is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from jaxdistill.data.documents import split_sentences

_FENCE = re.compile(r"^\s*(```|~~~)")
_DOCTEST = re.compile(r"^\s*(>>>|\.\.\. |In \[\d+\]|\$ )")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)]|\(?[a-z0-9]\))\s+")
_HEADING_LINE = re.compile(r"^\s*([-=~^\"'`#*+.<>_])\1{2,}\s*$")
_TABLE = re.compile(r"^\s*[|+]|\s\|\s|(={3,}|-{3,})\s+(={3,}|-{3,})|\t")
# "name : type", "name (type, optional):", "name: " at the head of an entry; the description behind
# it is prose.
_PARAMETER = re.compile(
    r"^\s*(?:\*{0,2}`{0,2}[\w.*]+`{0,2}(?:, ?\*{0,2}\w+)*)(?: ?\([^()]*(?:\([^()]*\)[^()]*)*\))?\s?:(?:\s+|$)"
)
_NUMPY_TYPE = re.compile(r"^\s*[*\w][\w*, ]* : ")
_FIELD = re.compile(r"^\s*:\w+(?: [^:]*)?:\s*")  # :param x:
_DIRECTIVE = re.compile(r"^\s*\.\. ")
_PROSE_DIRECTIVE = re.compile(
    r"^\s*\.\. (?:note|warning|tip|caution|important|seealso|attention)::\s*", re.IGNORECASE
)
_MARKUP = (
    (
        re.compile(r":[\w:+.-]+:`~?(?:[^`<]*\.)?([^`<.]+?)(?:\s*<[^`]*>)?`"),
        r"\1",
    ),  # :class:`~a.b.C` is C
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <url>`_
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\[`[~!]?([^`]+)`\]"), r"\1"),  # [`Class`]
    (re.compile(r"\s?\[(?:\d+|[A-Z]\w+)\]_?"), ""),  # [1]_
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`([^`]*)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^>]{0,40}>"), ""),
)
_MAY_HAVE_MARKUP = re.compile(r"[`*\[<]")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_ENGLISH = frozenset(
    {"a", "an", "the", "of", "to", "in", "is", "are", "and", "or", "for", "with", "that", "this", "be", "by", "on",
     "as", "it", "if", "from", "not", "at", "which", "when", "can", "will", "has", "have", "was", "were",
     "its", "into", "than", "then", "but", "their", "there", "all", "may", "should", "must", "any", "one",
     "other", "these", "you", "your", "we", "each", "only"}
)  # fmt: skip
_SYMBOLS = re.compile(r"[\\_{}<>=|\[\]/*^~@#$%+`]")
_LEAST_WORDS = 5
_LONGEST_SENTENCE = 1200  # characters; longer is data, not a sentence


def prose(documentation: str) -> Iterator[list[str]]:
    """The paragraphs of a docstring that are prose, each a list of sentences."""
    for paragraph in _paragraphs(inspect.cleandoc(documentation.replace("\r", ""))):
        if _MAY_HAVE_MARKUP.search(paragraph):
            for pattern, replacement in _MARKUP:
                paragraph = pattern.sub(replacement, paragraph)
        sentences = [
            sentence
            for sentence in split_sentences(" ".join(paragraph.split()))
            if is_english_sentence(sentence)
        ]
        if sentences:
            yield sentences


def is_english_sentence(sentence: str) -> bool:
    """Whether this is a whole English sentence: begins and ends as one, mostly plain words, few
    symbols."""
    if not sentence or len(sentence) > _LONGEST_SENTENCE or sentence[-1] not in ".!?:)\"'":
        return False
    first = sentence.lstrip("\"'(“‘")[:1]
    if not (first.isupper() or first.isdigit()) or not sentence.isprintable():
        return False
    pieces = sentence.split()
    words = _WORD.findall(sentence)
    if len(words) < _LEAST_WORDS or len(_SYMBOLS.findall(sentence)) > 0.03 * len(sentence):
        return False
    plain = sum(
        piece.strip(".,;:!?()\"'“”‘’").replace("-", "").replace("'", "").isalpha()
        for piece in pieces
    )
    lower = [word.lower() for word in words]
    english = sum(word in _ENGLISH for word in lower)
    letters = sum(map(str.isascii, sentence))
    return (
        plain >= 0.7 * len(pieces)
        and english >= max(1, 0.12 * len(words))
        and letters >= 0.95 * len(sentence)
    )


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines that may be prose, joined: split at blank lines, bullets, entries; code and
    tables left out."""
    lines: list[str] = []
    skip_indent = -1  # inside a block that is indented deeper than this, which is not prose
    in_fence = in_doctest = False
    for line in text.splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(line):
            in_fence = not in_fence
            stripped = ""
        elif in_fence:
            continue
        if not stripped:
            in_doctest = False
        if skip_indent >= 0 and stripped:
            if indent > skip_indent:
                continue
            skip_indent = -1
        if (
            not stripped
            or in_doctest
            or _DOCTEST.match(line)
            or _HEADING_LINE.match(line)
            or _TABLE.search(line)
        ):
            in_doctest = in_doctest or bool(_DOCTEST.match(line))
            # A line that underlines another makes that one a heading, which is no sentence and is
            # filtered out.
            if lines:
                yield " ".join(lines)
            lines = []
            continue
        if _DIRECTIVE.match(line):
            if lines:
                yield " ".join(lines)
            lines = []
            if match := _PROSE_DIRECTIVE.match(line):
                lines = [line[match.end() :]]
            else:
                skip_indent = indent
            continue
        entry = (
            _BULLET.match(line)
            or _FIELD.match(line)
            or _NUMPY_TYPE.match(line)
            or _PARAMETER.match(line)
        )
        if entry:
            if lines:
                yield " ".join(lines)
            lines = []
            if _NUMPY_TYPE.match(line):
                continue
            stripped = line[entry.end() :].strip()
            second = _PARAMETER.match(stripped) if _BULLET.match(line) else None
            stripped = stripped[second.end() :] if second else stripped
        lines.append(stripped)
        if stripped.endswith("::"):
            lines[-1] = stripped[:-1]
            skip_indent = indent
    if lines:
        yield " ".join(lines)

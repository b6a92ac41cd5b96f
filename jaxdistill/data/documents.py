"""A document of a text, and its sentences. What every reader of text makes; see `sources`.

Whoever changes how sentences are cut raises `prepare._FORMAT_VERSION`.
"""

from __future__ import annotations

import dataclasses
import re

BLANK_LINES, LINES = DOCUMENTS = (
    "blank_lines",
    "lines",
)  # what separates the documents of a .txt file
# A sentence ends at . ! or ? (and a closing quote or bracket) before a space and something that can
# start the next.
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]?\s+(?=[\"'“‘(\[]?[A-Z0-9])|[。！？](?![”’」』）])")
# Not after an initial or one of a few abbreviations; a wrong cut costs a pair's boundary, no more.
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:e\.g|i\.e|cf|vs|etc|Dr|Mr|Mrs|Ms|St|No|Fig|al))\.$")


@dataclasses.dataclass(frozen=True)
class Document:
    """`text`: lines separated by newlines. `name`: where it is from, for messages and reports."""

    text: str
    name: str


def split_sentences(text: str) -> list[str]:
    """The sentences of a document: every line is cut where a sentence ends. Empty ones are left
    out."""
    sentences = []
    for line in text.splitlines():
        begin = 0
        for end in _SENTENCE_END.finditer(line):
            if line[end.start()] == "." and _ABBREVIATION.search(
                line, max(begin, end.start() - 6), end.start() + 1
            ):
                continue
            sentences.append(line[begin : end.end()].strip())
            begin = end.end()
        sentences.append(line[begin:].strip())
    return [sentence for sentence in sentences if sentence]

"""Rows of tokens of questions about a context: [CLS] question [SEP] part of the context [SEP].

A context that is too long is cut into windows that overlap, as BERT (arXiv:1810.04805, section 4.2) and its
run_squad do. Every token keeps its characters in the context, so that an answer is found again as it is
spelt there. Called by tasks that ask for spans; `answers` reads a network's logits with it."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.data import tokenizers
from jaxdistill.data.squad import Answer, Questions
from jaxdistill.errors import BadInput

_TEXTS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class Windows:
    """M rows [CLS] question [SEP] part of the context [SEP], those of a question together.

    `ids`: int32 each, at most `length`; `second_begins`: int32 [M], where the context begins, of
    segment 1. `question`: int32 [M], ascending numbers into the questions. `start_positions`,
    `end_positions`: int32 [M], the first and the last token of the first answer where the window holds
    it whole, else 0, which is [CLS].

    Of each token of its part of the context, a window keeps `char_starts` and `char_ends`, int32 places
    in the context, and `max_context`, bool: a token that lies in several windows counts as the start of
    an answer in only one of them, where the smaller of its two sides is largest.

    `questions_cut`: how many were longer than allowed. `answers_widened`: how many end inside a token,
    so that all of it was taken. `answers_unmarked`: how many no window holds whole."""

    length: int
    ids: list[np.ndarray]
    second_begins: np.ndarray
    question: np.ndarray
    start_positions: np.ndarray
    end_positions: np.ndarray
    char_starts: list[np.ndarray]
    char_ends: list[np.ndarray]
    max_context: list[np.ndarray]
    questions_cut: int
    answers_widened: int
    answers_unmarked: int

    def __len__(self) -> int:
        return len(self.ids)


class _Tokens(NamedTuple):
    """A text in tokens: int32 each. `starts`, `ends`: the characters of each."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class _Span(NamedTuple):
    """The first and the last token of an answer, and whether they have more characters than it."""

    first: int
    last: int
    widened: bool


_NOWHERE = _Span(-1, -1, False)


class _Cut(NamedTuple):
    """The tokens of a context that a window holds, and bool for each, as in `Windows`."""

    begin: int
    end: int
    max_context: np.ndarray


class _Window(NamedTuple):
    """A row of `Windows`."""

    second_begins: int
    question: int
    start: int
    end: int
    ids: np.ndarray
    char_starts: np.ndarray
    char_ends: np.ndarray
    max_context: np.ndarray


def windows(
    questions: Questions, tokenizer: Any, length: int, stride: int, question_length: int = 64
) -> Windows:
    """Cuts every question and its context into rows of at most `length` tokens.

    Windows begin at tokens 0, `stride`, 2 * `stride`, ... of the context, and the last ends with it.
    Questions are cut to `question_length` tokens. Raises `BadInput` if words would be left out."""
    most = length - question_length - 3
    if question_length < 1 or not 1 <= stride <= most:
        raise BadInput(
            f"stride={stride}, question_length={question_length}, length={length}: expected a stride of 1 to "
            f"{max(most, 1)} (length - question_length - 3), else words between windows are never read; give a smaller "
            "stride or question_length, or a larger length"
        )
    special = tokenizers.describe(tokenizer).special
    backend = tokenizers.plain_backend(tokenizer)
    distinct = list(dict.fromkeys(row.context for row in questions.rows))
    contexts = dict(zip(distinct, _tokenized(backend, distinct)))
    asked = _tokenized(backend, [row.question for row in questions.rows])
    rows: list[_Window] = []
    cut = widened = unmarked = 0
    for number, (row, question) in enumerate(zip(questions.rows, asked)):
        context = contexts[row.context]
        head = np.array([special.cls, *question.ids[:question_length], special.sep], np.int32)
        answer = _covering(context, row.answers[0]) if row.answers else _NOWHERE
        cuts = _cuts(len(context.ids), length - len(head) - 1, stride)
        made = [_window(number, head, context, answer, part) for part in cuts]
        rows += made
        cut += len(question.ids) > question_length
        widened += answer.widened
        unmarked += bool(row.answers) and not any(window.start for window in made)
    second_begins, asking, starts, ends = np.array([row[:4] for row in rows], np.int32).T.copy()
    return Windows(
        length,
        [row.ids for row in rows],
        second_begins,
        asking,
        starts,
        ends,
        [row.char_starts for row in rows],
        [row.char_ends for row in rows],
        [row.max_context for row in rows],
        cut,
        widened,
        unmarked,
    )


def _window(number: int, head: np.ndarray, context: _Tokens, answer: _Span, cut: _Cut) -> _Window:
    """The part `cut` of a context, behind the `head` of question `number`: [CLS] question [SEP]."""
    part = slice(cut.begin, cut.end)
    ids = np.concatenate([head, context.ids[part], head[-1:]])
    start = end = 0
    if cut.begin <= answer.first <= answer.last < cut.end:
        start, end = (len(head) + place - cut.begin for place in answer[:2])
    chars = context.starts[part], context.ends[part]
    return _Window(len(head), number, start, end, ids, *chars, cut.max_context)


def _tokenized(backend: Any, texts: list[str]) -> Iterator[_Tokens]:
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[begin : begin + _TEXTS_AT_ONCE]
        for text, encoding in zip(some, backend.encode_batch(some, add_special_tokens=False)):
            offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            starts, ends = offsets[:, 0], _with_marks(text, *offsets.T)
            yield _Tokens(np.array(encoding.ids, np.int32), starts, ends)


def _with_marks(text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The ends of tokens, moved behind the accents that follow them as characters of their own: a
    tokenizer that strips accents leaves them to no token."""
    if text.isascii():
        return ends
    moved = ends.copy()
    limits = np.append(starts[1:], len(text))
    for number, (end, limit) in enumerate(zip(ends.tolist(), limits.tolist())):
        while end < limit and unicodedata.category(text[end]) == "Mn":
            end += 1
        moved[number] = end
    return moved


def _covering(context: _Tokens, answer: Answer) -> _Span:
    """The tokens that have any character of the answer."""
    end = answer.start + len(answer.text)
    first = int(np.searchsorted(context.ends, answer.start, side="right"))
    last = int(np.searchsorted(context.starts, end, side="left")) - 1
    if first > last:
        return _NOWHERE
    widened = context.starts[first] < answer.start or context.ends[last] > end
    return _Span(first, last, bool(widened))


@functools.lru_cache(2**14)
def _cuts(tokens: int, room: int, stride: int) -> tuple[_Cut, ...]:
    """The windows of a context of so many tokens; one that is empty where the context is."""
    begins = np.arange(0, max(1, tokens - room + stride), stride)
    ends = np.minimum(begins + room, tokens)
    place = np.arange(tokens)
    left, right = place - begins[:, None], ends[:, None] - 1 - place
    # The larger window wins where the sides are alike, and the first of windows of one size.
    score = np.minimum(left, right) + 0.01 * (ends - begins)[:, None]
    score[(left < 0) | (right < 0)] = -np.inf
    chosen = np.argmax(score, axis=0)
    cuts = []
    for number, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
        max_context = chosen[begin:end] == number
        max_context.setflags(write=False)  # many windows share it
        cuts.append(_Cut(begin, end, max_context))
    return tuple(cuts)

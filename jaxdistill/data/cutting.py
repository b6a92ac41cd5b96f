"""How a document becomes records: spans of consecutive tokens, cut between words. Called by
`prepare` and its Beam pipeline.

Whoever changes what comes out raises `prepare._FORMAT_VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdistill.data import randomness, tokenizers
from jaxdistill.data.randomness import Stream

SHORT_FRACTION = 0.1


class Cutter:
    """Makes the records of one document; may be pickled. `dtype`: that of tokens, "uint16" or
    "int32"."""

    def __init__(self, tokenizer: Any, settings: dict[str, Any]) -> None:
        vocabulary = tokenizers.describe(tokenizer)
        self.settings = settings
        self.dtype = "uint16" if vocabulary.size <= 65536 else "int32"
        self._is_continuation = np.zeros(vocabulary.size, bool)
        self._is_continuation[list(vocabulary.continuation_ids)] = True

    def __call__(
        self, tokens: np.ndarray, sentence_starts: np.ndarray, number: int
    ) -> list[dict[str, np.ndarray]]:
        """The records of document `number` (of those with two tokens or more, from 0); `document`
        counts from its first."""
        word_starts = ~self._is_continuation[tokens]
        longest = self.settings["sequence_length"] - 3
        seed = self.settings["seed"]
        spans = list(
            cut_spans(tokens, sentence_starts, word_starts, longest, seed=seed, document=number)
        )
        document = np.array([0, len(spans)], np.int64)
        return [
            {"tokens": tokens[begin:end].astype(self.dtype), "breaks": breaks, "document": document}
            for begin, end, breaks in spans
        ]


def cut_spans(
    tokens: np.ndarray,
    sentence_starts: np.ndarray,
    word_starts: np.ndarray,
    longest: int,
    *,
    seed: int,
    document: int,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cuts one document into spans of at most `longest` tokens: (begin, end, breaks), breaks
    relative to begin.

    Spans follow each other without gap; each has at least two tokens, so a single token left at the
    end is dropped. The breaks are the sentence starts inside a span; in a span of one sentence, its
    word starts; in a span of one word, every token.

    Args:
        tokens: int32 [N].
        sentence_starts, word_starts: bool [N].
        longest: at least 2.
        seed, document: what the lengths of short spans are a function of.
    """
    begin, number = 0, 0
    total = len(tokens)
    words = np.flatnonzero(word_starts)
    sentences = np.flatnonzero(sentence_starts)
    most = total // 2 + 1
    is_short = randomness.to_uniform(_draws(seed, Stream.SHORT, document, most)) < SHORT_FRACTION
    short_length = 2 + randomness.to_integers(
        _draws(seed, Stream.SHORT_LENGTH, document, most), longest - 1
    )
    while total - begin >= 2:
        end = min(begin + (int(short_length[number]) if is_short[number] else longest), total)
        if end < total and not word_starts[end]:
            word = int(words[np.searchsorted(words, end) - 1]) if len(words) else 0
            end = word if word >= begin + 2 else end
        for starts in (sentences, words, None):
            breaks = np.arange(begin + 1, end) if starts is None else _between(starts, begin, end)
            if len(breaks):
                break
        yield begin, end, (breaks - begin).astype(np.int32)
        begin, number = end, number + 1


def _between(starts: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The starts strictly inside (begin, end)."""
    return starts[np.searchsorted(starts, begin, side="right") : np.searchsorted(starts, end)]


def _draws(seed: int, stream: Stream, document: int, count: int) -> np.ndarray:
    return randomness.position_bits(randomness.row_keys(seed, stream, 0, document), count)[0]

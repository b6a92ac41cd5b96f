"""Answers as spans of a text, as a feed: SQuAD 1.1 and 2.0 (BERT's sections 4.2 and 4.3). Called by
tasks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from jaxdistill.data import encoded, tokenizers
from jaxdistill.data.answers import Decoding, answer_files, decode
from jaxdistill.data.encoded import Encoded, join, keys_of
from jaxdistill.data.examples import Fraction, Length, parted
from jaxdistill.data.feeds import About, Answers, Feed, Order, Outputs, Parts, Reader, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.data.squad import Questions, read_squad
from jaxdistill.data.windows import Windows, windows
from jaxdistill.errors import BadInput
from jaxdistill.settings import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRows:
    """How questions become rows. A context that is longer than a row is read in windows that begin
    `stride` tokens apart; questions are cut to `question_length` tokens."""

    sequence_length: Length = 384
    stride: Count = 128
    question_length: Count = 64
    buckets: bool = True


def question_answering(
    about: About,
    *,
    source: str = "",
    heldout: str = "",
    heldout_fraction: Fraction = 0.1,
    without_articles_of: str = "",
    heldout_without_articles_of: str = "",
    rows: QuestionRows,
    n_best: Count = 20,
    max_answer_length: Count = 30,
    null_threshold: float = 0.0,
    words: Literal["english", "characters"] = "english",
    answerable_only: bool = False,
    skip_bad_rows: bool = False,
) -> Feed:
    """Questions about a text, each answered by a part of it, or not at all.

    `source` and `heldout`: files in SQuAD's form, version 1.1 or 2.0; without `heldout` about
    `heldout_fraction` of the articles are kept apart. `without_articles_of`: another
    such file, whose articles are left out of the training questions; `heldout_without_articles_of`
    likewise of the held-out ones. `null_threshold`: how much better "no answer" must be than the best answer.
    `words`: what answers are compared by, SQuAD's English words, or for any language words without
    punctuation and each Chinese or Japanese character. `answerable_only`: questions without an answer are
    left out, which makes a file of version 2.0 one of 1.1. Raises `BadInput` for files that cannot be
    used."""
    if not source:
        raise BadInput(
            f"config.feeds.{about.name}.source is empty: give a file in SQuAD's form, as train-v2.0.json"
        )

    def questions(path: str, without: str) -> Questions:
        found = read_squad(path, without_articles_of=without, skip_bad_rows=skip_bad_rows)
        if answerable_only and found.labelled:
            found = answerable(found, path)
        return dataclasses.replace(found, words=words)

    train = held = questions(source, without_articles_of)
    if not heldout:
        train, held = by_article(train, heldout_fraction)
    elif (heldout, heldout_without_articles_of) != (source, without_articles_of):
        held = questions(heldout, heldout_without_articles_of)
    if not train.labelled:
        raise BadInput(f"{source!r} has no answers to learn from; give a file with labels")
    impossible = bool(train.impossible.any() or held.impossible.any())
    settings = Decoding(n_best, max_answer_length, impossible, null_threshold)

    def read(tokenizer: Any) -> Reader:
        sizes = rows.sequence_length, rows.stride, rows.question_length
        theirs = windows(held, tokenizer, *sizes)
        ours = theirs if held is train else windows(train, tokenizer, *sizes)
        pad = tokenizers.describe(tokenizer).special.pad
        order = Order(about.seed, rows.sequence_length, rows.buckets)
        parts = Parts(_rows(ours, train, pad).rows, _rows(theirs, held, pad).rows, order)
        notices = dict.fromkeys(_notice(about.name, part) for part in (ours, theirs))
        answers = functools.partial(_answers, held, theirs, settings)
        return reader_of(parts, answers, tuple(filter(None, notices)))

    position = Shape((), "int32")
    return Feed(
        about.name,
        encoded.shapes(rows.sequence_length, start_positions=position, end_positions=position),
        read,
        heldout_rows=len(held),
        digests={"train": train.digest, "heldout": held.digest},
        tables={"train": source, "heldout": heldout or source},
        head="question_answering",
        losses=("span_start", "span_end"),
        score="spans",
        notices=tuple(dict.fromkeys((*train.notices, *held.notices))),
    )


def answerable(questions: Questions, shown: str) -> Questions:
    """The questions that have an answer. Raises `BadInput` if there are none."""
    kept = tuple(row for row in questions.rows if not row.impossible)
    if not kept:
        raise BadInput(f"{shown!r}: no question has an answer; leave answerable_only out")
    left_out = len(questions) - len(kept)
    notice = f"{shown!r}: {left_out:,} of {len(questions):,} questions, which have no answer, were left out"
    notices = (*questions.notices, *((notice,) if left_out else ()))
    return dataclasses.replace(questions, rows=kept, notices=notices)


def by_article(questions: Questions, fraction: float) -> tuple[Questions, Questions]:
    """The questions about most articles, and those about the others; where a file names no articles
    each context is one."""
    articles = [row.title or row.context for row in questions.rows]
    names = list(dict.fromkeys(articles))
    theirs = {names[number] for number in parted(names, fraction)[1]}
    ours, held = (
        tuple(row for row, name in zip(questions.rows, articles) if (name in theirs) == wanted)
        for wanted in (False, True)
    )
    kept = dataclasses.replace(questions, rows=ours)
    return kept, dataclasses.replace(questions, rows=held, notices=())


def _rows(found: Windows, questions: Questions, pad: int) -> Encoded:
    """The windows, known by the id of their question and which of its windows each is, from 0."""
    ids, begins = join(found.ids)
    first = np.searchsorted(found.question, found.question)
    numbers = map(str, (np.arange(len(found)) - first).tolist())
    of = [questions.rows[question].id for question in found.question]
    columns = {"start_positions": found.start_positions, "end_positions": found.end_positions}
    return Encoded(ids, begins, found.second_begins, pad, columns, keys=keys_of(of, list(numbers)))


def _notice(name: str, found: Windows) -> str:
    """What was cut; "" if nothing was."""
    counts = {
        "questions are longer than question_length, and cut": found.questions_cut,
        "answers are in no window as a whole, and not learned": found.answers_unmarked,
    }
    said = [f"{number:,} {what}" for what, number in counts.items() if number]
    return f"{name!r}: {'; '.join(said)}" if said else ""


def _answers(held: Questions, rows: Windows, settings: Decoding, outputs: Outputs) -> Answers:
    found = decode(rows, held, outputs["start_logits"], outputs["end_logits"], settings)
    return Answers(held, found, answer_files(held, found))

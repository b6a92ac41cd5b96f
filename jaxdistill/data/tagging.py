"""A tag for each word as a feed: named entities, chunks, parts of speech, slots (BERT's section 5.3:
a word is read at its first piece). Called by tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxdistill.data import data_sets, encoded, files, tokenizers
from jaxdistill.data.classification import label_names
from jaxdistill.data.conll import Tagged, read_conll, read_parallel_tags, with_bio_tags
from jaxdistill.data.encoded import Encoded, join, keys_of
from jaxdistill.data.examples import Fraction, Names, RowSettings, parted, several
from jaxdistill.data.feeds import About, Answers, Feed, Outputs, Parts, Reader, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.data.tagged import NOT_READ, Pieces, decode, number_tags, pieces, tag_names
from jaxdistill.errors import BadInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggedTexts:
    """Where tagged sentences are. `source`: a file with a token in each line, in columns, and a blank
    line between sentences, or several with commas between them; or a sentence in each line, with the tags of each in the
    same line of `tag_source`. `heldout` and `heldout_tag_source` likewise; "" keeps `heldout_fraction`
    of `source` apart. Columns go by number, from the end if negative, "" is the first and the last.
    `separator`: "" is any blanks. Or `source` is a set by name (`data_sets`), with lists of words and
    tags, whose columns go by name, "" is `tokens` and `ner_tags`."""

    source: str = ""
    tag_source: str = ""
    heldout: str = ""
    heldout_tag_source: str = ""
    heldout_fraction: Fraction = 0.1
    token_column: str = ""
    tag_column: str = ""
    separator: str = ""
    scheme: Literal["auto", "BIO", "IOB1", "IOBES", "BILOU", "plain"] = "auto"
    skip_bad_rows: bool = False


def tagging(
    about: About,
    *,
    texts: TaggedTexts,
    rows: RowSettings,
    labels: Names = (),
    label_file: str = "",
    unseen_labels: Literal["refuse", "wrong"] = "refuse",
) -> Feed:
    """A tag for each word. Tags in IOB1 and IOBES become BIO, whose entities are the same.

    `labels`: the tags in the order of their numbers, or `label_file` with one in each line; without
    either those of the training sentences. `unseen_labels`: what to do with held-out words of
    another tag, "wrong" counts them as wrong answers. Raises `BadInput` for files that cannot be
    used."""
    if not texts.source:
        raise BadInput(
            f"config.feeds.{about.name}.source is empty: give a file with a token in each line and its tag in a column"
        )
    whole = _read(texts.source, texts.tag_source, texts)
    train, scheme = with_bio_tags(whole, texts.scheme)
    # Of a file that is parted here both parts tell the tags: a rare one may be in one of them.
    unseen = unseen_labels if texts.heldout == texts.source else "refuse"
    names = tag_names(train, label_names(labels, label_file) or (), unseen)
    held = train
    if not texts.heldout:
        sentences = [" ".join(words) for words in train.tokens]
        ours, theirs = parted(sentences, texts.heldout_fraction)
        train, held = train.take(ours), dataclasses.replace(train.take(theirs), notices=())
    elif texts.heldout != texts.source:
        held, _ = with_bio_tags(_read(texts.heldout, texts.heldout_tag_source, texts), scheme)
    number_tags(held, names, unseen_labels)  # refused before anything is made
    digests = {
        part: files.digest_of([tagged.digest, names])
        for part, tagged in (("train", train), ("heldout", held))
    }
    counts = Counter(tag for tags in train.tags or () for tag in tags if tag in names)

    def read(tokenizer: Any) -> Reader:
        length = rows.sequence_length
        theirs = pieces(held, tokenizer, length, names, unseen_labels)
        ours = theirs if held is train else pieces(train, tokenizer, length, names)
        pad = tokenizers.describe(tokenizer).special.pad
        order = rows.order(about.seed)
        kept, apart = token_rows(ours, train, pad), token_rows(theirs, held, pad)
        parts = Parts(kept.rows, apart.rows, order)
        answers = functools.partial(_answers, held, theirs, names)
        return reader_of(parts, answers, tuple(dict.fromkeys((*ours.notices, *theirs.notices))))

    length = (rows.sequence_length,)
    return Feed(
        about.name,
        encoded.shapes(
            rows.sequence_length, tags=Shape(length, "int32"), tag_weights=Shape(length, "float32")
        ),
        read,
        heldout_rows=len(held.tokens),
        digests=digests,
        tables={"train": texts.source, "heldout": texts.heldout or texts.source},
        head="token_classification",
        losses=("tagging",),
        labels=names,
        score="tagging" if scheme == "plain" else "entities",
        usual=names.index(counts.most_common(1)[0][0]) if counts else 0,
        decided={"scheme": scheme},
        notices=tuple(dict.fromkeys((*train.notices, *held.notices))),
        packed=rows.packed,
    )


def _read(source: str, tag_source: str, texts: TaggedTexts) -> Tagged:
    """The sentences of one file or of several, one after the other."""
    if tag_source:
        return read_parallel_tags(source, tag_source, skip_bad_rows=texts.skip_bad_rows)
    found = [_read_one(path, texts) for path in several(source)]
    return Tagged(
        tuple(words for part in found for words in part.tokens),
        tuple(tags for part in found for tags in part.tags or ()),
        tuple(place for part in found for place in part.places),
        tuple(notice for part in found for notice in part.notices),
    )


def _read_one(source: str, texts: TaggedTexts) -> Tagged:
    if data_sets.is_named(source):
        columns = (texts.token_column or "tokens", texts.tag_column or "ner_tags")
        found, notices = data_sets.read_sentences(
            source, *columns, skip_bad_rows=texts.skip_bad_rows
        )
        numbers, tokens, tags = zip(*found)
        return Tagged(tokens, tags, tuple((source, number) for number in numbers), tuple(notices))
    return read_conll(
        source,
        token_column=_number("token_column", texts.token_column, 0),
        tag_column=_number("tag_column", texts.tag_column, -1),
        separator=texts.separator,
        skip_bad_rows=texts.skip_bad_rows,
    )


def _number(name: str, column: str | int, usual: int) -> int:
    try:
        return usual if column == "" else int(column)
    except ValueError:
        raise BadInput(
            f"{name}={column!r}: columns of a file go by their numbers, from 0, or from the end as -1"
        ) from None


def token_rows(found: Pieces, tagged: Tagged, pad: int, cls_weight: float = 1.0) -> Encoded:
    """The rows of the sentences `tagged`, known by their words with blanks between them, with `tags` and
    `tag_weights`: 0 where no tag is, `cls_weight` at a [CLS] that has one, else 1."""
    ids, begins = join(found.ids)
    tags, _ = join(found.tags)
    read = tags != NOT_READ
    weights = read.astype(np.float32)
    weights[begins[:-1]] *= cls_weight
    words = [
        " ".join(tagged.tokens[sentence][first : first + len(firsts)])
        for sentence, first, firsts in zip(found.sentence, found.first_word, found.firsts)
    ]
    return Encoded(
        ids,
        begins,
        np.diff(begins).astype(np.int32),
        pad,
        by_token={
            "tags": (np.where(read, tags, 0).astype(np.int32), 0),
            "tag_weights": (weights, 0.0),
        },
        keys=keys_of(words),
    )


def _answers(held: Tagged, rows: Pieces, names: Sequence[str], outputs: Outputs) -> Answers:
    found = [[names[n] for n in tags] for tags in decode(rows, held, outputs["logits"])]
    truth = [list(tags) for tags in held.tags or ()]
    lines = []
    for words, true, answer in zip(held.tokens, truth, found):
        lines += [*map("\t".join, zip(words, true, answer)), ""]
    return Answers(truth, found, {"tsv": "\n".join(lines)})

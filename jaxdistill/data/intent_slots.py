"""An intent, and a slot for each word, from one head in one pass, as a feed (after JointBERT: Chen et al.
2019, arXiv:1902.10909). Called by tasks.

A token classifier reads every token: its answer at [CLS] is the intent, that at a word's first piece
the word's slot. Its labels are the tags of slots in BIO, then the intents as "intent=PlayMusic", which
no such tag can be called. An answer is the best label of its own kind, whatever the others score. So
the network is an ordinary token classifier of `transformers`.

JointBERT has two heads with a softmax each, the intent's on the pooled [CLS]; here one softmax is over
the labels of both kinds, and nothing is pooled. Its loss is the sum of two cross-entropies; here
it is one weighted mean, in which the weight of [CLS] keeps the balance of that sum (`intent_weight`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdistill.data import encoded, files, tokenizers
from jaxdistill.data.classification import label_names
from jaxdistill.data.conll import Tagged, with_bio_tags
from jaxdistill.data.examples import Fraction, Names, RowSettings, parted
from jaxdistill.data.feeds import About, Answers, Feed, Outputs, Parts, Reader, Shape
from jaxdistill.data.intents import Utterances, find, read_utterances
from jaxdistill.data.labels import Labels, number_labels
from jaxdistill.data.rows import reader_of
from jaxdistill.data.tagged import NOT_READ, Pieces, decode, number_tags, pieces, tag_names
from jaxdistill.data.tagging import token_rows
from jaxdistill.errors import BadInput, listed
from jaxdistill.settings import Weight

INTENT = "intent="  # begins the label of an intent


@dataclasses.dataclass(frozen=True, kw_only=True)
class UtteranceFiles:
    """Where utterances are. `source`: a folder with the files seq.in (an utterance in each line), seq.out
    (the slots of its words) and label (its intent), also packed as .gz or .xz; or the first of them, with
    `tag_source` and `label_source`. `heldout` and its two likewise; "" keeps `heldout_fraction` of
    `source` apart. `scheme`: how the slots are tagged."""

    source: str = ""
    tag_source: str = ""
    label_source: str = ""
    heldout: str = ""
    heldout_tag_source: str = ""
    heldout_label_source: str = ""
    heldout_fraction: Fraction = 0.1
    scheme: Literal["auto", "BIO", "IOB1", "IOBES", "BILOU"] = "auto"
    skip_bad_rows: bool = False


class Frames(NamedTuple):
    """Answers to N utterances: `intents` by their labels, and `tags`, those of each one's words."""

    intents: list[str]
    tags: list[list[str]]

    @property
    def whole(self) -> list[list[str]]:
        """The intent and the tags of each."""
        return [[intent, *tags] for intent, tags in zip(self.intents, self.tags)]


def intent_slots(
    about: About,
    *,
    texts: UtteranceFiles,
    rows: RowSettings,
    labels: Names = (),
    label_file: str = "",
    unseen_labels: Literal["refuse", "wrong"] = "refuse",
    intent_weight: Weight = 1.0,
) -> Feed:
    """An intent, and a slot for each word. Tags in IOB1 and IOBES become BIO, whose entities are the
    same.

    `labels`: tags and intents ("intent=PlayMusic") in the order of their numbers, or `label_file` with
    one in each line; without either those of the training utterances. `unseen_labels`: what to do with
    held-out tags and intents that are not among them, "wrong" counts them as wrong answers.

    `intent_weight`: how much the intents' cross-entropy, a mean over utterances, counts beside
    the slots', a mean over words. 1 is their sum, up to a factor: [CLS] weighs as much as all words of an
    utterance of mean length. JointBERT's equation 3 read as a likelihood, where [CLS] weighs as much as one
    word, is 1 / (mean number of words).

    Raises `BadInput` for files that cannot be used."""
    if not texts.source:
        raise BadInput(
            f"config.feeds.{about.name}.source is empty: give a folder that holds seq.in, seq.out and label"
        )
    whole, scheme = _read((texts.source, texts.tag_source, texts.label_source), texts, texts.scheme)
    # Of files that are parted here both parts tell the labels: a rare one may be in one of them.
    names = _label_names(whole, label_names(labels, label_file) or ())
    train = held = whole
    if not texts.heldout:
        sentences = [" ".join(words) for words in whole.tagged.tokens]
        train, held = map(whole.take, parted(sentences, texts.heldout_fraction))
    elif texts.heldout != texts.source:
        sources = (texts.heldout, texts.heldout_tag_source, texts.heldout_label_source)
        held, _ = _read(sources, texts, scheme)
    number_tags(held.tagged, names, unseen_labels)  # refused before anything is made
    ours = theirs = _intents(held, names, unseen_labels)
    if held is not train:
        number_tags(train.tagged, names)
        ours = _intents(train, names)
    truth = Frames(_spelled(held, theirs.numbers, names), list(map(list, held.tagged.tags or ())))
    cls_weight = intent_weight * sum(map(len, train.tagged.tokens)) / len(train)

    def read(tokenizer: Any) -> Reader:
        length, pad = rows.sequence_length, tokenizers.describe(tokenizer).special.pad

        def made(part: Utterances, intents: Labels) -> Pieces:
            found = pieces(part.tagged, tokenizer, length, names, unseen_labels)
            return _with_intents(found, intents.numbers)

        apart = made(held, theirs)
        kept = apart if held is train else made(train, ours)
        parts = Parts(
            token_rows(kept, train.tagged, pad, cls_weight).rows,
            token_rows(apart, held.tagged, pad, cls_weight).rows,
            rows.order(about.seed),
        )
        answers = functools.partial(_answers, truth, held, apart, names)
        return reader_of(parts, answers, tuple(dict.fromkeys((*kept.notices, *apart.notices))))

    shape = (rows.sequence_length,)
    return Feed(
        about.name,
        encoded.shapes(
            rows.sequence_length, tags=Shape(shape, "int32"), tag_weights=Shape(shape, "float32")
        ),
        read,
        heldout_rows=len(held),
        digests={
            name: files.digest_of([part.tagged.digest, part.intents, names])
            for name, part in (("train", train), ("heldout", held))
        },
        tables={"train": texts.source, "heldout": texts.heldout or texts.source},
        head="token_classification",
        losses=("tagging",),
        labels=names,
        score="intent_slots",
        decided={"scheme": scheme},
        usual=int(np.bincount(ours.numbers[ours.numbers != NOT_READ], minlength=1).argmax()),
        notices=tuple(
            dict.fromkeys((*train.tagged.notices, *held.tagged.notices, *theirs.notices))
        ),
        packed=rows.packed,
    )


def _read(
    sources: tuple[str, str, str], texts: UtteranceFiles, scheme: str
) -> tuple[Utterances, str]:
    """The utterances of three files or of a folder, slots in BIO, and the scheme that these had."""
    found = read_utterances(find(*sources), skip_bad_rows=texts.skip_bad_rows)
    tagged, scheme = with_bio_tags(found.tagged, scheme)
    if scheme == "plain":
        shown = listed(sorted({tag for tags in tagged.tags or () for tag in tags}), 3)
        raise BadInput(
            f"the slots of {found.tagged.places[0][0]!r} are {shown}: expected 'O', 'B-artist', 'I-artist' and the "
            "like; mend them, or learn such tags with task=tagging"
        )
    return dataclasses.replace(found, tagged=tagged), scheme


def _label_names(whole: Utterances, given: Sequence[str]) -> tuple[str, ...]:
    """All labels in the order of their numbers: `given`, or the tags that occur and then the intents."""
    if not given:
        tags, intents = tag_names(whole.tagged), _number(whole, None).names
        return (*tags, *(f"{INTENT}{name}" for name in intents))
    if len({*given}) < len(given):
        raise BadInput(f"labels are {listed(given)}: give each name once")
    if len({name.startswith(INTENT) for name in given}) < 2:
        raise BadInput(
            f"labels are {listed(given)}: expected tags and intents, as 'B-artist' and '{INTENT}PlayMusic'; name "
            "both, or leave labels out"
        )
    return tuple(given)


def _intents(part: Utterances, names: Sequence[str], unseen: str = "refuse") -> Labels:
    """The intents of utterances as numbers into `names`, `NOT_READ` of those that these lack."""
    at = [number for number, name in enumerate(names) if name.startswith(INTENT)]
    found = _number(part, [names[number].removeprefix(INTENT) for number in at], unseen)
    numbers = np.where(found.numbers < 0, NOT_READ, np.array(at, np.int32)[found.numbers])
    return dataclasses.replace(found, numbers=numbers)


def _number(part: Utterances, known: Sequence[str] | None, unseen: str = "refuse") -> Labels:
    return number_labels(part.intents, part.places, f"{part.places[0][0]!r}", known, unseen)


def _with_intents(found: Pieces, intents_N: np.ndarray) -> Pieces:
    """The rows with the intent as the tag of [CLS], in the first row of each utterance."""
    tags = [row.copy() for row in found.tags]
    for row, sentence, first_word in zip(tags, found.sentence, found.first_word):
        if first_word == 0:
            row[0] = intents_N[sentence]
    return dataclasses.replace(found, tags=tags)


def _spelled(part: Utterances, numbers_N: np.ndarray, names: Sequence[str]) -> list[str]:
    """The labels of the intents; of those that have no number, what would be theirs."""
    return [
        f"{INTENT}{intent}" if number == NOT_READ else names[number]
        for intent, number in zip(part.intents, numbers_N)
    ]


def _answers(
    truth: Frames, held: Utterances, rows: Pieces, names: Sequence[str], outputs: Outputs
) -> Answers:
    found = frames(rows, held.tagged, names, outputs["logits"])
    return Answers(truth, found, {"tsv": _blocks(held, truth, found)})


def frames(rows: Pieces, tagged: Tagged, names: Sequence[str], logits_MxLxC: np.ndarray) -> Frames:
    """What a network says of utterances, of which `rows` are made."""
    is_intent_C = np.array([name.startswith(INTENT) for name in names])
    tags_MxL = _best(logits_MxLxC, ~is_intent_C)
    intents_N = _best(logits_MxLxC[rows.first_word == 0, 0], is_intent_C)
    return Frames(
        [names[number] for number in intents_N],
        [[names[number] for number in tags] for tags in decode(rows, tagged, tags_MxL)],
    )


def _best(logits: np.ndarray, allowed_C: np.ndarray) -> np.ndarray:
    """The number of the best label along the last axis, of those that are allowed."""
    return np.where(allowed_C, logits, -np.inf).argmax(-1)


def _blocks(held: Utterances, truth: Frames, found: Frames) -> str:
    """A block for each utterance: its intents as comments, as CoNLL-U has them, and a line for each word
    with its true and its found tag. Readers of CoNLL's columns leave the comments out."""
    lines = []
    for words, true, answer in zip(held.tagged.tokens, truth.whole, found.whole):
        for key, label in (("intent", true[0]), ("found", answer[0])):
            lines.append(f"# {key} = {' '.join(label.removeprefix(INTENT).split())}")
        lines += [*map("\t".join, zip(words, true[1:], answer[1:])), ""]
    return "\n".join(lines)

"""The schemes of tags that mark entities, and all of them as BIO.

BIO (IOB2): every entity begins with B- and goes on with I-. IOB1: B- only where an entity follows
another of its type. IOBES and BILOU: E- or L- ends an entity, S- or U- is one of a single word. "plain"
is a class for each word, as parts of speech are. Called by `conll`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from jaxdistill.errors import BadInput, listed, nearest, shortened

SCHEMES = ("auto", "BIO", "IOB1", "IOBES", "BILOU", "plain")
Sentences = tuple[tuple[str, ...], ...]
_PREFIXED = re.compile(r"[BIESLU](-.+)?", re.DOTALL)
_PREFIXES = {"BIO": "BI", "IOB1": "BI", "IOBES": "BIESLU", "BILOU": "BIESLU"}


@dataclasses.dataclass(frozen=True)
class BioTags:
    """`tags` in BIO, or as they were if plain; `scheme`: what they were before; `invalid`: (sentence,
    word) of tags that break the rules of that scheme."""

    tags: Sentences
    scheme: str
    invalid: tuple[tuple[int, int], ...] = ()


def scheme_of(tags: Iterable[Sequence[str]]) -> str:
    """The scheme of the sentences' tags: "BIO", "IOB1", "IOBES" (also for BILOU) or "plain".

    Tags of entities are all "O" or a prefix and a type, and anything else is plain. Without E, S, L or
    U, the first words of entities tell BIO from IOB1: most have B- or most have I-. A file without
    any entity is BIO.

    Raises:
        BadInput: entities' tags with others between them (a typing error?), or the IOE schemes.
    """
    sentences = list(tags)
    counts = Counter(itertools.chain.from_iterable(sentences))
    if not _are_entities(counts):
        return "plain"
    prefixes = {tag[0] for tag in counts}
    if prefixes & {*"EL"} and "B" not in prefixes:
        raise BadInput(
            "tags hold E- or L- but no B-, as the IOE schemes have it, expected BIO, IOB1, IOBES or BILOU: "
            "convert them, or give scheme='IOBES' if they are"
        )
    if prefixes & {*"ESLU"}:
        return "IOBES"
    with_i = sum(len(_broken(sentence, "BIO")) for sentence in sentences)
    with_b = sum(len(_broken(sentence, "IOB1")) for sentence in sentences)
    return "IOB1" if with_i > with_b else "BIO"


def _are_entities(counts: Mapping[str, int]) -> bool:
    """Whether tags of these counts are those of entities; raises BadInput if only most of them are."""
    fit = {tag for tag in counts if _fits(tag)}
    others = sorted(counts.keys() - fit)
    if not others:
        return True
    types = {prefix: {tag[2:] for tag in fit if tag[:2] == prefix} for prefix in ("B-", "I-")}
    most = 2 * sum(counts[tag] for tag in fit) > sum(counts.values())
    # Parts of speech may have an "I-ADJ", but hardly "B-ADJ" beside it.
    if types["B-"] & types["I-"] or (most and (types["B-"] or types["I-"])):
        raise BadInput(
            f"tags of entities ({listed(sorted(fit), 3)}) beside others ({listed(others, 3)}): expected 'O' or a prefix "
            "and a type for every word; mend the tags, or give scheme='plain' to score words and not entities"
        )
    return False


def _fits(tag: str) -> bool:
    return tag == "O" or _PREFIXED.fullmatch(tag) is not None


def to_bio(sentences: Iterable[Sequence[str]], scheme: str = "auto") -> BioTags:
    """The sentences' tags in BIO, with the same entities; plain ones stay as they are.

    Tags that break the rules of their scheme are found, not mended: the entities are then those that
    the conlleval script sees, before and after.

    Raises:
        BadInput: no such scheme, a tag that it does not have, or as `scheme_of`.
    """
    if scheme not in SCHEMES:
        raise BadInput(f"scheme={shortened(scheme)!r}: {nearest(scheme, SCHEMES)}")
    given = tuple(map(tuple, sentences))
    scheme = scheme_of(given) if scheme == "auto" else scheme
    if scheme == "plain":
        return BioTags(given, scheme)
    counts = Counter(itertools.chain.from_iterable(given))
    wrong = [tag for tag in counts if not _fits(tag) or tag[0] not in "O" + _PREFIXES[scheme]]
    if wrong:
        raise BadInput(
            f"tags {listed(sorted(wrong))} are none of scheme={scheme!r}, expected 'O' or one of "
            f"{listed(_PREFIXES[scheme])} and a type, as 'B-PER': mend them, or give another scheme"
        )
    scheme = "IOBES" if scheme == "BILOU" else scheme
    invalid = [
        (number, word)
        for number, sentence in enumerate(given)
        for word in _broken(sentence, scheme)
    ]
    tags = given if scheme == "BIO" else tuple(_in_bio(sentence, scheme) for sentence in given)
    return BioTags(tags, scheme, tuple(invalid))


def _broken(sentence: Sequence[str], scheme: str) -> list[int]:
    """The words whose tags break the rules of the scheme."""
    broken = set()
    before = "O"
    for word, tag in enumerate((*sentence, "O")):
        is_same = before[0] != "O" and before[1:] == tag[1:]
        if scheme == "BIO" and tag[0] == "I" and not is_same:
            broken.add(word)
        if scheme == "IOB1" and tag[0] == "B" and not is_same:
            broken.add(word)
        if scheme == "IOBES":
            is_open = before[0] in "BI"
            goes_on = is_open and is_same and tag[0] in "IEL"
            if tag[0] in "IEL" and not goes_on:
                broken.add(word)
            if is_open and not goes_on:
                broken.add(word - 1)
        before = tag
    return sorted(broken)


def _in_bio(sentence: Sequence[str], scheme: str) -> tuple[str, ...]:
    """A sentence's tags of IOB1 or IOBES in BIO."""
    tags = []
    before = "O"
    for tag in sentence:
        is_same = before[0] != "O" and before[1:] == tag[1:]
        begins = tag[0] in "BSU" or (is_same and before[0] in "ELSU")
        if scheme == "IOB1" and not is_same:
            begins = True
        tags.append("O" if tag == "O" else ("B" if begins else "I") + tag[1:])
        before = tag
    return tuple(tags)

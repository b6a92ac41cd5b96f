"""Schemes of tags against seqeval's own, and what is told of a file that is none of them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from jaxdistill.data.tag_schemes import scheme_of, to_bio
from jaxdistill.errors import BadInput

SEQEVAL = {"BIO": IOB2, "IOB1": IOB1, "IOBES": IOBES, "BILOU": BILOU}
READ_AS = {**{name: name for name in SEQEVAL}, "BILOU": "IOBES"}
# Words of a sentence as (type or "" for none, number of words).
chunks = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c-d"]), st.integers(1, 3)), max_size=6)
documents = st.lists(chunks, min_size=1, max_size=4)


def encode(sentence, scheme):
    """The tags of chunks, by the definitions of the schemes."""
    tags, before = [], ""
    for kind, length in sentence:
        if not kind:
            tags += ["O"] * length
        else:
            inside = [*"I" * length]
            if scheme == "BIO" or (scheme == "IOB1" and before == kind):
                inside[0] = "B"
            if scheme in ("IOBES", "BILOU"):
                inside[0] = "B"
                inside[-1] = "E" if scheme == "IOBES" else "L"
                inside = inside if length > 1 else ["S" if scheme == "IOBES" else "U"]
            tags += [f"{prefix}-{kind}" for prefix in inside]
        before = kind
    return tags


def strict(sentences, scheme):
    """seqeval's entities: (sentence, type, begin, end)."""
    found = Entities(sentences, scheme=SEQEVAL[scheme]).entities
    return [sorted((e.to_tuple() for e in sentence), key=lambda e: e[2]) for sentence in found]


def lenient(tags):
    """What conlleval sees; seqeval does not know L and U there."""
    return get_entities([tag.replace("L-", "E-").replace("U-", "S-") for tag in tags])


@pytest.mark.parametrize("scheme", SEQEVAL)
@given(documents)
def test_entities_stay_and_the_scheme_is_found(scheme, document):
    tags = [encode(sentence, scheme) for sentence in document]
    bio = to_bio(tags, scheme)
    assert bio.tags == tuple(tuple(encode(sentence, "BIO")) for sentence in document)
    assert bio.invalid == () and bio.scheme == READ_AS[scheme]
    assert strict(bio.tags, "BIO") == strict(tags, scheme)
    assume(any(kind for sentence in document for kind, _ in sentence))
    assert scheme_of(tags) == READ_AS[scheme]
    assert to_bio(tags) == bio


def any_tags(scheme):
    letters = {"BIO": "BI", "IOB1": "BI", "IOBES": "BIES", "BILOU": "BILU"}[scheme]
    return st.lists(
        st.sampled_from(["O", *(f"{letter}-{kind}" for letter in letters for kind in "xy")]),
        max_size=7,
    )


def words_of(entities, length):
    """Chunks of the entities found, as `encode` takes them."""
    found, at = [], 0
    for _, kind, begin, end in entities:
        found += [("", 1)] * (begin - at) + [(kind, end - begin)]
        at = end
    return found + [("", 1)] * (length - at)


@pytest.mark.parametrize("scheme", SEQEVAL)
@given(st.data())
def test_invalid_tags_are_found_and_kept(scheme, data):
    tags = data.draw(any_tags(scheme))
    bio = to_bio([["O"], tags], scheme)
    assert lenient(list(bio.tags[1])) == lenient(tags)
    [entities] = strict([tags], scheme)
    is_valid = encode(words_of(entities, len(tags)), scheme) == tags
    assert (bio.invalid == ()) == is_valid
    assert {sentence for sentence, _ in bio.invalid} <= {1}
    if scheme == "BIO":
        assert bio.tags[1] == tuple(tags)
    elif is_valid:
        assert strict(bio.tags[1:], "BIO") == [entities]


@pytest.mark.parametrize(
    ("scheme", "tags", "words"),
    [
        ("BIO", "O I-x I-x", [1]),
        ("BIO", "B-x I-y I-y", [1]),
        ("IOB1", "O B-x B-x I-y B-x", [1, 4]),
        ("IOBES", "B-x O", [0]),
        ("IOBES", "I-x E-x O S-x", [0]),
        ("IOBES", "B-x E-y S-y E-y B-y", [0, 1, 3, 4]),
        ("BILOU", "U-x L-x B-x I-x U-x", [1, 3]),
    ],
)
def test_which_words_are_invalid(scheme, tags, words):
    assert [word for _, word in to_bio([tags.split()], scheme).invalid] == words


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["NN VB IN DT"], "plain"),
        (["NN-HL VB-TL IN-HL --", "B-ADV"], "plain"),  # Brown
        (["I-ADJ N V V"], "plain"),
        (["I-ADJ B-ADV N V V V"], "plain"),
        (["O V N L S U E I"], "plain"),  # single letters, as for tweets
        (["PER O O LOC"], "plain"),
        (["b-per o"], "plain"),
        (["O O", "O"], "BIO"),
        (["B I O", "B B I"], "BIO"),  # no types
        (["B I E S O"], "IOBES"),
        (["B-NN-HL I-NN-HL O"], "BIO"),
        (["S-x O"], "IOBES"),
        (["U-x O"], "IOBES"),
        (["B-x I-x O B-x", "O I-x O", "B-x"], "BIO"),  # one mistake
        (["I-x O I-y", "O B-x O I-y"], "IOB1"),
        (["B-x O I-x"], "BIO"),  # as many of each
    ],
)
def test_what_tags_are_taken_for(sentences, scheme):
    tags = [sentence.split() for sentence in sentences]
    assert scheme_of(tags) == scheme
    bio = to_bio(tags)
    assert bio.scheme == scheme
    if scheme in ("plain", "BIO"):
        assert bio.tags == tuple(map(tuple, tags))


def test_an_invalid_first_word_stays_one_unless_entities_would_run_together():
    bio = to_bio([["B-x", "E-x", "I-y"], ["S-x", "E-x"]], "IOBES")
    assert bio.tags == (("B-x", "I-x", "I-y"), ("B-x", "B-x"))


def test_entities_without_types():
    assert to_bio([["S", "B", "I", "E", "O"]]).tags == (("B", "B", "I", "I", "O"),)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("B-PER I-PER O O B_LOC O", "others \\(B_LOC\\)"),
        ("B-PER O O o", "scheme='plain'"),
        ("B-PER I-PER _ _ _ _ _", "others \\(_\\)"),
        ("I-x E-x O", "IOE"),
        ("L-x O", "IOE"),
    ],
)
def test_a_mistake_is_not_taken_for_plain_tags(tags, words):
    with pytest.raises(BadInput, match=words) as error:
        scheme_of([tags.split()])
    assert "\n" not in str(error.value)
    assert to_bio([tags.split()], "plain").tags == (tuple(tags.split()),)


@pytest.mark.parametrize(
    ("scheme", "tags", "words"),
    [
        ("BIO", "B-x S-x", "tags S-x are none of scheme='BIO'"),
        ("IOB1", "I-x E-x", "tags E-x"),
        ("IOBES", "B-x NN", "tags NN"),
        ("bio", "B-x", "scheme='bio': valid"),
        ("IOB2", "B-x", "did you mean 'IOB1'"),
    ],
)
def test_a_scheme_that_does_not_fit(scheme, tags, words):
    with pytest.raises(BadInput, match=words):
        to_bio([tags.split()], scheme)

"""Utterances with an intent and a slot for each word, from the three files that such sets come in
(as Goo et al. 2018 published SNIPS): words, slots and intents, an utterance in the same line of each.
Called by intent_slots."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from jaxdistill.data import files
from jaxdistill.data.conll import BLANKS, Place, Tagged, all_lines, read_parallel_tags
from jaxdistill.errors import BadInput, listed, shortened

FILES = ("seq.in", "seq.out", "label")  # of a folder
ENDINGS = ("", ".xz", ".gz")


@dataclasses.dataclass(frozen=True)
class Utterances:
    """N sentences with a slot for each word, and their `intents` as the file spells them. `places`: file
    and line of each intent."""

    tagged: Tagged
    intents: tuple[str, ...]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.intents)

    def take(self, rows: Sequence[int]) -> Utterances:
        """Only these, in this order."""
        return Utterances(
            self.tagged.take(rows),
            tuple(self.intents[row] for row in rows),
            tuple(self.places[row] for row in rows),
        )


class Sources(NamedTuple):
    """The files of words, of slots and of intents."""

    words: epath.PathLike
    slots: epath.PathLike
    intents: epath.PathLike


def find(source: str, tag_source: str, label_source: str) -> Sources:
    """The three files: `source` is the folder that holds them, or the first one.

    Raises:
        BadInput: a folder that lacks one, or a file without the other two.
    """
    folder = epath.Path(source).expanduser()
    others = (tag_source, label_source)
    if not folder.is_dir():
        files.find(folder, "file of words")
        if not all(others):
            raise BadInput(
                f"source={source!r} is a file: expected also tag_source and label_source, files with the slots "
                f"and the intent of each line; or give the folder that holds {listed(FILES)}"
            )
        return Sources(source, *others)
    if any(others):
        raise BadInput(
            f"source={source!r} is a folder, whose {listed(FILES)} are read: leave out tag_source and "
            "label_source, or give the file of words as source"
        )
    return Sources(*(_in_folder(folder, name) for name in FILES))


def _in_folder(folder: epath.Path, name: str) -> epath.Path:
    for ending in ENDINGS:
        if (folder / f"{name}{ending}").exists():
            return folder / f"{name}{ending}"
    there = sorted(path.name for path in folder.iterdir())
    raise BadInput(
        f"{os.fspath(folder)!r} has no {name}; it holds {listed(there)}: give a folder that holds {listed(FILES)}"
    )


def read_utterances(sources: Sources, *, skip_bad_rows: bool = False) -> Utterances:
    """The utterances of three files. Lines that are blank in all of them are none.

    `skip_bad_rows`: leave out lines without words, without an intent, or with unlike numbers of words
    and slots, with a notice.

    Raises:
        BadInput: a file that cannot be read; files of unlike length; such a line (file and line).
    """
    tagged = read_parallel_tags(sources.words, sources.slots, skip_bad_rows=skip_bad_rows)
    (words, words_shown), (intents, shown) = all_lines(sources.words), all_lines(sources.intents)
    if len(words) != len(intents):
        raise BadInput(
            f"{words_shown!r} has {len(words):,} lines but {shown!r} {len(intents):,}: expected the intent of each "
            "line in the same line; give the files that belong together"
        )
    bad = [
        number
        for number, (line, intent) in enumerate(zip(words, intents), start=1)
        if bool(line.strip(BLANKS)) != bool(intent.strip())
    ]
    if bad and not skip_bad_rows:
        intent = intents[bad[0] - 1].strip()
        wrong = f"has the intent {shortened(intent)!r}" if intent else "has no intent"
        raise BadInput(
            f"{shown!r} line {bad[0]} {wrong} but {words_shown!r} {'no' if intent else 'has'} words in that line; mend "
            "the line, or leave such lines out with skip_bad_rows=True"
        )
    kept = [row for row, (_, line) in enumerate(tagged.places) if intents[line - 1].strip()]
    if not kept:
        raise BadInput(f"{shown!r} holds no intent: is it the right file?")
    lines = [line for _, line in tagged.take(kept).places]
    if bad:
        said = f"{shown!r}: {len(bad):,} lines with words or an intent alone were left out, the first is {bad[0]}"
        tagged = dataclasses.replace(tagged, notices=(*tagged.notices, said))
    return Utterances(
        tagged.take(kept),
        tuple(intents[line - 1].strip() for line in lines),
        tuple((shown, line) for line in lines),
    )

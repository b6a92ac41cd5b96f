"""A small real classification task that needs no download: which package does a paragraph of
documentation come from?

The documentation is that installed with Python's packages, read as for the default corpus.
Paragraphs that name one of the packages are left out. Called by the notebooks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from etils import epath

from jaxdistill.data import files
from jaxdistill.data.default_corpus import distribution_files, documentation, new_paragraphs
from jaxdistill.errors import BadInput

PACKAGES = ("numpy", "matplotlib", "transformers")
_WORDS = range(8, 60)  # one line says too little, a long text is cut
_MOST_OF_A_MODULE = 12


def documentation_task(
    folder: epath.PathLike, packages: Sequence[str] = PACKAGES, examples: int = 600
) -> tuple[epath.Path, epath.Path]:
    """Writes `train.tsv` and `dev.tsv` (a header, then text and label a line) and returns their
    paths.

    Args:
        folder: where to write.
        packages: installed distributions, two or more: the labels.
        examples: how many paragraphs of each package, a fifth of them in `dev.tsv`; no module gives to both files.

    Raises:
        BadInput: a package is not installed, or has not so many paragraphs.
    """
    if len(set(packages)) < 2 or examples < 5:
        raise BadInput(
            f"packages={list(packages)}, examples={examples}: expected at least two packages and five examples"
        )
    named = re.compile("|".join(re.escape(name) for name in packages), re.IGNORECASE)
    rows: dict[str, list[str]] = {"train": [], "dev": []}
    seen: set[bytes] = set()
    for package in packages:
        wanted = {"train": examples - examples // 5, "dev": examples // 5}
        # In an order that has nothing to do with names, so that the first modules are no theme of
        # their own.
        for name, path in sorted(distribution_files(package), key=lambda pair: _number(pair[0])):
            part = "dev" if _number(name) % 5 == 0 else "train"
            texts = new_paragraphs(documentation(path), seen) if wanted[part] else []
            fitting = [
                text for text in texts if len(text.split()) in _WORDS and not named.search(text)
            ]
            chosen = fitting[: min(wanted[part], _MOST_OF_A_MODULE)]
            rows[part] += [f"{' '.join(text.split())}\t{package}" for text in chosen]
            wanted[part] -= len(chosen)
            if not any(wanted.values()):
                break
        if any(wanted.values()):
            raise BadInput(
                f"the documentation of {package} has {examples - sum(wanted.values())} paragraphs to give, not "
                f"examples={examples}; ask for fewer, or for another package"
            )
    for part, lines in rows.items():
        files.write_whole(
            epath.Path(folder) / f"{part}.tsv", "\n".join(["text\tpackage", *lines]) + "\n"
        )
    return epath.Path(folder) / "train.tsv", epath.Path(folder) / "dev.tsv"


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")

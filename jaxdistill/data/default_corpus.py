"""The default corpus: the English prose of the documentation that is installed with Python. Needs
no download.

Read are the standard library and the packages that an installation of jaxdistill always brings,
found by their distributions' own file lists: docstrings and other long strings in .py and .pyi
files (parsed, never imported), README files, and the long descriptions of the packages. Extras
(torch, pytest, …) are not read, so that they change nothing.

A document is a module. The order is fixed; a sentence that has occurred before is dropped, where
two sentences count as the same if their plain lower-case words are (packages repeat sentences with
only a class name changed). About 5 % are held out, by module: modules of one deep folder
(`transformers/models/bert/…`) stay together. So no sentence of the held-out part is in the training
part."""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sysconfig
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from jaxdistill.data import files, prose
from jaxdistill.errors import BadInput

_FORMAT_VERSION = 1  # part of the cache's key: raise it whenever the rules change
_HELDOUT_PERCENT = 5
# What requirement resolution always brings with jaxdistill, in the order it is read.
DISTRIBUTIONS = (
    "numpy", "scipy", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "ml-collections", "etils",
    "absl-py", "treescope", "tensorstore", "matplotlib", "pillow", "fonttools", "pyparsing", "contourpy",
    "kiwisolver", "cycler", "python-dateutil", "transformers", "tokenizers", "huggingface-hub", "safetensors",
    "tensorflow-datasets", "tensorflow-metadata", "array-record", "tensorboard", "rich", "pygments",
    "markdown-it-py", "markdown", "werkzeug", "requests", "urllib3", "idna", "certifi", "charset-normalizer",
    "filelock",
    "fsspec", "packaging", "tqdm", "pyyaml", "regex", "protobuf", "grpcio", "pyarrow", "attrs", "wrapt", "dm-tree",
    "simple-parsing", "docstring-parser", "humanize", "msgpack", "opt-einsum", "ml-dtypes", "psutil", "promise",
    "portpicker", "toml", "termcolor", "simplejson", "six", "typing-extensions", "importlib-resources",
    "immutabledict", "zipp", "aiofiles", "cloudpickle", "setuptools",
)  # fmt: skip
# Tests hold strings, not documentation; idle, tkinter and ensurepip are absent from some Pythons.
_LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages",
     "__pycache__", "_vendor", "vendored"}
)  # fmt: skip
_SHORTEST_STRING = 40
_PLAIN_WORD = re.compile(r"\b[a-z]+\b")
_LEAST_PLAIN_WORDS = 3


@dataclasses.dataclass(frozen=True)
class CorpusInfo:
    """The corpus on disk. `digest` is of the text; `versions` are those of Python and the packages
    it is from."""

    train_path: str
    heldout_path: str
    digest: str
    versions: dict[str, str]
    words_train: int
    words_heldout: int


def default_corpus(
    cache_dir: epath.PathLike | None = None, progress: Callable[[int], None] | None = None
) -> CorpusInfo:
    """Builds the corpus, or finds it in the cache from an earlier call with the same package
    versions.

    Args:
        cache_dir: by default $JAXDISTILL_CACHE, else ~/.cache/jaxdistill.
        progress: called with the number of files read so far, while it builds.

    Raises:
        BadInput: the cache cannot be written.
    """
    versions = installed_versions()
    folder = (
        files.cache_directory(cache_dir)
        / f"default-corpus-{files.digest_of([_FORMAT_VERSION, versions])}"
    )
    marker = folder / "corpus.json"
    with files.clear_errors("writing the default corpus to", folder):
        if not marker.exists():
            _build(folder, marker, versions, progress)
        stored = json.loads(marker.read_text())
    paths = {key: os.fspath(folder / stored.pop(key)) for key in ("train_path", "heldout_path")}
    return CorpusInfo(**paths, **stored)


def installed_versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """The versions of Python and of those distributions that are installed."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _build(
    folder: epath.Path,
    marker: epath.Path,
    versions: dict[str, str],
    progress: Callable[[int], None] | None,
) -> None:
    parts: dict[str, list[str]] = {"train": [], "heldout": []}
    seen: set[bytes] = set()
    gc_was_on = gc.isenabled()
    gc.disable()  # syntax trees are millions of small objects without cycles: collection would cost a third of the time
    try:
        for number, (name, path) in enumerate(modules(versions)):
            if progress is not None:
                progress(number)
            paragraphs = new_paragraphs(documentation(path), seen)
            if paragraphs:
                parts["heldout" if is_held_out(name) else "train"].append("\n".join(paragraphs))
    finally:
        if gc_was_on:
            gc.enable()
    texts = {part: "\n\n".join(documents) + "\n" for part, documents in parts.items()}
    # Every build has file names of its own, and the marker is written last: two builds at once do
    # no harm.
    unique = uuid.uuid4().hex[:8]
    for part, text in texts.items():
        files.write_whole(folder / f"{part}-{unique}.txt", text)
    stored = {
        "train_path": f"train-{unique}.txt",
        "heldout_path": f"heldout-{unique}.txt",
        "digest": files.digest_of(texts),
        "versions": versions,
        "words_train": len(texts["train"].split()),
        "words_heldout": len(texts["heldout"].split()),
    }
    files.write_whole(marker, json.dumps(stored, indent=1))


def is_held_out(name: str) -> bool:
    """Whether a module is in the held-out part; decided by its name, or by its folder if that is
    deep."""
    group = "/".join(name.split("/")[:3])
    return (
        int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100 < _HELDOUT_PERCENT
    )


def modules(versions: dict[str, str]) -> Iterator[tuple[str, epath.Path]]:
    """The files to read, as (path below their root, path), in the corpus's order."""
    root = epath.Path(sysconfig.get_path("stdlib"))
    found = (os.fspath(path.relative_to(root)) for path in files.walk(root, _LEFT_OUT_FOLDERS))
    yield from ((name, root / name) for name in sorted(found) if name.endswith(".py"))
    for distribution in versions:
        if distribution != "python":
            yield from distribution_files(distribution)


def distribution_files(distribution: str) -> Iterator[tuple[str, epath.Path]]:
    """The files of one installed package that may hold documentation. Raises `BadInput` if it is
    not installed."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise BadInput(
            f"the package {distribution!r} is not installed; pip install {distribution}, or name another"
        ) from error
    for name in sorted(str(file) for file in found.files or []):
        if _is_documentation(name):
            yield name, epath.Path(found.locate_file(name))


def _is_documentation(name: str) -> bool:
    if name.startswith("..") or not _LEFT_OUT_FOLDERS.isdisjoint(name.split("/")):
        return False
    last = name.rsplit("/", 1)[-1]
    is_license = "license" in name.lower() or "notice" in name.lower()
    if last.startswith(
        "modular_"
    ):  # transformers' modeling_*.py are generated from these and repeat all they say
        return False
    return (
        last.endswith((".py", ".pyi"))
        or (last.endswith((".md", ".rst")) or last == "METADATA")
        and not is_license
    )


def documentation(path: epath.Path) -> Iterator[str]:
    """The strings of a file that may be documentation, in order. A file that cannot be read or
    parsed has none."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if path.name == "METADATA":
        yield content.partition("\n\n")[2]
    elif not path.name.endswith((".py", ".pyi")):
        yield content
    elif '"""' in content or "'''" in content:
        yield from _long_strings(content)


def _long_strings(code: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    found: list[tuple[int, int, str]] = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        for value in vars(nodes.pop()).values():
            for child in value if type(value) is list else (value,):
                if type(child) is ast.Constant:
                    if type(child.value) is str and len(child.value) >= _SHORTEST_STRING:
                        found.append((child.lineno, child.col_offset, child.value))
                # Documentation is a statement of its own or spans lines: millions of one-line nodes
                # are passed over.
                elif type(child) is ast.Expr or getattr(child, "end_lineno", 0) > getattr(
                    child, "lineno", 0
                ):
                    nodes.append(child)
    yield from (value for _, _, value in sorted(found))


def new_paragraphs(strings: Iterator[str], seen: set[bytes]) -> list[str]:
    """The prose of some documentation, a paragraph a line, without the sentences in `seen`, to
    which it adds."""
    paragraphs = []
    for string in strings:
        for sentences in prose.prose(string):
            kept = [sentence for sentence in sentences if _is_new(sentence, seen)]
            if kept:
                paragraphs.append(" ".join(kept))
    return paragraphs


def _is_new(sentence: str, seen: set[bytes]) -> bool:
    plain = _PLAIN_WORD.findall(sentence)
    if len(plain) < _LEAST_PLAIN_WORDS:
        return False
    key = hashlib.blake2b(" ".join(plain).encode(), digest_size=12).digest()
    if key in seen:
        return False
    seen.add(key)
    return True

"""Labelled sets of Hugging Face's `datasets`, by their name on its Hub or in a folder. Called by
data_sets.

The library is the extra `datasets`. From version 4 on it runs no code that a set brings, and its
builders unpickle nothing but for one ("pandas"), which only its own name calls up. What the Hub gives is
kept in $HF_HOME, and read there without a network."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxdistill.data import files
from jaxdistill.data.found_set import Found, Table
from jaxdistill.errors import BadInput, explained, listed, nearest, shortened

_SOURCE = re.compile(r"hf:([^:,]+)(?::(\w[\w.+-]*))?(?::(\w[\w.-]*(?:\[[^\[\],]*\])?))?")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FORM = "expected hf:NAME[:CONFIG][:SPLIT], NAME a folder or a name on the Hub, as hf:nyu-mll/glue:sst2:train"
_OLDEST = 4  # earlier ones run code that a set brings
_PATIENCE = 10.0  # seconds for the Hub's first answer
_ROWS_A_READ = 1000


def find(source: str) -> Found:
    """The set of 'hf:NAME[:CONFIG][:SPLIT]', fetched if it is not here yet. One word after the name is
    a config if the set has such a one, else a split.

    Raises:
        BadInput: no such set or config, or it cannot be fetched; `datasets` is not installed, or old.
    """
    name, words = parse(source)
    library = _library(source)
    folder = epath.Path(name).expanduser()
    if folder.is_dir():
        with _in_one_line(source, library):
            if saved := _saved(folder, library):
                return _found_saved(saved, words, source)
            return _found(
                *_builder(os.path.abspath(folder), words, library, source), source, library
            )
    _check_hub_name(name, source)
    with _in_one_line(source, library), _asked_once(name, source, library):
        return _found(*_builder(name, words, library, source), source, library)


def parse(source: str) -> tuple[str, tuple[str, ...]]:
    """(name, the words after it) of a source."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise BadInput(f"source {shortened(source)!r}: {_FORM}")
    name, *words = match.groups()
    return name, tuple(word for word in words if word)


def _library(source: str) -> Any:
    """`datasets`. Raises `BadInput` if it is not installed, or too old."""
    try:
        import datasets

        version = datasets.__version__
    except (ImportError, AttributeError) as error:  # a folder of that name can be imported, too
        raise BadInput(
            f"source {source!r} needs Hugging Face's datasets: pip install 'datasets>=4', or give a file"
        ) from error
    if int(version.split(".")[0]) < _OLDEST:
        raise BadInput(
            f"source {source!r} needs datasets {_OLDEST} or later, and {version} is installed: pip install "
            "'datasets>=4', or give a file"
        )
    return datasets


def _check_hub_name(name: str, source: str) -> None:
    if not _HUB_NAME.fullmatch(name):
        raise BadInput(f"source {source!r}: there is no folder {name!r}; {_FORM}")
    # `datasets` takes these for its own builders, and reads what lies in the working directory.
    if "/" not in name and importlib.util.find_spec(f"datasets.packaged_modules.{name}"):
        raise BadInput(
            f"source {source!r}: {name!r} is a kind of file for datasets, and no set; give the file itself, or a folder"
        )


def _saved(folder: epath.Path, library: Any) -> dict[str, Any]:
    """The splits that `save_to_disk` left in a folder; {} if it is none of its."""
    if (folder / "dataset_dict.json").exists():
        return dict(library.load_from_disk(os.fspath(folder)))
    if (folder / "state.json").exists():
        table = library.load_from_disk(os.fspath(folder))
        return {str(table.split or "train"): table}
    return {}


def _found_saved(saved: dict[str, Any], words: Sequence[str], source: str) -> Found:
    split = words[0] if words else ""
    if len(words) > 1 or "[" in split:
        raise BadInput(
            f"source {source!r}: a set that save_to_disk wrote has splits and no more: {listed(saved)}"
        )
    return Found(split, tuple(saved), lambda split: _table(saved[split]))


def _builder(place: str, words: Sequence[str], library: Any, source: str) -> tuple[Any, str]:
    """The builder of a set, and the split that is asked for."""
    failed = ValueError()
    for config, split in ((words[:1], words[1:]), ((), words)):
        if len(split) < 2 and not any("[" in word for word in config):
            try:
                return library.load_dataset_builder(place, *config), "".join(split)
            except ValueError as error:  # no such config
                failed = error
    configs = library.get_dataset_config_names(place)
    if len(configs) < 2:
        raise failed
    raise BadInput(
        f"source {source!r} names none of the configs that the set has, as hf:NAME:{configs[0]}; "
        f"{nearest(words[0] if words else '', configs)}"
    )


def _found(builder: Any, split: str, source: str, library: Any) -> Found:
    builder.download_and_prepare()

    def table(split: str) -> Table:
        with _in_one_line(source, library):
            return _table(builder.as_dataset(split=split))

    return Found(split, tuple(builder.info.splits), table)


def _table(dataset: Any) -> Table:
    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for batch in dataset.select_columns(list(names)).iter(_ROWS_A_READ):
            yield from zip(*(batch[name] for name in names))

    return Table({name: _classes(feature) for name, feature in dataset.features.items()}, rows)


def _classes(feature: Any) -> tuple[str, ...]:
    """The names of the classes of a feature, or of each item of a list."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


@contextlib.contextmanager
def _asked_once(name: str, source: str, library: Any) -> Iterator[None]:
    """Asks the Hub for the set, once: `datasets` would ask for 23 seconds. Where there is no answer, it
    is to take what it has kept."""
    import huggingface_hub

    config, said = library.config, ""
    before = config.HF_HUB_OFFLINE
    if not before:
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=_PATIENCE)
        except Exception as error:  # no network, no such name, no permission
            config.HF_HUB_OFFLINE, said = True, type(error).__name__
    try:
        yield
    except Exception as error:
        if not said:
            raise
        raise BadInput(
            f"source {source!r}: the Hub does not give {name!r} ({said}), and no such set was fetched before; check the name "
            "and the network, or give a file"
        ) from error
    finally:
        config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _in_one_line(source: str, library: Any) -> Iterator[None]:
    """Without bars and logs, and with whatever goes wrong as `BadInput`."""
    shows_bars = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        with files.quiet_logging():
            yield
    except BadInput:
        raise
    except Exception as error:  # as many kinds as there are servers and forms of files
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(cause, OSError) and (known := explained(cause)):  # a full disk
            raise known from error
        raise BadInput(
            f"source {source!r}: datasets cannot open it ({type(cause).__name__}: {shortened(cause, 250)}); check the "
            "name and the network, or give a file"
        ) from error
    finally:
        if shows_bars:
            library.enable_progress_bars()

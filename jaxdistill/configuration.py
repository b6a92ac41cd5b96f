"""A recipe by path or by name, with overrides: `configs/quickstart.py`, `quickstart:smoke`, `--config.seed=1`.

Called by the command line, notebooks and scripts. Files in `configs/` travel in the wheel as `jaxdistill.configs`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from jaxdistill.errors import BadInput, nearest

Overrides = Mapping[str, Any] | Sequence[str]


def load_config(name: str | os.PathLike[str], overrides: Overrides = ()) -> ConfigDict:
    """The recipe `name` (a path or the name of a shipped one, with an optional `:variant`), locked.

    `overrides`: "stages.transfer.steps=100" and the like, or a mapping {"stages.transfer.steps": 100} (or nested). Raises
    `BadInput` for an unknown recipe, a misspelt field (with the nearest name) or a value of the wrong type.
    """
    if not isinstance(name, str | os.PathLike):
        raise BadInput(f"config is a {type(name).__name__}; expected a recipe's name or file, or the ConfigDict of load_config")
    name, overrides = os.fspath(name), _texts(overrides)
    path, _, variant = name.partition(":")
    file = find(path)
    arguments = [f"--config={os.fspath(file)}" + (f":{variant}" if variant else ""),
                 *(f"--config.{override}" for override in overrides)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["jaxdistill", *arguments])
    try:
        values(["jaxdistill", *arguments])
        config: Any = values["config"].value
    except (flags.Error, AttributeError, LookupError, ValueError, TypeError, OSError, SyntaxError) as error:
        text = str(error)
        if isinstance(error, (AttributeError, LookupError)):
            if overrides:  # ml_collections says which field is missing, but not of what, nor which there are
                must_exist(load_config(name), overrides)
            text = f"{type(error).__name__}: {text}"
        raise BadInput(f"config {name!r}: {' '.join(text.replace(chr(92), '').split())}") from error
    if not isinstance(config, ConfigDict):
        raise BadInput(f"config {os.fspath(file)!r}: get_config returned {type(config).__name__}; expected a ConfigDict")
    return config


def as_config(config: str | os.PathLike[str] | ConfigDict, overrides: Overrides = ()) -> ConfigDict:
    """A recipe however it is given: by name or file, or loaded already; with `overrides` as in `load_config`.

    A `ConfigDict` that is given is not changed. Raises `BadInput` as `load_config` does, and for other types.
    """
    if not isinstance(config, ConfigDict):
        return load_config(config, overrides)
    changes = _texts(overrides)
    if not changes:
        return config
    must_exist(config, changes)
    arguments = ["jaxdistill", *(f"--config.{change}" for change in changes)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", copy.deepcopy(config), flag_values=values, sys_argv=arguments)
        values(arguments)
    except (flags.Error, config_flags.UnsupportedOperationError, ValueError, TypeError) as error:
        raise BadInput(f"overrides of config {config.get('name', '')!r}: {' '.join(str(error).split())}") from error
    return values["config"].value


def _texts(overrides: Any) -> list[str]:
    """Overrides as the command line has them, so that both mean the same and are refused alike."""
    if isinstance(overrides, Mapping | ConfigDict):
        return [f"{name}={_text(value)}" for name, value in _flat(overrides)]
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(overrides, Sequence) or not all(isinstance(override, str) and "=" in override for override in overrides):
        raise BadInput(f"overrides={str(overrides)[:80]}: expected a mapping such as {{'seed': 1}}, or strings such as 'seed=1'")
    return list(overrides)


def _flat(overrides: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in overrides.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's numbers have a repr of their own
    return repr(tuple(value) if isinstance(value, list) else value)


def as_names(names: str | Sequence[str] | None, what: str) -> list[str] | None:
    """Names given one by one, or in one string with commas; None if none are. `what` is for the message of `BadInput`."""
    if names is None or isinstance(names, str):
        return [name.strip() for name in names.split(",")] if names else None
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{what}={str(names)[:80]!r}: expected names, as 'a,b' or ['a', 'b']")
    return list(names) or None


def as_folder(path: Any, what: str) -> epath.Path:
    """The path `path` of the argument `what`. Raises `BadInput` unless it is one."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise BadInput(f"{what}={path!r}: expected the path of a folder")
    return epath.Path(path).expanduser()


def must_exist(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Raises `BadInput` for an override of a field that `config` does not have."""
    for override in overrides:
        names = override.partition("=")[0].split(".")
        node: Any = config
        for i, field in enumerate(names):
            where = ".".join(["config", *names[:i]])
            if not isinstance(node, ConfigDict):
                raise BadInput(f"{where} is a value, {node!r}, and has no field {field!r}")
            if field not in node:
                raise BadInput(f"{where} has no field {field!r}; {nearest(field, node)}")
            node = node.get_ref(field).get()


def find(path: str) -> epath.Path:
    """The file of a recipe: the path itself, or the shipped recipe of that name."""
    given = epath.Path(path).expanduser()
    if given.is_file():
        return given
    shipped = shipped_recipes()
    stem = given.name.removesuffix(".py")
    if stem in shipped and len(given.parts) <= 2:
        return shipped[stem]
    raise BadInput(f"config {path!r} is neither a file nor a shipped recipe; {nearest(stem, shipped)}")


def shipped_recipes() -> dict[str, epath.Path]:
    """Name -> file of every recipe: beside the package in a checkout, inside it in a wheel."""
    here = epath.Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        if folder.is_dir():
            return {file.name.removesuffix(".py"): file for file in sorted(folder.glob("*.py"))
                    if not file.name.startswith("_")}
    return {}

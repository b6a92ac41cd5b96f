"""A recipe by path or by name, with overrides: `configs/quickstart.py`, `quickstart:smoke`, `--config.seed=1`.

Called by the command line, notebooks and scripts. Files in `configs/` travel in the wheel as `jaxdistill.configs`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from jaxdistill.errors import BadInput, nearest


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The recipe `name` (a path or the name of a shipped one, with an optional `:variant`), locked.

    `overrides`: "stages.transfer.steps=100" and the like. Raises `BadInput` for an unknown recipe, a misspelt field
    (with the nearest name) or a value of the wrong type.
    """
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

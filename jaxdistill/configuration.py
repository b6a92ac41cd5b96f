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
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError, SyntaxError) as error:
        # ml_collections' KeyErrors carry a quoted, escaped text of several lines.
        text = str(error.args[0] if isinstance(error, (AttributeError, KeyError)) and error.args else error)
        raise BadInput(f"config {name!r}: {' '.join(text.replace(chr(92), '').split())}") from error
    if not isinstance(config, ConfigDict):
        raise BadInput(f"config {os.fspath(file)!r}: get_config returned {type(config).__name__}; expected a ConfigDict")
    return config


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

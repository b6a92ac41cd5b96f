"""A recipe by path or by name, with overrides: `configs/quickstart.py`, `quickstart:smoke`,
`--config.seed=1`.

A workdir's config.json is a recipe too. Called by the command line, notebooks and scripts. Files in
`configs/` travel in the wheel as `jaxdistill.configs`."""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from jaxdistill import defaults
from jaxdistill.data import tasks
from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.evaluation.derived import DERIVED
from jaxdistill.methods.kinds import KINDS, Kind, check_setting
from jaxdistill.registry import adds_rows, reading

_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "a tuple, as (1, 2)",
}

Overrides = Mapping[str, Any] | Sequence[str]


def load_config(name: str | os.PathLike[str], overrides: Overrides = ()) -> ConfigDict:
    """The recipe `name` (a path or the name of a shipped one, with an optional `:variant`), locked.

    `overrides`: "stages.transfer.steps=100" and the like, or a mapping {"stages.transfer.steps":
    100} (or nested). Raises `BadInput` for an unknown recipe or one that cannot be read, a misspelt
    field (with the nearest name), a value of the wrong type, or an override that would do nothing.
    """
    if not isinstance(name, str | os.PathLike):
        raise BadInput(
            f"config is a {type(name).__name__}; expected a recipe's name or file, or the ConfigDict of load_config"
        )
    name = os.fspath(name)
    scheme, _, rest = name.rpartition("://")  # of gs://BUCKET/RECIPE.py:VARIANT
    path, _, variant = rest.partition(":")
    file = find(f"{scheme}://{path}" if scheme else path)
    config = _stored(file, variant) if file.name.endswith(".json") else _from_python(file, variant)
    try:
        check_fields(config)
    except BadInput as error:
        raise BadInput(f"config {shortened(name)!r}: {error}") from error
    return _overridden(config, _texts(overrides)).lock()


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config` itself, with its fields set."""
    for override in sorted(
        overrides, key=lambda text: not _is_kind(text)
    ):  # its settings come after
        _override(config, override)
    check_fields(config)
    _check_used(config, [override.partition("=")[0] for override in overrides])
    return config


def run_code(file: epath.Path) -> types.ModuleType:
    """The module that a recipe's file makes; what it registers is there afterwards."""
    module = types.ModuleType("jaxdistill_recipe")
    module.__file__ = os.fspath(file)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with reading(os.path.realpath(file)):
        exec(compile(file.read_bytes(), os.fspath(file), "exec"), module.__dict__)
    return module


def _from_python(file: epath.Path, variant: str) -> ConfigDict:
    """What `get_config` of a Python file returns. Raises `BadInput` with the line of the file that
    is to blame."""
    shown = os.fspath(file)
    try:
        with reading(code := os.path.realpath(shown)):
            module = run_code(file)
            if not callable(getattr(module, "get_config", None)):
                raise BadInput(
                    "it has no function get_config(); a recipe returns jaxdistill.defaults.recipe(NAME), filled in"
                )
            config = module.get_config(variant) if variant else module.get_config()
        if adds_rows(code) and isinstance(config, ConfigDict) and "code" in config:
            config.code = code
    except (Exception, SystemExit) as error:  # whatever a file may raise
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == shown
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        what = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        raise BadInput(f"config {shown!r}{f', line {line}' if line else ''}: {what}") from error
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"config {shown!r}: get_config returned {type(config).__name__}; expected a ConfigDict, as "
            "jaxdistill.defaults.recipe(NAME) makes one"
        )
    return config


def as_config(config: str | os.PathLike[str] | ConfigDict, overrides: Overrides = ()) -> ConfigDict:
    """A recipe however it is given: by name or file, or loaded already; with `overrides` as in
    `load_config`.

    A `ConfigDict` that is given is not changed. Raises `BadInput` as `load_config` does, and for
    other types."""
    if not isinstance(config, ConfigDict):
        return load_config(config, overrides)
    changes = _texts(overrides)
    return _overridden(copy.deepcopy(config) if changes else config, changes)


def _texts(overrides: Any) -> list[str]:
    """Overrides as the command line has them, so that both mean the same and are refused alike."""
    if isinstance(overrides, Mapping | ConfigDict):
        return [f"{name}={_text(value)}" for name, value in _flat(overrides)]
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(overrides, Sequence) or not all(
        isinstance(override, str) and "=" in override for override in overrides
    ):
        raise BadInput(
            f"overrides={str(overrides)[:80]}: expected a mapping such as {{'seed': 1}}, or strings such as 'seed=1'"
        )
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
    value = (
        value.tolist() if hasattr(value, "tolist") else value
    )  # NumPy's numbers have a repr of their own
    return repr(tuple(value) if isinstance(value, list) else value)


def as_names(names: str | Sequence[str] | None, what: str) -> list[str] | None:
    """Names given one by one, or in one string with commas; None if none are. `what` is for the
    message of `BadInput`."""
    if names is None or isinstance(names, str):
        return [name.strip() for name in names.split(",")] if names else None
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{what}={str(names)[:80]!r}: expected names, as 'a,b' or ['a', 'b']")
    if not names:
        raise BadInput(f"{what} is empty; name some, or leave it out for all")
    return list(names)


def as_folder(path: Any, what: str) -> epath.Path:
    """The path `path` of the argument `what`. Raises `BadInput` unless it is one."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise BadInput(f"{what}={path!r}: expected the path of a folder")
    return epath.Path(path).expanduser()


def _stored(file: epath.Path, variant: str) -> ConfigDict:
    """The recipe that a run stored as config.json; fields that are younger than it take their
    defaults."""
    shown = os.fspath(file)
    if variant:
        raise BadInput(
            f"config {shown!r} is a stored recipe and has no variants; leave ':{variant}' out"
        )
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"config {shown!r} is not JSON ({error}); give a workdir's config.json or a Python file"
        ) from error
    if not isinstance(values, dict) or not {"name", "stages", "order"} <= values.keys():
        raise BadInput(
            f"config {shown!r} is no recipe: it lacks name, stages or order; give the config.json of a "
            "workdir of 'train', or a Python file"
        )
    defaults.check_schema(values, f"config {shown!r}")
    if (code := values.get("code")) and not adds_rows(str(code)):  # no file runs unless it is named
        raise BadInput(
            f"config {shown!r} is of a recipe with code of its own; name its file by --config={code}"
        )
    try:
        config = defaults.recipe(str(values["name"]))
        for name, section in values.pop("networks").items():
            section = dict(section)
            begins = {field: section.pop(field) for field in ("init", "start", "of", "like")}
            begins["layers"] = tuple(section.pop("layers", ()))
            preset = "" if begins["like"] else "bert_base"
            model = _tuples({"heads": section.pop("heads", ()), **section.pop("model", {})})
            config.networks[name] = defaults.network(preset, **begins, **model)
            _fill(config.networks[name], section, f"networks.{name}")
        for name, section in values.pop("stages").items():
            config.stages[name] = defaults.stage(**_tuples(section))
        for name, section in values.pop("feeds", {}).items():
            if "derived" in section:
                section = _tuples(section)
                config.feeds[name] = defaults.derived(section.pop("derived"), **section)
            else:
                config.feeds[name] = defaults.task(**_tuples(section))
        config.ensembles.update(_tuples(values.pop("ensembles", {})))
        if search := _tuples(values.pop("search", {})):
            config.search = defaults.mapping_search(**search)
        _fill(config, values, "")
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise BadInput(f"config {shown!r} cannot be used: {error}") from error
    return config


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists alone."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _fill(section: ConfigDict, values: dict[str, Any], where: str) -> None:
    for name, value in _tuples(values).items():
        if name not in section:
            raise BadInput(
                f"config{where and '.'}{where} has no field {name!r}; {nearest(name, section)}"
            )
        if isinstance(section[name], ConfigDict):
            _fill(section[name], value, f"{where}.{name}" if where else name)
        else:
            section[name] = value


def check_fields(config: ConfigDict) -> None:
    """Raises `BadInput` unless `config` has the fields of `defaults`, no others, and values of
    their types."""
    if not isinstance(config.get("stages"), ConfigDict):
        raise BadInput(
            "config has no stages; a recipe is jaxdistill.defaults.recipe(NAME), filled in"
        )
    for name in ("teacher", "student"):
        if name in config:
            raise BadInput(moved(f"config.{name}"))
    defaults.check_schema(config, "config")
    stages, networks, feeds = {}, {}, {}
    held = config.get("feeds")
    for name, section in held.items() if isinstance(held, ConfigDict) else ():
        where = f"config.feeds.{name}"
        if isinstance(section, ConfigDict) and "derived" in section:
            DERIVED.named(section.derived, f"{where}.derived=")
            feeds[name] = _fields_of(defaults.derived(section.derived, ""))
            continue
        kind = section.get("kind") if isinstance(section, ConfigDict) else None
        if not isinstance(kind, str):
            raise BadInput(
                f"{where}={shortened(repr(section))}; expected a feed, as jaxdistill.defaults.task(KIND) "
                "or derived(KIND, of=TASK, by=NETWORK) makes one"
            )
        feeds[name] = _fields_of_task(tasks.TASKS.named(kind, f"{where}.kind="))
    held = config.get("networks")
    for name, section in held.items() if isinstance(held, ConfigDict) else ():
        like = isinstance(section, ConfigDict) and bool(section.get("like"))
        networks[name] = _fields_of_network(like)
    for name, section in config.stages.items():
        where = f"config.stages.{name}"
        kind = section.get("kind") if isinstance(section, ConfigDict) else None
        if not isinstance(kind, str):
            raise BadInput(
                f"{where}={shortened(repr(section))}; expected a stage, as jaxdistill.defaults.stage"
                "(KIND, NETWORK) makes one"
            )
        stages[name] = _fields_of_stage(KINDS.named(kind, f"{where}.kind="))
        for field in section:
            check_setting(kind, field, where)
    held = config.get("ensembles")
    ensembles = dict.fromkeys(held or (), (tuple, False)) if isinstance(held, ConfigDict) else {}
    sections = {"stages": stages, "networks": networks, "feeds": feeds, "ensembles": ensembles}
    sections["search"] = _fields_of_search(config.get("search"))
    _check_section(config, {**_fields_of_recipe(), **sections}, "config")


def _fields_of_search(section: Any) -> dict[str, Any]:
    if not section or not isinstance(section, ConfigDict):
        return {}
    fields = _fields_of(defaults.mapping_search(""))
    scores = section.get("teacher_scores")
    tasks_named = scores if isinstance(scores, ConfigDict) else ()
    return {**fields, "teacher_scores": dict.fromkeys(tasks_named, (float, False))}


def moved(field: str) -> str:
    """A line about a field of an earlier form."""
    return f"{field} has another place now: {field.replace('config.', 'config.networks.', 1)}"


@functools.cache
def _fields_of_recipe() -> dict[str, Any]:
    return _fields_of(defaults.recipe(""))


@functools.cache
def _fields_of_network(like: bool) -> dict[str, Any]:
    return _fields_of(defaults.network(like="other") if like else defaults.network())


@functools.cache
def _fields_of_stage(kind: Kind) -> dict[str, Any]:
    return _fields_of(defaults.stage(kind.__name__, "student"))


@functools.cache
def _fields_of_task(kind: tasks.Task) -> dict[str, Any]:
    return _fields_of(defaults.task(kind.__name__))


def _fields_of(section: ConfigDict) -> dict[str, Any]:
    """The fields of a section: a dictionary for one in it, else (type, whether it may be None)."""
    return {
        name: _fields_of(section[name])
        if isinstance(section[name], ConfigDict)
        else (section.get_type(name), section[name] is None)
        for name in section
    }


def _check_section(section: Any, fields: dict[str, Any], where: str) -> None:
    if not isinstance(section, ConfigDict):
        raise BadInput(
            f"{where}={shortened(repr(section))}; expected a section with the fields {listed(sorted(fields))}"
        )
    for name in section:
        if name not in fields:
            raise BadInput(f"{where} has no field {name!r}; {nearest(name, fields)}")
    if missing := [name for name in fields if name not in section]:
        raise BadInput(
            f"{where} lacks {listed(missing)}; sections are made by recipe, network and stage of jaxdistill.defaults"
        )
    for name, field in fields.items():
        if isinstance(field, dict):
            _check_section(section[name], field, f"{where}.{name}")
        else:
            kind, optional = field
            _check_value(section[name], kind, optional, f"{where}.{name}")


def _check_value(value: Any, kind: type, optional: bool, where: str) -> None:
    if value is None and optional:
        return
    number = isinstance(value, int) and not isinstance(value, bool)
    fits = {int: number, float: number or isinstance(value, float)}.get(
        kind, isinstance(value, kind)
    )
    if not fits:
        raise BadInput(f"{where}={shortened(repr(value))}; expected {_EXPECTED[kind]}")
    if number and abs(value) >= 2**63:
        raise BadInput(f"{where}={shortened(value)}; expected less than 2**63")


def _is_kind(override: str) -> bool:
    """Whether it sets the kind of a stage or of a task."""
    section, _, field = override.partition("=")[0].rpartition(".")
    where, _, name = section.partition(".")
    return field == "kind" and where in ("stages", "feeds") and bool(name) and "." not in name


def _override(config: ConfigDict, override: str) -> None:
    """Sets one field as the command line says. Raises `BadInput` if there is none, or for a value
    of another type."""
    must_exist(config, [override])
    field, _, value = override.partition("=")
    if _is_kind(override):
        part, name, _ = field.split(".")
        sections, where = config[part], f"config.{part}.{name}"
        (KINDS if part == "stages" else tasks.TASKS).named(value, f"{where}.kind=")
        convert = defaults.as_kind if part == "stages" else defaults.as_task
        sections[name] = convert(sections[name], value, where)
        return
    if isinstance(section := config_flags.GetValue(field, config), ConfigDict):
        raise BadInput(
            f"config.{field} is a section; set one of its fields: {listed(sorted(section))}"
        )
    values = flags.FlagValues()
    arguments = ["jaxdistill", f"--config.{override}"]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, sys_argv=arguments
        )
        values(arguments)
    except (
        flags.Error,
        AttributeError,
        LookupError,
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ) as error:
        expected = _EXPECTED.get(config_flags.GetType(field, config), "another value")
        raise BadInput(f"config.{field}={shortened(value)!r}; expected {expected}") from error


def _check_used(config: ConfigDict, overridden: Sequence[str]) -> None:
    """Raises `BadInput` for an override that would do nothing beside what else the recipe says."""
    d = config.data
    tokenizer = d.tokenizer or defaults.given_folder(config)
    for field in overridden:
        section, _, last = field.rpartition(".")
        why = ""
        network = section.removeprefix("networks.").removesuffix(".model")
        if section == f"networks.{network}.model" and last not in ("dtype", "residual_dtype"):
            init = config.networks[network].init
            why = init and f"the network is that of config.networks.{network}.init={init!r}"
        elif field == "data.vocab_size":
            why = tokenizer and f"the tokenizer is that of {tokenizer!r}"
        elif field == "data.heldout_fraction":
            why = d.heldout and f"held-out text is config.data.heldout={d.heldout!r}"
        elif section.startswith("feeds.") and last == "heldout_fraction":
            held = config.feeds[section.removeprefix("feeds.")].get("heldout")
            why = held and f"held-out rows are those of config.{section}.heldout={held!r}"
        if why:
            raise BadInput(f"config.{field} would do nothing: {why}; leave one of the two out")


def must_exist(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Raises `BadInput` for an override of a field that `config` does not have."""
    for override in overrides:
        names = override.partition("=")[0].split(".")
        node: Any = config
        for i, field in enumerate(names):
            where = ".".join(["config", *names[:i]])
            if not isinstance(node, ConfigDict):
                raise BadInput(f"{where} is a value, {node!r}, and has no field {field!r}")
            if i == 0 and field in ("teacher", "student"):
                raise BadInput(moved(f"config.{'.'.join(names)}"))
            if i == 2 and names[0] == "stages" and isinstance(node.get("kind"), str):
                check_setting(node.kind, field, where)
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
    raise BadInput(
        f"config {path!r} is neither a file nor a shipped recipe; {nearest(stem, shipped)}"
    )


def shipped_recipes() -> dict[str, epath.Path]:
    """Name -> file of every recipe: beside the package in a checkout, inside it in a wheel."""
    here = epath.Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        if folder.is_dir():
            return {
                file.name.removesuffix(".py"): file
                for file in sorted(folder.glob("*.py"))
                if not file.name.startswith("_")
            }
    return {}

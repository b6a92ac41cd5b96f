"""The folder of a run: its recipe, the network each finished stage left, and where everything else
goes. Called by run.

config.json          the recipe; another recipe is refused here
inputs.json          digests of what the run reads, and tokenizer/, its tokenizer (see `binding`)
data/                prepared text and vocabularies trained on it (of a remote workdir the text is in the cache)
stages/NAME/         the network after stage NAME with its tokenizer, in our own format; stage.json is written last and
                     marks it whole
checkpoints/NAME/    the stage in progress
derived/             what a network says of each row of a task, of feeds that are made so
predictions/TASK/NETWORK.tsv    each network's answers to the held-out rows of a task
metrics.jsonl, tensorboard/, results.json, plots/, student/ (the exported folder)
DONE                 written last of all, when every stage of the recipe is finished and reported; launchers wait for it
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxdistill import defaults, remote
from jaxdistill.data.files import write_whole
from jaxdistill.data.tokenizers import save_tokenizer
from jaxdistill.errors import BadInput
from jaxdistill.interop import own_format
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import digest
from jaxdistill.training import hosts
from jaxdistill.training.checkpoints import disk_errors

# Fields that may differ between two calls on one workdir: they change where, how often and which
# stages, and each stage's page holds the lineage that its result depends on.
FREE = (
    "order",
    "baselines",
    "mesh",
    "checkpoint",
    "log_every",
    "watchdog_minutes",
    "profile",
    "export",
    "data.path",
    "evaluation",
    "objectives",
    "code",
)
# Places of what a run reads: what lies there is compared by content (see `binding`), so it may be
# moved.
PLACES = re.compile(
    r"data\.(source|heldout|tokenizer)|networks\..+\.init"
    r"|feeds\..+\.(heldout|test|label_file|documents|queries|relevant|"
    r"(.+_)?source|(.+_)?without_articles_of)"
)

MOST_DIFFERENCES = 10  # named in one message
INPUTS = "inputs.json"
SHARED = ".shared"
DONE = "DONE"


class Workdir:
    """Paths of a run; creating it makes the folder and refuses one that belongs to another
    recipe."""

    def __init__(self, path: epath.PathLike, config: ConfigDict | None = None) -> None:
        self.path = epath.Path(path).expanduser()
        if config is not None:
            claim(self.path, config.to_dict())

    def contents(self) -> list[str]:
        """What is finished and what is in progress: names of stage pages and checkpoints; the mark
        of `share` first."""
        mark = [path.read_text() for path in self.path.glob(SHARED)]
        return mark + sorted(
            str(path.relative_to(self.path))
            for pattern in ("stages/*/stage.json", "checkpoints/*/*")
            for path in self.path.glob(pattern)
        )

    def share(self) -> None:
        """Leaves a mark by which other processes know that they see this folder, and not one of the
        same name."""
        (self.path / SHARED).write_text(uuid.uuid4().hex)

    def checkpoints(self, stage: str) -> epath.Path:
        return self.path / "checkpoints" / stage

    def stage(self, stage: str) -> epath.Path:
        return self.path / "stages" / stage

    def predictions(self, feed: str) -> epath.Path:
        """Where the answers to a task are."""
        return self.path / "predictions" / feed

    def trace(self, stage: str, network: str) -> epath.Path:
        """Where a profile of `stage` goes: TensorBoard looks for it beside the scalars."""
        return self.path / "tensorboard" / stage / network

    def mark_done(self, stages: list[str]) -> None:
        """Writes DONE: `stages`, the whole recipe, are finished and everything about them is
        written."""
        with disk_errors(self.path):
            write_whole(self.path / DONE, "\n".join(stages) + "\n")

    def clear_done(self) -> None:
        """A run that goes on is not done, whatever an earlier call with fewer stages left."""
        (self.path / DONE).unlink(missing_ok=True)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The page of a finished stage, or None."""
        file = self.stage(stage) / "stage.json"
        if not file.exists():
            return None
        page = read_page(file)
        for name in ("sha256", "steps", "seconds", "skipped", "lineage"):
            if name not in page:
                raise BadInput(
                    f"{file} is damaged (it has no {name}); delete {file.parent} to train the stage again"
                )
        return page

    def save_stage(
        self, stage: str, model: Model, params: Params, page: dict[str, Any], tokenizer: Any = None
    ) -> dict[str, Any]:
        """Writes the network after `stage`, with its tokenizer (the first process does); the marker
        comes last, so a stage is whole or not there."""
        folder = self.stage(stage)
        page = {**page, "sha256": digest(params)}
        if not hosts.first():
            return page
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            own_format.write(folder, model.config, params, page.get("labels"))
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
            write_whole(folder / "stage.json", json.dumps(page, indent=2) + "\n")
        return page

    def write_predictions(self, feed: str, network: str, files: Mapping[str, str]) -> None:
        """Writes a network's answers to the held-out rows of a task (the first process does): text by
        the ending of its file."""
        folder = self.predictions(feed)
        if not hosts.first():
            return
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            for ending, text in files.items():
                write_whole(folder / f"{network}.{ending}", text)

    def derived(self, feed: str, part: str) -> epath.Path:
        """Where what a teacher says of a part of a derived feed is stored."""
        return self.path / "derived" / f"{feed}-{part}.array_record"

    def load_stage(self, stage: str, model: Model) -> Params:
        """The parameters after a finished stage, checked against the digest in its page."""
        try:
            params = own_format.read_params(self.stage(stage), model.config)
        except BadInput as error:
            raise BadInput(
                f"the weights of the finished stage {stage!r} cannot be read ({error}); delete "
                f"{self.stage(stage)} to train it again"
            ) from error
        page = self.finished(stage)
        if page is None or digest(params) != page["sha256"]:
            raise BadInput(
                f"the weights in {self.stage(stage)} are not those that its stage.json describes; "
                "delete that folder to train the stage again"
            )
        return params


def is_recipe(values: dict[str, Any]) -> bool:
    """Whether a config.json is a recipe: other commands and models have files of that name too."""
    return "model_type" not in values and {"stages", "order"} <= values.keys()


def begun(path: epath.Path) -> bool:
    """Whether anything in a workdir was trained, and so depends on what was read; people delete
    parts of one."""
    return any(
        (path / name).exists() for name in ("stages", "checkpoints", "results.json", "model")
    )


def check(path: epath.Path, config: dict[str, Any]) -> None:
    """Raises `BadInput` if `path` cannot be the workdir of `config`: it belongs to another recipe,
    holds something else, or links that lead out of it. Writes nothing."""
    refuse_links(path)
    try:
        file = path / "config.json"
        if file.exists():
            held = read_page(file, "put back a copy of it")
            if not is_recipe(held) and ("task_file" in held or "digests" in held):
                raise BadInput(
                    f"workdir {str(path)!r} is one of 'finetune' of an earlier version of jaxdistill; give a new one"
                )
            if not is_recipe(held):
                raise BadInput(
                    f"workdir {str(path)!r} is a model's folder, or another program's: its config.json is not that of a "
                    "run; give a new or empty folder"
                )
            if begun(path):  # before that nothing depends on it
                defaults.check_schema(held, f"the run in workdir {str(path)!r}")
                _refuse_other(path, held, json.loads(json.dumps(config)))
        elif any(
            not entry.name.startswith(".") for entry in remote.entries(path)
        ):  # a kill may leave .lock alone
            raise BadInput(
                f"workdir {str(path)!r} is not empty and holds no run; give a new or empty folder"
            )
    except OSError as error:
        raise BadInput(
            f"cannot use workdir {str(path)!r}: {error.strerror or error}; give a writable folder"
        ) from error


def claim(path: epath.Path, config: dict[str, Any], locked: bool = False) -> None:
    """Makes `path` the workdir of `config`. Raises `BadInput` as `check`, and if it is in use or
    cannot be written. `locked`: the caller holds its lock."""
    check(path, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.nullcontext() if locked else lock(path)
        ):  # a run that is under way there has its own recipe
            write_whole(path / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise BadInput(
            f"cannot use workdir {str(path)!r}: {error.strerror or error}; give a writable folder"
        ) from error


def refuse_links(path: epath.Path) -> None:
    """Raises `BadInput` for a symbolic link in a workdir that leads out of it: what is written
    there would land elsewhere.

    The workdir itself may be one.
    """
    if remote.is_remote(path):
        return
    top = os.path.realpath(path)
    for folder, folders, names in os.walk(top):
        for name in (*folders, *names):
            link = os.path.join(folder, name)
            if os.path.islink(link) and os.path.commonpath([top, os.path.realpath(link)]) != top:
                raise BadInput(
                    f"workdir {str(path)!r} holds the symbolic link {os.path.relpath(link, top)!r} to "
                    f"{os.path.realpath(link)!r}, which is not in it; remove the link (text prepared elsewhere is "
                    "named by config.data.path)"
                )


def read_page(file: epath.Path, advice: str = "") -> dict[str, Any]:
    """A JSON object from a workdir. Raises `BadInput` with `advice` (default: to delete its folder)
    if the file is not one."""
    advice = advice or f"delete the folder {file.parent}"
    try:
        page = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise BadInput(f"{file} is damaged ({error}); {advice}, or give another workdir") from error
    if not isinstance(page, dict):
        raise BadInput(f"{file} is damaged (no JSON object); {advice}, or give another workdir")
    return page


@contextlib.contextmanager
def lock(path: epath.Path) -> Iterator[None]:
    """Holds a workdir for one process of this machine; freed by the system however the process
    ends.

    Remote folders and systems without `fcntl` are not locked. Raises `BadInput` if another process
    holds it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    if remote.is_remote(path):
        yield
        return
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(
                f"workdir {str(path)!r} is in use by another run; wait for it, or give another workdir"
            ) from error
        yield


def _refuse_other(path: epath.Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    # A field that is younger than the workdir was what it is by default.
    now = flat(wanted)
    before = {
        **{
            name: value
            for name, value in flat(defaults.recipe("").to_dict()).items()
            if name in now
        },
        **flat(held),
    }
    # A stage, network or task that was added or taken away says nothing about the others.
    names = [
        name
        for name in sorted(before.keys() | now.keys())
        if not (
            name.startswith(("stages.", "networks.", "feeds."))
            and (name not in before or name not in now)
        )
        and before.get(name) != now.get(name)
    ]
    if (path / INPUTS).exists():
        names = [
            name
            for name in names
            if not (PLACES.fullmatch(name) and before.get(name) and now.get(name))
        ]
    differ = [
        f"config.{name}={before.get(name)!r}, now {now.get(name)!r}"
        for name in names
        if not any(name == free or name.startswith(free + ".") for free in FREE)
    ]
    if differ:
        recipe = held.get("name") or held.get("config_name")
        more = (
            f"; and {len(differ) - MOST_DIFFERENCES} more" if len(differ) > MOST_DIFFERENCES else ""
        )
        raise BadInput(
            f"workdir {str(path)!r} belongs to a run{f' of recipe {recipe!r}' if recipe else ''} with "
            f"{'; '.join(differ[:MOST_DIFFERENCES])}{more}; use another workdir, or the same settings to resume"
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        result |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return result

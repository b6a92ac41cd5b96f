"""What a run has read, by content: text, tokenizer and given models belong to its networks from the
first stage to the export.

`inputs.json` in the workdir holds the digests, `tokenizer/` the tokenizer itself, both written
before the first step. From then on the run keeps that text and that tokenizer whatever becomes of
their sources; a given model that is another one now is refused. A path says nothing: the same
content elsewhere is the same. Called by inputs and run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxdistill.data.files import digest_of, write_whole
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.data.tokenizers import load_tokenizer, save_tokenizer, tokenizer_digest
from jaxdistill.errors import BadInput, listed
from jaxdistill.models import Model, ModelConfig, Params
from jaxdistill.models.parameters import digest
from jaxdistill.workdir import INPUTS as FILE
from jaxdistill.workdir import begun, read_page

TOKENIZER = "tokenizer"  # a folder


@dataclasses.dataclass(frozen=True)
class Text:
    """One part of the text: as the recipe named it, the digests of what stood there and of the
    records made of it."""

    source: str
    source_digest: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Task:
    """One labelled task: its tables as the recipe named them, by part; the digests of their contents,
    by part; its labels."""

    tables: Mapping[str, str]
    digests: Mapping[str, str]
    labels: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Digests of all that a run reads. `text`: empty if no stage reads text. `models`: by name, of
    those given by folder. `documentation`: of the default corpus, its own digest and the versions of
    the packages that it is from; empty for other text. `tasks`: by the names of their feeds."""

    tokenizer: str
    text: Mapping[str, Text]
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    documentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)

    def digest(self, feed: str) -> str:
        """Of what a stage reads: its page holds it. Given models have digests of their own there."""
        digests = (
            {part: text.digest for part, text in self.text.items()}
            if feed not in self.tasks
            else self.tasks[feed].digests
        )
        return digest_of([self.tokenizer, dict(digests)])

    @property
    def whole(self) -> str:
        """Of what all stages read."""
        tasks = {name: dict(task.digests) for name, task in sorted(self.tasks.items())}
        text = self.digest(TEXT)
        return digest_of([text, tasks]) if tasks else text


def read(workdir: epath.Path) -> Inputs | None:
    """What the run in `workdir` has read; None if nothing was trained there yet, or by a version
    that did not record it."""
    file = workdir / FILE
    if not (begun(workdir) and file.exists()):
        return None
    page = read_page(file, "put back a copy of it")
    try:
        text = {part: Text(**page["text"][part]) for part in page["text"]}
        tasks = {name: Task(**dict(task)) for name, task in dict(page.get("tasks", {})).items()}
        if text.keys() not in (set(), {"train", "heldout"}):
            raise KeyError("train, heldout")
        held = Inputs(
            page["tokenizer"], text, dict(page["models"]), dict(page["documentation"]), tasks
        )
        words = [
            held.tokenizer,
            *held.models.values(),
            *(word for part in text.values() for word in dataclasses.astuple(part)),
            *(
                word
                for task in tasks.values()
                for word in (*task.tables.values(), *task.digests.values(), *task.labels)
            ),
        ]
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a digest or a source is no text")
        return held
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{file} is damaged ({type(error).__name__}: {error}); put back a copy of it, or give another "
            "workdir"
        ) from error


def write(workdir: epath.Path, inputs: Inputs, tokenizer: Any) -> None:
    """Binds a workdir to what its run reads. `inputs.json` comes last: where it is, the tokenizer
    is too."""
    (workdir / TOKENIZER).rmtree(missing_ok=True)
    save_tokenizer(tokenizer, workdir / TOKENIZER)
    if tokenizer_digest(load_tokenizer(workdir / TOKENIZER)) != inputs.tokenizer:
        raise BadInput(
            "the tokenizer is another one when it is saved and loaded again; save it with transformers' "
            "save_pretrained first, and give that folder as config.data.tokenizer"
        )
    record(workdir, inputs)


def record(workdir: epath.Path, inputs: Inputs) -> None:
    """Writes `inputs.json`."""
    write_whole(workdir / FILE, json.dumps(dataclasses.asdict(inputs), indent=2) + "\n")


def bound_tokenizer(workdir: epath.Path, held: Inputs) -> Any:
    """The tokenizer that a run is bound to. Raises `BadInput` if its folder is gone or holds
    another one."""
    folder = workdir / TOKENIZER
    advice = f"put back a copy of {folder}, or give another workdir"
    try:
        tokenizer = load_tokenizer(folder)
    except BadInput as error:
        raise BadInput(f"this run's tokenizer cannot be read ({error}); {advice}") from error
    if tokenizer_digest(tokenizer) != held.tokenizer:
        raise BadInput(
            f"the tokenizer in {folder} is not the one that this run began with; {advice}"
        )
    return tokenizer


def model_digest(model: Model, params: Params) -> str:
    """Of a model's architecture and weights. How it computes (dtypes) is not its own, and fields
    that a later version adds must not make another model of it: only what is not at its default
    counts."""
    usual = ModelConfig().to_dict()
    fields = {
        name: value
        for name, value in model.config.to_dict().items()
        if value != usual.get(name) and name not in ("dtype", "residual_dtype")
    }
    return digest_of([fields, digest(params)])


def check_models(held: Inputs | None, now: Mapping[str, str], places: Mapping[str, str]) -> None:
    """Raises `BadInput` if a given model is not the one that the run began with. `now`: as
    `Inputs.models`; `places`: where each was given."""
    for name in held.models.keys() | now.keys() if held is not None else ():
        assert held is not None
        before = held.models.get(name)
        if before != now.get(name):
            shown = [value[:12] + "..." if value else "none" for value in (before, now.get(name))]
            raise BadInput(
                f"config.networks.{name}.init={places.get(name)!r} is not the {name} that this run began with (digest "
                f"{shown[0]}, now {shown[1]}): its weights or its config.json have changed; bring it back, or "
                "use another workdir"
            )


def check_tasks(held: Inputs | None, now: Mapping[str, Task]) -> None:
    """Raises `BadInput` if the tables of a task hold something else than when the run began."""
    for name, task in now.items() if held is not None else ():
        assert held is not None
        before = held.tasks.get(name)
        if before is None:  # no stage read it
            continue
        if list(before.labels) != list(task.labels):
            raise BadInput(
                f"this workdir's run began with the labels {listed(before.labels)} of the task {name!r}, and "
                f"{task.tables.get('train', name)!r} now has {listed(task.labels)}; use another workdir, or give back "
                "the labels to resume"
            )
        changed = [
            f"the {part} table {task.tables.get(part, name)!r}"
            for part, digest in task.digests.items()
            if before.digests.get(part) != digest
        ]
        if changed:
            raise BadInput(
                f"this workdir's run began with other contents of {' and '.join(changed)} of the task "
                f"{name!r}; use another workdir, or give back what was there to resume"
            )

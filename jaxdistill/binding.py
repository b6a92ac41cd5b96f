"""What a run has read, by content: text, tokenizer and given models belong to its networks from the
first stage to the export.

`inputs.json` in the workdir holds the digests, `tokenizer/` the tokenizer itself, both written
before the first step. From then on the run keeps that text and that tokenizer whatever becomes of
their sources; a given model that is another one now is refused. A path says nothing: the same
content elsewhere is the same. Called by inputs and run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxdistill.data.files import digest_of, write_whole
from jaxdistill.data.tokenizers import load_tokenizer, save_tokenizer, tokenizer_digest
from jaxdistill.errors import BadInput
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
class Inputs:
    """Digests of all that a run reads. `models`: by name, of those given by folder.
    `documentation`: of the default corpus, its own digest and the versions of the packages that it
    is from; empty for other text."""

    tokenizer: str
    text: Mapping[str, Text]
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    documentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of what every stage reads: pages of stages hold it. Given models have digests of their
        own there."""
        return digest_of([self.tokenizer, {part: text.digest for part, text in self.text.items()}])


def read(workdir: epath.Path) -> Inputs | None:
    """What the run in `workdir` has read; None if nothing was trained there yet, or by a version
    that did not record it."""
    file = workdir / FILE
    if not (begun(workdir) and file.exists()):
        return None
    page = read_page(file, "put back a copy of it")
    try:
        text = {part: Text(**page["text"][part]) for part in ("train", "heldout")}
        held = Inputs(page["tokenizer"], text, dict(page["models"]), dict(page["documentation"]))
        words = [
            held.tokenizer,
            *held.models.values(),
            *(word for part in text.values() for word in dataclasses.astuple(part)),
        ]
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a digest or a source is no text")
        return held
    except (KeyError, TypeError, ValueError) as error:
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

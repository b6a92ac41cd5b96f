"""What happens before a run's first step: everything that can be refused is refused, in the order
in which a user can mend it.

First what needs no work (the recipe, given models, the workdir, whether there is text), then the
text is prepared, every step traced, and the workdir bound to what the run reads. Called by run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import binding, inputs, interop, report
from jaxdistill.binding import Inputs
from jaxdistill.checks import check_memory, check_settings
from jaxdistill.data.feeds import Feed
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.data.tokenizers import describe
from jaxdistill.errors import BadInput, nearest
from jaxdistill.forward.side_by_side import no_layers, walks
from jaxdistill.given import Fitted, Loaded, fit, load_networks
from jaxdistill.inputs import Corpus, Read
from jaxdistill.methods.base import Stage
from jaxdistill.models.sizes import tap_shapes
from jaxdistill.recipe import Recipe
from jaxdistill.resolve import how_it_begins, main_network, resolve, trace, with_task_heads
from jaxdistill.training import hosts, sharding
from jaxdistill.workdir import DONE, Workdir, begun, check, claim, lock, read_page


@dataclasses.dataclass(frozen=True)
class Start:
    """All that a run knows before its first step. `fitted`: what networks that begin from a folder
    take over; `wanted`: the stages to run."""

    config: ConfigDict
    folder: Workdir
    read: Read
    recipe: Recipe
    mesh: Mesh
    fitted: dict[str, Fitted]
    bound: Inputs
    wanted: Sequence[Stage]


def begin(
    held: contextlib.ExitStack, config: ConfigDict, path: epath.Path, stages: Sequence[str] | None
) -> Start:
    """Opens the workdir, whose lock `held` keeps, and prepares all that the run reads. Raises
    `BadInput`."""
    mesh = sharding.make_mesh(**config.mesh)
    check_settings(config, mesh)
    loaded, feeds, _ = hosts.together(lambda: check_before(config, path, mesh, stages))
    folder = hosts.in_turn(lambda: open_workdir(path, config))
    hosts.check_same("the workdir they see", folder.contents())
    hosts.check_same("their recipes", [config.to_dict(), list(stages or ())])
    hosts.in_turn(lambda: hold(held, folder, config) if hosts.first() else None)
    read = hosts.in_turn(lambda: inputs.read(config, folder.path, feeds))
    hosts.check_same(
        "what they read (source, settings or versions)",
        {name: dict(feed.digests) for name, feed in read.feeds.items()},
    )
    recipe, wanted = hosts.together(
        lambda: resolve_and_trace(config, folder, read, mesh, stages, loaded)
    )
    given = digests(loaded)
    hosts.check_same("given models", given)
    bound = hosts.together(lambda: bind(config, folder, read, given))
    return Start(config, folder, read, recipe, mesh, fit(recipe, loaded), bound, wanted)


def check_before(
    config: ConfigDict, path: epath.Path, mesh: Mesh, stages: Sequence[str] | None
) -> tuple[dict[str, Loaded], dict[str, Feed], Recipe]:
    """The given models, and the feeds and the recipe as known so far. Raises `BadInput` for all that is wrong with a
    recipe and what it names, as far as that can be told before its text is read: sizes that only the
    text can tell are guessed."""
    for name in config.networks:
        how_it_begins(config, name)
    feeds = inputs.outline(config)
    loaded = load_networks(with_task_heads(config, feeds))
    models = {name: found.model for name, found in loaded.items()}
    check(path, config.to_dict())  # before what its run is bound to is compared with the recipe's
    tokenizer = inputs.known_tokenizer(config, path)
    words = config.data.vocab_size if tokenizer is None else describe(tokenizer).size
    inputs.check_vocabulary(config, models, words)
    recipe = resolve(config, vocab_size=words, feeds=feeds, mesh=mesh, loaded=models)
    fit(recipe, loaded)
    check_memory(recipe, config, mesh)
    choose_stages(recipe, stages)
    if (held := binding.read(path)) is not None:
        check_given(config, held, digests(loaded), feeds)
    inputs.check_sources(config, path)
    if config.export and not (path / DONE).exists():  # a finished run leaves its export alone
        interop.check_replaceable(path / main_network(config))
    return loaded, feeds, recipe


def digests(loaded: Mapping[str, Loaded]) -> dict[str, str]:
    """By network, of a given model."""
    return {name: binding.model_digest(found.model, found.params) for name, found in loaded.items()}


def check_given(
    config: ConfigDict, held: Inputs, given: dict[str, str], feeds: Mapping[str, Feed]
) -> None:
    """Raises `BadInput` for a given model, by digest, or a task that is not the one that a run began
    with."""
    places = {name: config.networks[name].init for name in given if name in config.networks}
    binding.check_tasks(held, inputs.tasks_to_bind(feeds))
    binding.check_models(held, given, places)


def bind(config: ConfigDict, folder: Workdir, read: Read, given: dict[str, str]) -> Inputs:
    """Binds the workdir to what its run reads, or compares that with what it is bound to. Raises
    `BadInput` if it differs."""
    held, now = binding.read(folder.path), read.bound(config, given)
    if held is None:
        older = report.read_results(folder.path).get("corpus") if begun(folder.path) else None
        if older and any(
            older.get(part, {}).get("digest") != text.digest for part, text in now.text.items()
        ):
            raise BadInput(
                f"workdir {str(folder.path)!r} is of a version that did not record what a run reads, and its text has "
                "changed since; use another workdir, or install what was installed then"
            )
        pages = [read_page(file) for file in folder.path.glob("stages/*/stage.json")]
        of_text = now.digest(TEXT)
        if any(page.get("inputs", of_text) != of_text for page in pages):
            raise BadInput(
                f"workdir {str(folder.path)!r} lacks {binding.FILE}, and its stages were run on other text or with "
                "another tokenizer than are there now; put back a copy of it, or use another workdir"
            )
        if hosts.first():
            binding.write(folder.path, now, read.tokenizer)
        return now
    check_given(config, held, given, read.feeds)
    # The same text at another place; text or a task that no stage read before.
    later = dataclasses.replace(
        held,
        text=now.text or held.text,
        tasks={**held.tasks, **now.tasks},
        documentation=held.documentation or now.documentation,
    )
    if hosts.first() and later != held:
        binding.record(folder.path, later)
    return later


def resolve_and_trace(
    config: ConfigDict,
    folder: Workdir,
    read: Read,
    mesh: Mesh,
    stages: Sequence[str] | None,
    loaded: Mapping[str, Loaded],
) -> tuple[Recipe, list[Stage]]:
    """(recipe, stages to run), everything checked and every step traced."""
    models = {name: found.model for name, found in loaded.items()}
    inputs.check_vocabulary(config, models, read.vocab_size)
    recipe = resolve(config, vocab_size=read.vocab_size, feeds=read.feeds, mesh=mesh, loaded=models)
    wanted = choose_stages(recipe, stages)
    check_predecessors(recipe, wanted, folder)
    if config.data.packing and read.corpus is not None:
        check_pad(recipe, read.corpus)
    check_memory(recipe, config, mesh)
    for stage in wanted:
        trace(recipe, stage, mesh)
        if (notice := kept_taps(recipe, stage)) and hosts.first():
            print(f"jaxdistill: {notice}", file=sys.stderr)
    return recipe, wanted


def kept_taps(recipe: Recipe, stage: Stage) -> str:
    """A line about a stage whose losses cannot be fused although they should be; "" if there is
    nothing to say."""
    walked = walks(stage.terms) or no_layers(stage.terms)
    if not stage.fused or stage.progressive or walked:
        return ""
    cast = recipe.cast(stage)
    shapes = [
        (tap_shapes(model.config, 1, recipe.feed(stage).length), stage.taps(name))
        for name, model in ((None, cast.model), *cast.others)
    ]
    numbers = sum(
        math.prod(taps[tap].shape) * taps[tap].dtype.itemsize
        for taps, wanted in shapes
        for tap in wanted
    )
    return (
        f"stage {stage.name!r} keeps every layer's taps, {numbers / 2**20:,.2g} MiB a row: a layer map that goes back or is "
        "traced, two maps, embeddings that follow a layer, or tf1_statistics cannot be walked in lock-step"
    )


def hold(held: contextlib.ExitStack, folder: Workdir, config: ConfigDict) -> None:
    """Locks the workdir, and makes sure that it is still this recipe's: another call may have come
    between."""
    held.enter_context(lock(folder.path))
    claim(folder.path, config.to_dict(), locked=True)


def open_workdir(path: epath.PathLike, config: ConfigDict) -> Workdir:
    """The run's folder, made by the first process. Raises `BadInput` if another recipe's, or not
    visible to a process."""
    folder = Workdir(path, config if hosts.first() else None)
    if not (folder.path / "config.json").exists():
        raise BadInput(
            f"workdir {str(folder.path)!r} is not the one that process 0 made; give a folder that all "
            "processes share, e.g. on a network file system or gs://"
        )
    if jax.process_count() > 1 and hosts.first():
        folder.share()
    return folder


def choose_stages(recipe: Recipe, names: Sequence[str] | None) -> list[Stage]:
    """The stages to run, in the recipe's order."""
    valid = [stage.name for stage in recipe.stages]
    for name in names or ():
        if name not in valid:
            raise BadInput(f"stage {name!r} is not in config.order; {nearest(name, valid)}")
    return [stage for stage in recipe.stages if names is None or stage.name in names]


def check_predecessors(recipe: Recipe, wanted: Sequence[Stage], folder: Workdir) -> None:
    """Raises `BadInput` when a stage to run needs an earlier one that is neither finished nor to be
    run."""
    for i, stage in enumerate(recipe.stages):
        for earlier in recipe.stages[:i] if stage in wanted else ():
            needed = {stage.network, *recipe.sources(stage)}
            if (
                earlier.network in needed
                and earlier not in wanted
                and folder.finished(earlier.name) is None
            ):
                raise BadInput(
                    f"stage {stage.name!r} follows {earlier.name!r}, which is not finished in this workdir; run "
                    f"that first, or both: --stages={earlier.name},{stage.name}"
                )


def check_pad(recipe: Recipe, corpus: Corpus) -> None:
    """Raises `BadInput` if a network's [PAD], which ends the trigrams of packed texts, is not the
    tokenizer's."""
    for model in recipe.networks.values():
        pad = corpus.parts.train.special.pad
        if model.config.trigram_input and model.config.pad_token_id != pad:
            raise BadInput(
                f"config.data.packing=True needs one [PAD], but the tokenizer's is {pad} and a "
                f"network's pad_token_id {model.config.pad_token_id}; make them equal, or set packing=False"
            )

"""From a recipe to plain data: models and stages, with every mistake found here, before anything
compiles.

Called by run, and by commands that only want to know what a recipe means.
"""

from __future__ import annotations

import dataclasses
import math
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill.checks import (
    check_data,
    check_ensembles,
    check_fit,
    check_frozen,
    check_measured,
    check_order,
    check_packed,
    check_profile,
)
from jaxdistill.data.feeds import MANY, Feed
from jaxdistill.data.tasks import TEST
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.evaluation.derived import (
    BY_NETWORK,
    DERIVED,
    OF_TEXT,
    Derived,
    default_settings,
    outlined,
)
from jaxdistill.evaluation.scores import SCORES
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.methods.kinds import build
from jaxdistill.models import Model, ModelConfig
from jaxdistill.models.heads import HEADS
from jaxdistill.objectives.terms import BATCH
from jaxdistill.recipe import NO_FEED, Begin, Recipe
from jaxdistill.settings import LARGEST_COUNT, check
from jaxdistill.students.extract import smaller
from jaxdistill.training import programs, sharding
from jaxdistill.training.programs import abstract_batch

STARTS = ("copy", "extract", "factorise", "layers", "like", "random")


def model_config(
    section: ConfigDict, vocab_size: int, rows: int = 0, width: int = 0
) -> ModelConfig:
    """The `model` section as a `ModelConfig`; a vocabulary of 0 becomes the tokenizer's or, if a
    given model's table is longer, as long as that (`rows`); a projected size of 0 becomes `width`."""
    values = section.model.to_dict()
    if values["projected_size"] == 0:
        values["projected_size"] = width
    if section.heads:
        values["heads"] = tuple(section.heads)
    values["vocab_size"] = values["vocab_size"] or max(vocab_size, rows)
    if values["vocab_size"] < vocab_size:
        raise BadInput(
            f"the tokenizer has {vocab_size} words but the model's vocab_size is {values['vocab_size']}; "
            "set model.vocab_size=0 to follow the tokenizer"
        )
    return ModelConfig.from_dict(values)


def width_of(config: ConfigDict, name: str, loaded: Mapping[str, Model]) -> int:
    """The width of the hidden states of the network `name`, which may not be built yet."""
    check_network(config, name, "projected_size=0 is the width of the network `of`, which")
    section = config.networks[name]
    if name in loaded:
        return loaded[name].config.hidden_size
    if section.like:
        return section.sizes.hidden_size or width_of(config, section.like, loaded)
    return section.model.hidden_size


def resolve(
    config: ConfigDict,
    *,
    vocab_size: int,
    feeds: Mapping[str, Feed],
    mesh: Mesh,
    loaded: Mapping[str, Model] = types.MappingProxyType({}),
) -> Recipe:
    """Builds networks and stages and checks that they fit each other, the data and the mesh. Raises
    `BadInput`.

    `vocab_size`: of the tokenizer; `feeds`: those that stages name, perhaps as known before they are
    read; `loaded`: networks given by a folder."""
    config = with_task_heads(config, feeds)
    order, derived = active_order(config), derived_feeds(config, feeds)
    for task in feeds.values():
        if task.head:  # its score is taken at the very end
            SCORES.named(task.score, f"config.feeds.{task.name}: the score ")
    feeds = {
        **feeds,
        **{name: dataclasses.replace(feeds[d.of], name=name) for name, d in derived.items()},
    }
    begins = {name: how_it_begins(config, name) for name in config.networks}
    # Tables are padded to a round number in many folders; copies and soft targets need as many rows
    # in both networks.
    rows = max((model.config.vocab_size for model in loaded.values()), default=0)

    def build_network(name: str) -> Model:
        section = config.networks[name]
        if section.like:
            model = with_heads(build_network(section.like), section)
            return with_sizes(model, section, f"config.networks.{name}")
        if name in loaded:
            return with_heads(_in_its_dtypes(loaded[name], section), section)
        width = width_of(config, section.of, loaded) if section.model.projected_size == 0 else 0
        return Model(model_config(section, vocab_size, rows, width))

    networks = {name: build_network(name) for name in loaded}
    stages: list[Stage] = []
    for name in order:
        section = config.stages[name]
        check_network(config, section.network, f"config.stages.{name}.network")
        check_feed(feeds, section.feed, f"config.stages.{name}.feed")
        if section.best_on:
            check_feed(feeds, section.best_on, f"config.stages.{name}.best_on")
        model = networks.setdefault(section.network, build_network(section.network))
        reads = feeds[section.feed]
        stage = build_stage(name, section, reads.rows, model.config, reads.losses)
        stage = with_direction(stage, feeds)
        copied = begins[section.network].needs
        for other in (*stage.teachers, *((copied,) if copied else ())):
            check_network(config, other, f"config.stages.{name}.teacher")
            networks.setdefault(other, build_network(other))
        for feed in set(stage.feeds) & derived.keys():
            if by := derived[feed].by:
                networks.setdefault(by, build_network(by))
        stages.append(stage)
    labels = labels_of(stages, feeds, derived, begins)
    for name, classes in labels.items():
        networks[name] = with_labels(networks[name], classes)
    feeds |= {
        name: outlined(name, d, feeds[d.of], networks.get(d.by))
        for name, d in derived.items()
        if not d.by or d.by in networks
    }
    # Only now it is known how many rows a derived feed has, and so how long its epochs are.
    lengths = {
        name: build_stage(
            name, section, feeds[section.feed].rows, networks[section.network].config, feeds[section.feed].losses
        )
        for name, section in ((name, config.stages[name]) for name in order)
        if section.feed in derived
    }  # fmt: skip
    stages = [
        dataclasses.replace(s, steps=lengths[s.name].steps, terms=lengths[s.name].terms, schedule=lengths[s.name].schedule)
        if s.name in lengths
        else s
        for s in stages
    ]  # fmt: skip
    stages = [
        with_stored(
            stage,
            feeds[stage.feed],
            _layers_stored(stage, derived, feeds, networks),
            networks[stage.network].config.num_layers,
        )
        for stage in stages
    ]
    first = first_examples(stages)
    recipe = Recipe(networks, begins, tuple(stages), feeds, labels, derived, first, {})
    check_order(recipe)
    for stage in recipe.stages:
        check_data(recipe, stage)
        check_fit(recipe.cast(stage))
        check_packed(recipe, stage)
        packed = recipe.feed(stage).packed
        sharding.check_batch(mesh, stage.name, stage.batch_size, stage.accumulation, packed)
    check_measured(recipe)
    check_ensembles(config, recipe)
    for name, model in networks.items():
        sharding.check_model(mesh, model, name)
    check_frozen(recipe)
    check_profile(tuple(config.profile), max(stage.steps for stage in stages))
    fused = [choose_fused(config, mesh, recipe.cast(stage)) for stage in stages]
    stages = [dataclasses.replace(stage, fused=on) for stage, on in zip(stages, fused)]
    maps = {}
    if config.objectives.traced_maps:
        found = [trace_maps(stage, networks[stage.network].config.num_layers) for stage in stages]
        stages = [stage for stage, _ in found]
        maps = {stage.name: held for stage, held in found}
    return dataclasses.replace(recipe, stages=tuple(stages), maps=maps)


def with_task_heads(config: ConfigDict, feeds: Mapping[str, Feed]) -> ConfigDict:
    """The recipe with the head of a task wherever a network's `heads` name the task."""
    tasks = {name: feed.head for name, feed in feeds.items() if feed.head and name not in HEADS}
    found = {
        name: tuple(tasks.get(head, head) for head in section.heads)
        for name, section in config.networks.items()
        if tasks.keys() & set(section.heads)
    }
    if not found:
        return config
    config = ConfigDict(config.copy_and_resolve_references())
    for name, heads in found.items():
        config.networks[name].heads = heads
    return config


def with_heads(model: Model, section: ConfigDict) -> Model:
    """`model` with the heads that its section names, if it names any."""
    if not section.heads:
        return model
    return dataclasses.replace(model, config=model.config.replace(heads=tuple(section.heads)))


def with_sizes(model: Model, section: ConfigDict, where: str) -> Model:
    """The same network as deep as its section names layers, and in the sizes that it names. Raises
    `BadInput` where they would do nothing, or name another depth than its layers."""
    if section.layers:
        shallow = model.config.replace(num_layers=len(section.layers))
        model = dataclasses.replace(model, config=shallow)
    sizes = {field: size for field, size in section.sizes.items() if size is not None}
    if not sizes:
        return model
    shown = listed(f"{field}={size}" for field, size in sizes.items())
    if section.start in ("layers", "like"):
        raise BadInput(
            f"{where}.sizes: {shown} would do nothing, a network of start={section.start!r} is as large as "
            f"{section.like!r}; set start='extract', 'copy' or 'random', or leave them out"
        )
    if section.layers and sizes.get("num_layers", len(section.layers)) != len(section.layers):
        raise BadInput(
            f"{where}: layers={tuple(section.layers)} and num_layers={sizes['num_layers']} name unlike depths; "
            "leave one of the two out"
        )
    config = model.config
    config = smaller(config, **sizes) if section.start == "extract" else config.replace(**sizes)
    return dataclasses.replace(model, config=config)


def with_labels(model: Model, labels: Sequence[str]) -> Model:
    """`model` with a classifier for `labels`; without any it gives a number."""
    config = model.config.replace(num_labels=max(1, len(labels)), regression=not labels)
    return dataclasses.replace(model, config=config)


def derived_feeds(config: ConfigDict, feeds: Mapping[str, Feed]) -> dict[str, Derived]:
    """The derived feeds of a recipe whose base is among `feeds`. Raises `BadInput` for one of what is
    no task, or by no network, and for a feed whose name results have taken."""
    found = {}
    for name in config.feeds:
        if name in NO_FEED:
            raise BadInput(
                f"config.feeds.{name}: results call something else {name!r}; give the feed another name"
            )
    for name, section in config.feeds.items():
        if "derived" not in section:
            continue
        where = f"config.feeds.{name}"
        DERIVED.named(section.derived, f"{where}.derived=")
        tasks = [task for task, other in config.feeds.items() if "derived" not in other]
        if section.derived in OF_TEXT:
            if section.of != TEXT:
                raise BadInput(f"{where}.of={section.of!r}: words are of plain text; give {TEXT!r}")
        elif section.of not in tasks:
            raise BadInput(
                f"{where}.of={section.of!r} is no task of this recipe; {nearest(section.of, tasks)}"
            )
        settings = default_settings(section.derived)
        if section.by or section.derived in BY_NETWORK:
            check_network(config, section.by, f"{where}.by")
        check(DERIVED[section.derived], section, where)
        if section.of in feeds:
            values = tuple((name, section[name]) for name in settings)
            found[name] = Derived(section.derived, section.of, section.by, values)
    return found


def labels_of(
    stages: Sequence[Stage],
    feeds: Mapping[str, Feed],
    derived: Mapping[str, Derived],
    begins: Mapping[str, Begin],
) -> dict[str, tuple[str, ...]]:
    """The classes that each network's classifier is for, () if it gives a number: those of the tasks
    that it learns, or that others learn from it. Raises `BadInput` if they are not the same."""
    found: dict[str, tuple[str, ...]] = {}
    named: dict[str, str] = {}
    for stage in stages:
        read = [
            (name, feeds[stage.feed])
            for name in (None, *stage.teachers)
            if feeds[stage.feed].head in stage.heads(name)
        ]
        read += [(None, feeds[stage.until.feed])] if stage.until is not None else []
        begin = begins[stage.network]
        read += [(begin.of, feeds[begin.importance])] if begin.importance in feeds else []
        made = {name: derived[name] for name in stage.feeds if name in derived}
        read += [(d.by, feeds[name]) for name, d in made.items() if d.kind == "outputs"]
        for name, feed in ((name or stage.network, feed) for name, feed in read if by_label(feed)):
            if found.setdefault(name, feed.labels) != feed.labels:
                raise BadInput(
                    f"network {name!r} has one classifier, but the tasks {named[name]!r} "
                    f"({listed(found[name])}) and {feed.name!r} ({listed(feed.labels)}) have unlike "
                    "labels; give each task a network of its own"
                )
            named.setdefault(name, feed.name)
    return found


def by_label(feed: Feed) -> bool:
    """Whether a feed is a task whose head has a number for each of its labels."""
    return bool(feed.head) and HEADS[feed.head].by_label


def _layers_stored(
    stage: Stage,
    derived: Mapping[str, Derived],
    feeds: Mapping[str, Feed],
    networks: Mapping[str, Model],
) -> tuple[int, ...]:
    """The layers of a teacher whose taps the feed of a stage holds."""
    if stage.feed not in derived or not any(term.stored for term in stage.terms):
        return ()
    found = derived[stage.feed]
    return found.derivation(feeds[found.of], networks.get(found.by)).layers


def with_stored(stage: Stage, feed: Feed, layers: tuple[int, ...], num_layers: int) -> Stage:
    """The stage of a network of `num_layers` with its terms on stored taps as the feed has them: the
    teacher's width, and places among the stored `layers` in place of the teacher's layers. Raises
    `BadInput` for a layer that is not stored."""
    terms = []
    for term in stage.terms:
        if term.stored in feed.row and not term.head:
            shape = feed.row[term.stored].shape
            layer_map = term.layer_map
            if term.per_layer or term.follows_layer is not None:
                wanted = layer_map if layer_map is not None else tuple(range(num_layers))
                for layer in wanted:
                    if layer >= 0 and layer not in layers:
                        raise BadInput(
                            f"config.stages.{stage.name}: the loss {term.loss!r} follows layer {layer} of the "
                            f"teacher, but {feed.name!r} holds the layers {listed(layers)}; name it in "
                            f"config.feeds.{feed.name}.layers"
                        )
                layer_map = tuple(layers.index(at) if at >= 0 else -1 for at in wanted)
            term = dataclasses.replace(term, layer_map=layer_map, width=shape[-1])
        terms.append(term)
    return dataclasses.replace(stage, terms=tuple(terms))


def with_direction(stage: Stage, feeds: Mapping[str, Feed]) -> Stage:
    """The stage with `until` knowing whether more of its number is better. Raises `BadInput` for a
    number that is not measured."""
    until = stage.until
    if until is None or (until.feed == stage.feed and until.metric in stage.measured):
        return stage
    score = SCORES.get(feeds[until.feed].score)
    own = stage.measured if until.feed == stage.feed else ()
    numbers = (*own, *((*score.higher, *score.lower) if score is not None else ()))
    if until.metric not in numbers:
        what = nearest(until.metric, numbers) if numbers else "a task's score is measured alone"
        raise BadInput(
            f"config.stages.{stage.name}.best={until.metric!r} is not measured on {until.feed!r}; {what}"
        )
    assert score is not None
    until = dataclasses.replace(until, higher=until.metric in score.higher)
    return dataclasses.replace(stage, until=until)


def check_feed(feeds: Mapping[str, Feed], name: str, where: str) -> None:
    """Raises `BadInput` with the nearest name unless the recipe has a feed `name`, one that is not
    reported alone."""
    if name.endswith(TEST):
        raise BadInput(
            f"{where}={name!r}: test rows are reported, and nothing is learned or chosen from them; "
            f"give {name.removesuffix(TEST)!r}, or another task"
        )
    if name not in feeds:
        raise BadInput(f"{where}={name!r} is no feed of this recipe; {nearest(name, feeds)}")


def trace_maps(stage: Stage, num_layers: int) -> tuple[Stage, dict[str, tuple[int, ...]]]:
    """The stage with its layer maps as data, and the maps by the names that its terms now give."""
    names: dict[tuple[int, ...], str] = {}
    terms = []
    for term in stage.terms:
        if term.per_layer and term.row.teacher != "hidden_moments":
            layer_map = term.layer_map or tuple(range(num_layers))
            name = names.setdefault(layer_map, f"map{len(names)}")
            term = dataclasses.replace(term, layer_map=None, traced_map=name)
        terms.append(term)
    traced = dataclasses.replace(stage, terms=tuple(terms))
    return traced, {name: layer_map for layer_map, name in names.items()}


def first_examples(stages: Sequence[Stage]) -> dict[str, int]:
    """Where each stage's data begins: behind that of the stages of its network before it that read
    the same rows."""
    found: dict[str, int] = {}
    seen: dict[tuple[str, str, tuple[int, int] | None], int] = {}
    for stage in stages:
        reads = (stage.network, stage.feed, stage.rows)
        found[stage.name] = seen.get(reads, 0)
        seen[reads] = found[stage.name] + stage.steps * stage.batch_size
    return found


def check_network(config: ConfigDict, name: str, where: str) -> None:
    """Raises `BadInput` with the nearest name unless the recipe has a network `name`."""
    if name not in config.networks:
        raise BadInput(
            f"{where}={name!r} is no network of this recipe; {nearest(name, config.networks.keys())}"
        )


def how_it_begins(config: ConfigDict, name: str) -> Begin:
    """How the network `name` begins, by its section. Raises `BadInput` for what cannot be."""
    section, where = config.networks[name], f"config.networks.{name}"
    if name == BATCH:
        raise BadInput(
            f"{where}: a teacher called {BATCH!r} is what is stored in the batch; give the network another name"
        )
    if section.start not in STARTS:
        raise BadInput(
            f"{where}.start={section.start!r} is unknown; {nearest(section.start, STARTS)}"
        )
    if section.like:
        check_network(config, section.like, f"{where}.like")
        if config.networks[section.like].like:
            raise BadInput(
                f"{where}.like={section.like!r} is itself like another network; name that one"
            )
        if section.init:
            raise BadInput(
                f"{where}.init={section.init!r} has an architecture of its own, but like="
                f"{section.like!r} names another; leave one of the two out"
            )
    layers = tuple(section.layers)
    if not section.like and (layers or section.start == "layers"):
        what = f"layers={layers}" if layers else "start='layers'"
        raise BadInput(
            f"{where}.{what}: a network of some layers needs like=NAME of the network whose they are"
        )
    if section.start == "layers" and not layers:
        raise BadInput(
            f"{where}.start='layers': say which of {section.like!r} it begins as, counted from 0, as "
            f"{where}.layers=(0, 2, 4)"
        )
    if section.init:
        return Begin("folder", name)
    if section.start == "like":
        if not section.like:
            raise BadInput(
                f"{where}.start='like' needs like=NAME, of the network that it begins as"
            )
        return how_it_begins(config, section.like)
    if section.start == "extract":
        check_network(config, section.of, f"{where}.of")
        if not section.like:
            raise BadInput(
                f"{where}.start='extract' needs like=NAME of the network whose part it is, with smaller sizes"
            )
        return Begin("extract", section.of, layers, section.importance, section.importance_rows)
    if section.importance:
        raise BadInput(
            f"{where}.importance={section.importance!r} would do nothing with start={section.start!r}; set "
            "start='extract'"
        )
    if section.start == "layers":
        check_network(config, section.of, f"{where}.of")
        return Begin("layers", section.of, layers)
    if (
        section.like
        and not layers
        and section.start != "random"
        and config.networks[section.like].init
    ):
        return Begin("folder", section.like)
    if section.start == "random":
        return Begin("random")
    check_network(config, section.of, f"{where}.of")
    if section.of == name:
        raise BadInput(
            f"{where}.start={section.start!r}: a network cannot begin with a part of itself; set start='random', "
            f"or {where}.init=FOLDER"
        )
    return Begin(section.start, section.of)


def _in_its_dtypes(model: Model, section: ConfigDict) -> Model:
    """A model from a folder, computing as the recipe says: a folder knows the architecture, not how
    to run it."""
    given = section.model
    config = model.config.replace(dtype=given.dtype, residual_dtype=given.residual_dtype)
    return dataclasses.replace(model, config=config)


def choose_fused(config: ConfigDict, mesh: Mesh, cast: Cast) -> bool:
    """Whether losses take their gradient in the forward pass: as the recipe says, else wherever it
    is not a CPU that trains, and on a CPU where it saves taps of the teacher's layers that no layer
    of the student follows."""
    if config.objectives.fused is not None:
        return bool(config.objectives.fused)
    if any(term.row.everywhere for term in cast.stage.terms):
        return True  # plain, the logits of every token would exist at once
    followed = {at for term in cast.stage.terms for at in term.layer_map or ()}
    deepest = max((other.config.num_layers for _, other in cast.others), default=0)
    saves = followed and len(followed - {-1}) < deepest and not cast.stage.progressive
    return bool(mesh.devices.flat[0].platform != "cpu" or saves)


def active_order(config: ConfigDict) -> tuple[str, ...]:
    """The stages to run, in order; without the baselines if `config.baselines` is False."""
    for name in config.order:
        if name not in config.stages:
            raise BadInput(
                f"config.order names the stage {name!r}, which is not in config.stages; "
                f"{nearest(name, config.stages.keys())}"
            )
    if len(set(config.order)) != len(config.order):
        raise BadInput(f"config.order={tuple(config.order)} names a stage twice; each runs once")
    order = tuple(
        name for name in config.order if config.baselines or not config.stages[name].baseline
    )
    if not order:
        raise BadInput(
            f"config.order is empty: nothing to do; stages there are: {', '.join(config.stages.keys()) or '(none)'}"
        )
    return order


def main_network(config: ConfigDict) -> str:
    """The network that a run exports, and that commands take of it unless they are told: "student" or,
    where none is called so, that of the last stage."""
    return (
        "student"
        if "student" in config.networks
        else config.stages[active_order(config)[-1]].network
    )


def build_stage(
    name: str,
    section: ConfigDict,
    num_records: int,
    network: ModelConfig,
    losses: tuple[str, ...] = (),
) -> Stage:
    """The section as a `Stage`, its length in steps, for the network that moves; `losses`: those of the
    task that it reads."""
    if len(section.rows) == 2 and all(isinstance(row, int) for row in section.rows):
        num_records = max(0, min(num_records, section.rows[1]) - section.rows[0])
    lengths = {field: section[field] for field in ("steps", "examples", "epochs") if section[field]}
    if len(lengths) != 1 or not 0 < min(lengths.values()) < math.inf:
        raise BadInput(
            f"config.stages.{name}: give exactly one of steps, examples or epochs, finite and above 0; given: "
            f"{listed(f'{field}={value}' for field, value in lengths.items())}"
        )
    settings: Any = section.copy_and_resolve_references()
    if not section.steps:
        count = section.examples or section.epochs * num_records
        steps = max(1.0, count / max(1, section.batch_size))  # perhaps infinite
        guessed = section.epochs and num_records == MANY
        settings.steps = round(min(steps, LARGEST_COUNT))
        if steps > LARGEST_COUNT and not guessed:
            shown = f"{steps:,.0f}" if steps < 1e15 else f"{steps:.3g}"
            raise BadInput(
                f"config.stages.{name}: {listed(f'{field}={value}' for field, value in lengths.items())} are "
                f"{shown} steps of {section.batch_size} rows; expected at most {LARGEST_COUNT:,}"
            )
    return build(name, settings, network, losses)


def trace(recipe: Recipe, stage: Stage, mesh: Mesh) -> Any:
    """The abstract result of one step of `stage`: what start-up traces so that no mistake waits for
    its stage."""
    batch = abstract_batch(recipe.feed(stage).row, stage.batch_size)
    return programs.trace(recipe.cast(stage), mesh, batch)


def stage_seed(seed: int, name: str) -> int:
    """A dropout seed for each stage, the same in every run of one config."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31

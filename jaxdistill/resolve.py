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

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill.data import packing, prepare, sources, tokenizers
from jaxdistill.defaults import given_folder
from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.methods.kinds import build
from jaxdistill.methods.settings import LARGEST_COUNT
from jaxdistill.models import Model, ModelConfig
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.needs import Pair
from jaxdistill.objectives.terms import Term
from jaxdistill.students.copying import copied_names
from jaxdistill.training import memory, programs, sharding, state

LARGEST_SEED = 2**31 - 1  # jax takes 32 bits, and students start from the next one
MANY = 10**9  # stands for the number of records before the text is read
TEACHER = "teacher"
STARTS = ("copy", "random")


@dataclasses.dataclass(frozen=True)
class Begin:
    """How a network begins: "random", a "copy" of what it can take over of the network `of`, or from
    the "folder" given for `of`, which may be itself."""

    how: str
    of: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run will do. `networks`: those of its stages, those that they read, and all that are
    given by a folder. `first_example`: where each stage's data begins. `maps`: by stage, the layer
    maps that are data."""

    networks: dict[str, Model]
    begins: dict[str, Begin]
    stages: tuple[Stage, ...]
    first_example: dict[str, int]
    maps: dict[str, dict[str, tuple[int, ...]]]

    def cast(self, stage: Stage) -> Cast:
        """The stage and its networks."""
        others = tuple((name, self.networks[name]) for name in stage.teachers)
        return Cast(stage, self.networks[stage.network], others)

    def sources(self, stage: Stage) -> set[str]:
        """The networks that must be there before `stage`, beside its own: those it reads, and what
        its own begins with a copy of."""
        begin = self.begins[stage.network]
        return {*stage.teachers, *((begin.of,) if begin.how == "copy" else ())}


def model_config(section: ConfigDict, vocab_size: int, rows: int = 0) -> ModelConfig:
    """The `model` section as a `ModelConfig`; a vocabulary of 0 becomes the tokenizer's or, if a
    given model's table is longer, as long as that (`rows`)."""
    values = section.model.to_dict()
    values["vocab_size"] = values["vocab_size"] or max(vocab_size, rows)
    if values["vocab_size"] < vocab_size:
        raise BadInput(
            f"the tokenizer has {vocab_size} words but the model's vocab_size is {values['vocab_size']}; "
            "set model.vocab_size=0 to follow the tokenizer"
        )
    return ModelConfig.from_dict(values)


def resolve(
    config: ConfigDict,
    *,
    vocab_size: int,
    num_records: int,
    mesh: Mesh,
    loaded: Mapping[str, Model] = types.MappingProxyType({}),
) -> Recipe:
    """Builds networks and stages and checks that they fit each other, the data and the mesh. Raises
    `BadInput`.

    `vocab_size`: of the tokenizer; `num_records`: rows of the prepared text, for lengths given in
    epochs (packed rows with packing), `MANY` before it is read; `loaded`: networks given by a
    folder."""
    order = active_order(config)
    begins = {name: how_it_begins(config, name) for name in config.networks}
    # Tables are padded to a round number in many folders; copies and soft targets need as many rows
    # in both networks.
    rows = max((model.config.vocab_size for model in loaded.values()), default=0)

    def build_network(name: str) -> Model:
        section = config.networks[name]
        if section.like:
            return build_network(section.like)
        if name in loaded:
            return _in_its_dtypes(loaded[name], section)
        return Model(model_config(section, vocab_size, rows))

    networks = {name: build_network(name) for name in loaded}
    stages: list[Stage] = []
    for name in order:
        section = config.stages[name]
        check_network(config, section.network, f"config.stages.{name}.network")
        model = networks.setdefault(section.network, build_network(section.network))
        stage = build_stage(name, section, num_records, model.config.num_layers)
        copied = begins[section.network]
        for other in (*stage.teachers, *((copied.of,) if copied.how == "copy" else ())):
            check_network(config, other, f"config.stages.{name}.teacher")
            networks.setdefault(other, build_network(other))
        stages.append(stage)
    recipe = Recipe(networks, begins, tuple(stages), first_examples(stages), {})
    check_order(recipe)
    for stage in recipe.stages:
        check_data(config, networks[stage.network], stage)
        check_fit(recipe.cast(stage))
        sharding.check_batch(mesh, stage.name, stage.batch_size, stage.accumulation)
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
    """Where each stage's data begins: behind that of the stages of its network before it."""
    found: dict[str, int] = {}
    seen: dict[str, int] = {}
    for stage in stages:
        found[stage.name] = seen.get(stage.network, 0)
        seen[stage.network] = found[stage.name] + stage.steps * stage.batch_size
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
    if section.init:
        return Begin("folder", name)
    if section.like and section.start != "random" and config.networks[section.like].init:
        return Begin("folder", section.like)
    if section.start == "random":
        return Begin("random")
    check_network(config, section.of, f"{where}.of")
    if section.of == name:
        raise BadInput(
            f"{where}.start='copy': a network cannot begin with a copy of itself; set start='random', "
            f"or {where}.init=FOLDER"
        )
    return Begin("copy", section.of)


def check_order(recipe: Recipe) -> None:
    """Raises `BadInput` when a stage needs a network that no earlier one trains."""
    there = {name for name, begin in recipe.begins.items() if begin.how == "folder"}
    for stage in recipe.stages:
        begin = recipe.begins[stage.network]
        if stage.network not in there and begin.how == "copy" and begin.of not in there:
            raise BadInput(
                f"stage {stage.name!r}: its network {stage.network!r} starts from the embeddings and heads "
                f"of {begin.of!r}, but no earlier stage trains one; set "
                f"config.networks.{stage.network}.start='random', put a stage of network {begin.of!r} "
                f"before it in config.order, or set config.networks.{begin.of}.init=FOLDER"
            )
        for other in stage.teachers:
            if other == stage.network:
                raise BadInput(
                    f"config.stages.{stage.name}.teacher={other!r}: a network cannot be its own teacher; "
                    "name another one"
                )
            if other not in there:
                raise BadInput(
                    f"stage {stage.name!r} needs a teacher, but no earlier stage trains one; put a stage of "
                    f"network {other!r} before it in config.order, or set "
                    f"config.networks.{other}.init=FOLDER"
                )
        there.add(stage.network)


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
    followed = {at for term in cast.stage.terms for at in term.layer_map or ()}
    deepest = max((other.config.num_layers for _, other in cast.others), default=0)
    saves = followed and len(followed - {-1}) < deepest and not cast.stage.progressive
    return bool(mesh.devices.flat[0].platform != "cpu" or saves)


def check_profile(window: tuple[int, ...], longest: int) -> None:
    """Raises `BadInput` unless the steps to trace are none, or two in order that a stage of
    `longest` steps reaches."""
    if window and not (
        len(window) == 2
        and all(isinstance(step, int) for step in window)
        and 0 <= window[0] < window[1]
    ):
        raise BadInput(
            f"config.profile={window}; expected two steps, the second one after the first, as (100, 105)"
        )
    if window and window[0] >= longest:
        raise BadInput(
            f"config.profile={window}: nothing to trace, no stage has more than {longest} steps"
        )


def check_settings(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises `BadInput` for settings outside their range, and for evaluation batches that do not
    split over devices."""
    if jax.local_device_count() % mesh.shape["tensor"] and jax.process_count() > 1:
        raise BadInput(
            f"config.mesh.tensor={mesh.shape['tensor']} does not divide the {jax.local_device_count()} devices of "
            "each process, so processes would have to share rows; use a divisor"
        )
    check_text_settings(config)
    for name in (
        "evaluation.batch_size",
        "evaluation.max_examples",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "log_every",
        "max_skipped_in_a_row",
        "data.max_predictions",
    ):
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if not 1 <= value <= LARGEST_COUNT:
            raise BadInput(f"config.{name}={value}; expected 1 to {LARGEST_COUNT}")
    for name in ("checkpoint.every_minutes", "watchdog_minutes"):
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if not 0 <= value <= 1e6:
            raise BadInput(f"config.{name}={value}; expected 0 (off) to a million")
    if not 0 < config.data.mask_rate < 1:
        raise BadInput(
            f"config.data.mask_rate={config.data.mask_rate}; expected between 0 and 1, as 0.15"
        )
    if config.data.max_predictions > config.data.sequence_length:
        raise BadInput(
            f"config.data.max_predictions={config.data.max_predictions} exceeds sequence_length="
            f"{config.data.sequence_length}; lower it"
        )
    if config.evaluation.batch_size % sharding.batch_parts(mesh):
        raise BadInput(
            f"config.evaluation.batch_size={config.evaluation.batch_size} does not divide by "
            f"{sharding.batch_parts(mesh)} devices; use a multiple"
        )


def check_memory(recipe: Recipe, config: ConfigDict, mesh: Mesh) -> None:
    """Raises `BadInput` for sizes that cannot fit into the memory that is there, whatever
    compiles."""
    for stage in recipe.stages:
        cast = recipe.cast(stage)
        needs = memory.step_bytes(cast, stage_batch(stage, config.data), mesh)
        memory.check(
            f"stage {stage.name!r}",
            needs,
            mesh,
            f"config.stages.{stage.name}.batch_size={stage.batch_size}, config.data.sequence_length="
            f"{config.data.sequence_length} or vocab_size={cast.model.config.vocab_size}, or take a "
            "smaller network",
        )
    rows, length = config.evaluation.batch_size, config.data.sequence_length
    batch = abstract_batch(rows, length, config.data.max_predictions)
    parts = sharding.batch_parts(mesh)
    trained = {recipe.networks[stage.network] for stage in recipe.stages}
    needs = {
        "a batch": memory.tree_bytes(batch) // parts,
        "hidden states and attention": max(
            memory.forward_bytes(model, rows // parts, length, mesh) for model in trained
        ),
    }
    memory.check("evaluation", needs, mesh, f"config.evaluation.batch_size={rows}")


def check_seed(seed: int, shown: str = "config.seed") -> None:
    """Raises `BadInput` unless networks and data can be drawn from `seed`."""
    if not 0 <= seed <= LARGEST_SEED:
        raise BadInput(
            f"{shown}={shortened(seed)}; expected a whole number from 0 to {LARGEST_SEED}"
        )


def check_text_settings(config: ConfigDict) -> None:
    """Raises `BadInput` for settings of the prepared text outside their range."""
    check_seed(config.seed)
    d = config.data
    if not (d.tokenizer or given_folder(config)):
        tokenizers.check_size(d.vocab_size, "config.data.vocab_size")
    prepare.check_length(d.sequence_length, "config.data.sequence_length")
    if not d.heldout:
        sources.check_split("train", d.heldout_fraction, "config.data.heldout_fraction")


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


def build_stage(name: str, section: ConfigDict, num_records: int, num_layers: int) -> Stage:
    """The section as a `Stage`, its length in steps, for a network of `num_layers`."""
    lengths = {field: section[field] for field in ("steps", "examples", "epochs") if section[field]}
    if len(lengths) != 1 or not 0 < min(lengths.values()) < math.inf:
        raise BadInput(
            f"config.stages.{name}: give exactly one of steps, examples or epochs, finite and above 0; given: "
            f"{listed(f'{field}={value}' for field, value in lengths.items())}"
        )
    settings: Any = section.copy_and_resolve_references()
    if not section.steps:
        count = section.examples or section.epochs * num_records
        steps = max(1, round(count / max(1, section.batch_size)))
        settings.steps = (
            min(steps, LARGEST_COUNT) if section.epochs and num_records == MANY else steps
        )
        if settings.steps > LARGEST_COUNT:
            raise BadInput(
                f"config.stages.{name}: {listed(f'{field}={value}' for field, value in lengths.items())} are "
                f"{settings.steps:,} steps of {section.batch_size} rows; expected at most {LARGEST_COUNT:,}"
            )
    return build(name, settings, num_layers)


def check_data(config: ConfigDict, model: Model, stage: Stage) -> None:
    """Raises `BadInput` when rows are longer than the network's position table, or packed where
    pads count as words."""
    if config.data.packing and stage.tf1_unmasked:
        raise BadInput(
            f"config.data.packing=True, but stage {stage.name!r} counts pads as words (tf1_unmasked), and packing "
            f"takes them away; set config.stages.{stage.name}.tf1_unmasked=False, or packing=False"
        )
    if config.data.sequence_length > model.config.max_positions:
        raise BadInput(
            f"config.data.sequence_length={config.data.sequence_length} exceeds max_positions="
            f"{model.config.max_positions} of {stage.network!r}; shorten one or widen the other"
        )


def check_fit(cast: Cast) -> None:
    """Raises `BadInput` when the terms of a stage cannot compare its networks, or a head is
    missing."""
    stage, ours = cast.stage, cast.model.config
    for head in stage.heads():
        if head not in ours.heads:
            raise BadInput(
                f"stage {stage.name!r} needs the head {head!r}, which {stage.network!r} does not have; "
                f"its heads: {', '.join(ours.heads) or '(none)'}"
            )
    others = {name: other.config for name, other in cast.others}
    for term in stage.terms:
        if term.row.teacher is None:
            continue
        theirs = others[term.teacher]
        if term.head and term.head not in theirs.heads:
            raise BadInput(
                f"stage {stage.name!r} needs the teacher's head {term.head!r} for the loss {term.loss!r}, "
                f"which {term.teacher!r} does not have (its heads: {', '.join(theirs.heads) or 'none'}); set "
                f"config.stages.{stage.name}.{term.row.off or f'{term.loss}=0'} to train without that loss, or "
                "take another teacher"
            )
        if term.per_layer:
            check_layer_map(stage, term, ours.num_layers, theirs.num_layers)
        pair = Pair(
            stage.name, stage.network, term.loss, ours, theirs, dict(term.options), term.projection
        )
        for need in term.row.needs:
            if wrong := need(pair):
                raise BadInput(wrong)


def check_layer_map(stage: Stage, term: Term, ours: int, theirs: int) -> None:
    """Raises `BadInput` unless each of `ours` layers of the student follows one of `theirs`."""
    if term.layer_map is None:
        if ours != theirs:
            raise BadInput(
                f"stage {stage.name!r} transfers layer by layer, but the teacher has {theirs} layers and "
                f"the student {ours}; give config.stages.{stage.name}.layer_map, one teacher layer for "
                "each student layer, or make the depths equal"
            )
        return
    lowest = 0 if stage.progressive else -1
    inside = all(lowest <= i < theirs for i in term.layer_map)
    if not inside or max(term.layer_map) < 0:
        none = "" if stage.progressive else " (-1: none, for some of the student's layers)"
        raise BadInput(
            f"config.stages.{stage.name}.layer_map={term.layer_map}: the teacher's layers are 0 to "
            f"{theirs - 1}{none}"
        )


def check_frozen(recipe: Recipe) -> None:
    """Raises `BadInput` for a frozen parameter in use that nothing has set, following each network
    through its stages."""
    set_by: dict[str, set[str]] = {}
    for stage in recipe.stages:
        model, begin = recipe.networks[stage.network], recipe.begins[stage.network]
        shapes = parameter_shapes(model.config)
        if stage.network not in set_by:
            set_by[stage.network] = set(state.flatten(shapes)) if begin.how == "folder" else set()
            if begin.how == "copy":
                copied = copied_names(model, recipe.networks[begin.of])
                if not copied:
                    raise BadInput(
                        f"config.networks.{stage.network}.start='copy', but no embedding or head of "
                        f"{begin.of!r} has its shape; set start='random', or give it the widths of "
                        f"{begin.of!r}"
                    )
                set_by[stage.network] |= copied
        state.check_moves(stage, shapes, set_by[stage.network], model.config.norm)
        set_by[stage.network] |= state.moving_names(stage, shapes)


def trace(recipe: Recipe, stage: Stage, data: ConfigDict, mesh: Mesh) -> Any:
    """The abstract result of one step of `stage`: what start-up traces so that no mistake waits for
    its stage."""
    return programs.trace(recipe.cast(stage), mesh, stage_batch(stage, data))


def stage_batch(stage: Stage, data: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the batches that `stage` trains on."""
    return abstract_batch(
        stage.batch_size,
        data.sequence_length,
        predictions_a_row(data),
        packing.segments_a_row(data.sequence_length) if data.packing else None,
    )


def predictions_a_row(data: ConfigDict) -> int:
    """How many masked words a row of a training batch has room for."""
    if not data.packing:
        return data.max_predictions
    segments = packing.segments_a_row(data.sequence_length)
    return packing.predictions_a_row(
        data.sequence_length, data.max_predictions, data.mask_rate, segments
    )


def abstract_batch(
    batch_size: int, length: int, predictions: int, segments: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a pre-training batch; `segments`: how many texts a packed row has room
    for."""
    ids, picks = ((batch_size, length), np.int32), ((batch_size, predictions), np.int32)
    texts = (batch_size,) if segments is None else (batch_size, segments)
    fields = {
        "input_ids": ids,
        "attention_mask": ids,
        "token_type_ids": ids,
        "mlm_positions": picks,
        "mlm_labels": picks,
        "mlm_weights": (picks[0], jnp.float32),
        "nsp_labels": (texts, np.int32),
        "example_weights": (texts, jnp.float32),
    }
    if segments is not None:
        fields |= {"segment_ids": ids, "position_ids": ids, "cls_positions": (texts, np.int32)}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in fields.items()}


def stage_seed(seed: int, name: str) -> int:
    """A dropout seed for each stage, the same in every run of one config."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31

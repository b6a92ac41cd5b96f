"""What must hold of a recipe before anything compiles; each check raises `BadInput` with the line to
change. Called by resolve and startup."""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill.data import prepare, sources, tokenizers
from jaxdistill.data.feeds import Feed
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.defaults import given_folder
from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.models import ModelConfig
from jaxdistill.models.heads import HEADS
from jaxdistill.models.parameters import is_stacked
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.needs import Pair
from jaxdistill.objectives.terms import Term
from jaxdistill.recipe import NO_FEED, Begin, Recipe
from jaxdistill.settings import LARGEST_COUNT
from jaxdistill.students import factorise
from jaxdistill.students.copying import copied_names
from jaxdistill.students.extract import check as check_parts
from jaxdistill.students.extract import taken_names
from jaxdistill.students.layers import shared_names
from jaxdistill.training import memory, sharding, state
from jaxdistill.training.programs import abstract_batch

LARGEST_SEED = 2**31 - 1  # jax takes 32 bits, and students start from the next one


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
        cast, feed = recipe.cast(stage), recipe.feed(stage)
        needs = memory.step_bytes(cast, abstract_batch(feed.row, stage.batch_size), mesh)
        memory.check(
            f"stage {stage.name!r}",
            needs,
            mesh,
            f"config.stages.{stage.name}.batch_size={stage.batch_size}, {length_field(recipe, feed)}="
            f"{feed.length} or vocab_size={cast.model.config.vocab_size}, or take a smaller network",
        )
    rows, parts = config.evaluation.batch_size, sharding.batch_parts(mesh)
    trained = {recipe.networks[stage.network] for stage in recipe.stages}
    for feed in {stage.feed: recipe.feed(stage) for stage in recipe.stages}.values():
        needs = {
            "a batch": memory.tree_bytes(abstract_batch(feed.row, rows)) // parts,
            "hidden states and attention": max(
                memory.forward_bytes(model, rows // parts, feed.length, mesh) for model in trained
            ),
        }
        memory.check("evaluation", needs, mesh, f"config.evaluation.batch_size={rows}")


def check_packed(recipe: Recipe, stage: Stage) -> None:
    """Raises `BadInput` where texts share a row that a head reads as one text."""
    feed = recipe.feed(stage)
    for head in stage.heads() if feed.packed > 1 else ():
        if not HEADS[head].packed:
            raise BadInput(
                f"config.feeds.{feed.name}.packed={feed.packed}: the head {head!r}, which stage {stage.name!r} trains, reads "
                "one text a row; set it to 1"
            )


def length_field(recipe: Recipe, feed: Feed) -> str:
    """Where a recipe says how long the rows of a feed are."""
    base = recipe.base(feed.name)
    where = "data" if base == TEXT else f"feeds.{base}"
    return f"config.{where}.sequence_length"


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


def check_order(recipe: Recipe) -> None:
    """Raises `BadInput` when a stage needs a network that no earlier one trains."""
    there = {name for name, begin in recipe.begins.items() if begin.how == "folder"}
    for stage in recipe.stages:
        begin = recipe.begins[stage.network]
        if stage.network not in there and begin.needs and begin.of not in there:
            what = {
                "copy": "embeddings and heads",
                "factorise": "word table",
                "layers": "layers",
                "extract": "parts",
            }[begin.how]
            raise BadInput(
                f"stage {stage.name!r}: its network {stage.network!r} starts from the {what} "
                f"of {begin.of!r}, but no earlier stage trains one; set "
                f"config.networks.{stage.network}.start='random', put a stage of network {begin.of!r} "
                f"before it in config.order, or set config.networks.{begin.of}.init=FOLDER"
            )
        for other in recipe.teachers(stage):
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


def check_ensembles(config: ConfigDict, recipe: Recipe) -> None:
    """Raises `BadInput` for an ensemble of fewer than two networks of this run, or of networks whose
    classifiers are not for the same labels."""
    there = recipe.networks.keys()
    for name, members in config.ensembles.items():
        where = f"config.ensembles.{name}={tuple(members)}"
        if name in recipe.networks or name in NO_FEED:
            raise BadInput(f"{where}: something else is called {name!r}; give it another name")
        if len(set(members)) < 2 or len(set(members)) < len(members):
            raise BadInput(f"{where}: expected two different networks or more")
        for member in members:
            if member not in there:
                raise BadInput(
                    f"{where}: {member!r} is no network of this run; {nearest(member, there)}"
                )
        if len({recipe.labels.get(member) for member in members}) > 1:
            raise BadInput(
                f"{where}: their classifiers are for unlike labels; take those of one task"
            )


def check_data(recipe: Recipe, stage: Stage) -> None:
    """Raises `BadInput` when rows are longer than the position table of a network that reads them,
    lack what a loss reads, or are packed where pads count as words."""
    feed = recipe.feed(stage)
    for term in stage.terms:
        wanted = (*term.row.batch, *((term.stored,) if term.stored else ()))
        if lacks := [name for name in wanted if name not in feed.row]:
            raise BadInput(
                f"stage {stage.name!r} reads the feed {feed.name!r}, which has no {lacks[0]} for the loss "
                f"{term.loss!r}; set config.stages.{stage.name}.feed to one that has; feeds of this recipe: "
                f"{listed(recipe.feeds)}"
            )
    if stage.rows is not None and (not feed.head or stage.rows[0] >= feed.rows):
        has = f"has {feed.rows:,} rows" if feed.head else "is text, which has none to count"
        raise BadInput(
            f"config.stages.{stage.name}.rows={stage.rows}: {feed.name!r} {has}; begin below that, or set it to ()"
        )
    if "segment_ids" in feed.row and stage.tf1_unmasked:
        raise BadInput(
            f"config.data.packing=True, but stage {stage.name!r} counts pads as words (tf1_unmasked), and packing "
            f"takes them away; set config.stages.{stage.name}.tf1_unmasked=False, or packing=False"
        )
    for name in (stage.network, *recipe.teachers(stage)):
        positions = recipe.networks[name].config.max_positions
        if feed.length > positions:
            raise BadInput(
                f"{length_field(recipe, feed)}={feed.length} exceeds max_positions={positions} of {name!r}; "
                "shorten one or widen the other"
            )


def check_measured(recipe: Recipe) -> None:
    """Raises `BadInput` when a stage has its best state by a task whose head its network lacks, or rows
    are longer than the position table of a network that is measured on them."""
    for stage in recipe.stages:
        until, ours = stage.until, recipe.networks[stage.network].config
        if until is None or until.metric in stage.measured:
            continue
        if (head := recipe.feeds[until.feed].head) not in ours.heads:
            raise BadInput(
                f"config.stages.{stage.name}.best={until.metric!r} is measured on {until.feed!r} by the head "
                f"{head!r}, which {stage.network!r} does not have; name it in config.networks."
                f"{stage.network}.heads; its heads: {listed(ours.heads)}"
            )
    for feed in [recipe.feeds[recipe.base(name)] for s in recipe.stages for name in s.feeds]:
        for name, model in recipe.networks.items():
            positions = model.config.max_positions
            if _measures(model.config, feed) and feed.length > positions:
                raise BadInput(
                    f"{length_field(recipe, feed)}={feed.length} exceeds max_positions={positions} of {name!r}, "
                    "which is measured on it; shorten one or widen the other"
                )


def _measures(config: ModelConfig, feed: Feed) -> bool:
    """Whether a network is measured on a feed whatever it has learned."""
    return feed.head in config.heads and not HEADS[feed.head].by_label


def check_fit(cast: Cast) -> None:
    """Raises `BadInput` when the terms of a stage cannot compare its networks, or a head is
    missing."""
    stage, ours = cast.stage, cast.model.config
    for head in stage.heads():
        if head not in ours.heads:
            raise BadInput(
                f"stage {stage.name!r} needs the head {head!r}, which {stage.network!r} does not have; name it in "
                f"config.networks.{stage.network}.heads; its heads: {', '.join(ours.heads) or '(none)'}"
            )
    others = {name: other.config for name, other in cast.others}
    for term in stage.terms:
        if term.row.teacher is None:
            continue
        theirs = stored_teacher(ours, term) if term.stored else others[term.teacher]
        if term.head and term.head not in theirs.heads:
            raise BadInput(
                f"stage {stage.name!r} needs the teacher's head {term.head!r} for the loss {term.loss!r}, "
                f"which {term.teacher!r} does not have (its heads: {', '.join(theirs.heads) or 'none'}); set "
                f"config.stages.{stage.name}.{term.row.off or f'{term.loss}=0'} to train without that loss, or "
                "take another teacher"
            )
        follows = None if term.stored else term.follows_layer  # `with_stored` knows what is stored
        if follows is not None and not 0 <= follows < theirs.num_layers:
            raise BadInput(
                f"stage {stage.name!r}: the loss {term.loss!r} has the embeddings follow layer {follows}; "
                f"the teacher's layers are 0 to {theirs.num_layers - 1}"
            )
        if term.per_layer and not term.stored:
            check_layer_map(stage, term, ours.num_layers, theirs.num_layers)
        pair = Pair(
            stage.name,
            stage.network,
            term.loss,
            ours,
            theirs,
            dict(term.options),
            term.projection,
            stage.accumulation,
        )
        for need in term.row.needs:
            if wrong := need(pair):
                raise BadInput(wrong)


def stored_teacher(ours: ModelConfig, term: Term) -> ModelConfig:
    """The config of a teacher as far as what is stored of it tells, for what a loss needs of it."""
    if term.row.teacher in ("hidden", "embeddings"):
        return ours.replace(hidden_size=term.width)
    return ours


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
            if begin.how == "layers":
                check_layers(stage.network, begin, recipe.networks[begin.of].config.num_layers)
                set_by[stage.network] |= shared_names(model, recipe.networks[begin.of])
            if begin.how == "factorise":
                theirs = recipe.networks[begin.of].config
                factorise.check(model.config, theirs, f"config.networks.{stage.network}")
                set_by[stage.network].add(factorise.WORDS)
            if begin.how == "extract":
                check_extract(recipe, stage.network)
                set_by[stage.network] |= taken_names(model, recipe.networks[begin.of])
            if begin.how == "copy":
                copied = copied_names(model, recipe.networks[begin.of])
                if not copied:
                    raise BadInput(
                        f"config.networks.{stage.network}.start='copy', but no embedding or head of "
                        f"{begin.of!r} has its shape; set start='random', or give it the widths of "
                        f"{begin.of!r}"
                    )
                set_by[stage.network] |= copied
        state.check_moves(stage, shapes, set_by[stage.network], model.config)
        moved = state.moving_names(stage, shapes)
        if stage.layers not in (None, (0, model.config.num_layers)):  # the others stay as they were
            moved = {name for name in moved if not is_stacked(name)}
        set_by[stage.network] |= moved


def check_extract(recipe: Recipe, name: str) -> None:
    """Raises `BadInput` unless the network `name` can be cut out of the one that it begins as a part
    of, by what it says."""
    begin, where = recipe.begins[name], f"config.networks.{name}"
    ours, theirs = recipe.networks[name].config, recipe.networks[begin.of].config
    check_parts(theirs, ours, f"{where}, which begins as a part of {begin.of!r},")
    if begin.layers:
        check_layers(name, begin, theirs.num_layers)
    if not begin.importance:
        return
    if begin.importance not in recipe.feeds:
        raise BadInput(
            f"{where}.importance={begin.importance!r} is no feed of this recipe; "
            f"{nearest(begin.importance, recipe.feeds)}"
        )
    feed = recipe.feeds[begin.importance]
    if (head := feed.head or "mlm") not in theirs.heads:
        raise BadInput(
            f"{where}.importance={feed.name!r} is what each part of {begin.of!r} is worth for the head {head!r}, "
            f"which it lacks; its heads: {listed(theirs.heads)}; name another feed, or '' for parts at random"
        )


def check_layers(name: str, begin: Begin, there: int) -> None:
    """Raises `BadInput` unless the network that `name` begins as some layers of has each of them."""
    for number, layer in enumerate(begin.layers):
        if not isinstance(layer, int) or not 0 <= layer < there or layer in begin.layers[:number]:
            raise BadInput(
                f"config.networks.{name}.layers={begin.layers}: expected different layers of {begin.of!r}, "
                f"counted from 0 to {there - 1}; given: {layer!r}"
            )


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

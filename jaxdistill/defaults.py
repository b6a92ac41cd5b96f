"""Every field of a recipe with a default that works: the sections that the files in `configs/` fill
in.

A recipe is an `ml_collections.ConfigDict`. Stages are sections by name plus a tuple `order`, so a
command line can say `--config.stages.transfer.steps=100`, and a misspelt field is an error with a
suggestion."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxdistill.errors import BadInput, nearest
from jaxdistill.methods import KINDS
from jaxdistill.methods.settings import OWN_FIELDS, check_read
from jaxdistill.models import preset
from jaxdistill.models.config import check_fields


def recipe(name: str) -> ConfigDict:
    """A recipe without stages or models; add `config.stages.NAME = stage(...)` and
    `config.order`."""
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
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
            "teacher": network("ib_bert_large"),
            "student": network("mobilebert"),
            "stages": {},
            "order": ("",)[:0],
            # True: losses in a fraction of the memory, their gradient taken in the forward pass;
            # False: the plain ones, which keep every layer's taps; left out: True but on a CPU,
            # which has the memory and takes a tenth longer (True there too where layers of the
            # teacher have no follower, whose taps would be kept for nothing).
            "objectives": {"fused": config_dict.placeholder(bool)},
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


def check_variant(variant: str, *valid: str) -> str:
    """`variant` itself; raises `BadInput` unless it is "" or one of `valid`, so that a typo is not
    the full recipe."""
    if variant and variant not in valid:
        raise BadInput(f"variant {variant!r} of this recipe is unknown; {nearest(variant, valid)}")
    return variant


def network(name: str, **changes: Any) -> ConfigDict:
    """A teacher or student: the preset's fields with `changes`, and `init`, a folder or Hub id to
    start from instead.

    `vocab_size` 0 means the tokenizer's.
    """
    check_fields(changes)
    model = ConfigDict({**dataclasses.asdict(preset(name)), "vocab_size": 0, **changes})
    for field in [
        field for field, value in model.items() if value is None
    ]:  # of what type a value would be
        model[field] = config_dict.placeholder(float if field.endswith("eps") else int)
    return ConfigDict({"init": "", "model": model})


def stage(kind: str, network: str, **changes: Any) -> ConfigDict:
    """One stage: `kind` is a function of `methods` (pretrain, progressive, joint, auxiliary,
    distill, relations, intermediate, classify).

    `network`: "teacher", or any name for a network of the student's architecture; stages of one
    network follow each other. `start` says how a network begins that has no earlier stage: "copy"
    (teacher's embeddings and heads) or "random". The length is given by one of `steps`, `examples`
    or `epochs`."""
    if kind not in KINDS:
        raise BadInput(f"stage kind {kind!r} is unknown; {nearest(kind, KINDS)}")
    defaults = {
        "kind": kind,
        "network": network,
        "start": "random" if network == "teacher" else "copy",
        "baseline": False,
        "steps": 0,
        "examples": 0,
        "epochs": 0.0,
        "batch_size": 32,
        "accumulation": 1,
        "optimizer": "lamb",
        "learning_rate": 1.5e-3,
        "warmup_steps": 0,
        "decay": "linear",
        "end_ratio": 1e-4,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "bias_correction": False,
        "dropout": False,
        "moves": ("",)[:0],
        # Skip updates whose loss is so many standard deviations above its recent mean (0: none);
        # hand on the state with the lowest held-out "loss" (or term), as measured at each
        # step-based checkpoint ("": the last).
        "skip_above": 0.0,
        "best": "",
        "tf1_unmasked": False,
        **OWN_FIELDS,
    }
    for name, value in changes.items():
        if name not in defaults:
            raise BadInput(f"stage field {name!r} is unknown; {nearest(name, defaults)}")
        if isinstance(value, list):
            changes[name] = tuple(value)
    check_read(kind, changes, f"stage({kind!r}, {network!r})")
    return ConfigDict({**defaults, **changes})


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks any recipe to seconds: tiny widths and depths, a few steps a stage; the shape of the
    run stays."""
    for section in (config.teacher, config.student):
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
            {"steps": 4, "examples": 0, "epochs": 0.0, "batch_size": 8, "warmup_steps": 1}
        )
        section.accumulation = min(section.accumulation, 2)
    config.evaluation.update({"batch_size": 8, "max_examples": 32})
    config.checkpoint.every_steps = 2
    config.log_every = 1
    return config

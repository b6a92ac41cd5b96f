"""What `jaxdistill describe` says of a network: parameters and FLOPs by part, and the taps a loss
may read.

Nothing is allocated: everything follows from the config under `eval_shape`. Called by the command
line and by users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxdistill.models import ModelConfig
from jaxdistill.models.sizes import forward_flops, parameters_by_part, tap_shapes

LENGTHS = (128, 512)


def describe(config: ModelConfig) -> dict[str, Any]:
    """JSON-ready facts about the network `config`.

    `encoder_parameters` (embeddings, blocks, pooler), `total_parameters` (with the config's own
    heads), `pretraining_parameters` (with MLM and NSP heads), `parameters` by part, `flops`
    {length: {part: FLOPs of one sequence's forward pass, "encoder": their sum without heads}},
    `taps` {name: {"shape", "dtype"}} for one row of `tap_length` tokens, and `config` itself."""
    heads = ("mlm",) if config.pooler == "none" else ("mlm", "nsp")
    parts = parameters_by_part(config)
    # Lengths the position table cannot hold are left out; a very short model is described at its
    # own limit.
    lengths = [length for length in LENGTHS if length <= config.max_positions] or [
        config.max_positions
    ]
    taps = tap_shapes(config, batch=1, length=lengths[0])
    return {
        "encoder_parameters": parts["encoder"],
        "total_parameters": parts["total"],
        "pretraining_parameters": parameters_by_part(config.replace(heads=heads))["total"],
        "parameters": parts,
        "flops": {str(length): _flops(config, length, heads) for length in lengths},
        "tap_length": lengths[0],
        "taps": {
            name: {"shape": list(tap.shape), "dtype": tap.dtype.name} for name, tap in taps.items()
        },
        "config": config.to_dict(),
    }


def _flops(config: ModelConfig, length: int, heads: tuple[str, ...]) -> dict[str, int]:
    """Encoder parts and their sum, then the pre-training heads at every position, which are not in
    the sum."""
    every = forward_flops(config, length, heads=heads)
    encoder = forward_flops(config, length)
    outside = {part: value for part, value in every.items() if part not in encoder}
    return {**encoder, "encoder": sum(encoder.values()), **outside}


def format_description(description: dict[str, Any]) -> str:
    """The facts of `describe` as aligned plain text, no colour, under 100 columns."""
    config = description["config"]
    inner = config["bottleneck_size"]
    title = (
        f"{config['num_layers']} layers, width {config['hidden_size']}"
        + (f", {inner} inside a block" if inner else "")
        + f", {config['num_heads']} heads, vocabulary {config['vocab_size']:,}, {config['norm']}, "
        f"{config['activation']}"
    )
    parameters = [("parameters", "")]
    for part, number in description["parameters"].items():
        if number or part in ("pooler", "encoder", "total"):
            parameters.append((_PART_NAMES.get(part, "  " + _plain(part)), f"{number:,}"))
    parameters.append(("with MLM and NSP heads", f"{description['pretraining_parameters']:,}"))
    columns = list(description["flops"].values())
    flops = [
        ("forward FLOPs of one sequence", *(f"{length} tokens" for length in description["flops"]))
    ]
    for part in columns[0]:
        if any(column[part] for column in columns):
            name = "encoder without heads" if part == "encoder" else "  " + _plain(part)
            flops.append((name, *(_short(column[part]) for column in columns)))
    taps = [(f"taps of one row of {description['tap_length']} tokens", "shape", "dtype", "MiB")]
    for name, tap in description["taps"].items():
        mebibytes = math.prod(tap["shape"]) * (2 if tap["dtype"] == "bfloat16" else 4) / 2**20
        taps.append(
            ("  " + name, " x ".join(map(str, tap["shape"])), tap["dtype"], f"{mebibytes:.2f}")
        )
    first = max(len(row[0]) for table in (parameters, flops, taps) for row in table)
    return "\n\n".join([title, *(_aligned(table, first) for table in (parameters, flops, taps))])


def _aligned(rows: Sequence[tuple[str, ...]], first: int) -> str:
    """Rows as lines: names to the left in `first` columns, everything else to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], widths))]
        ).rstrip()
        for row in rows
    )


def _plain(part: str) -> str:
    """ "head/mlm" -> "head: mlm"."""
    return part.replace("/", ": ").replace("_", " ")


_PART_NAMES = {
    "word_table": "  word table",
    "other_embeddings": "  rest of embeddings",
    "block": "  one block",
    "blocks": "  all blocks",
    "pooler": "  pooler",
    "encoder": "encoder without heads",
    "total": "with its own heads",
    "block/bottleneck_in": "    bottleneck in",
    "block/bottleneck_qk": "    bottleneck for query and key",
    "block/attention": "    attention",
    "block/ffn": "    feed-forward",
    "block/bottleneck_out": "    bottleneck out",
    "head/mlm": "  MLM head (beside the tied word table)",
    "head/nsp": "  NSP head",
}


def _short(flops: int) -> str:
    """5388632064 -> "5.39 G"."""
    for limit, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if flops >= limit:
            return f"{flops / limit:.2f} {unit}"
    return f"{flops}  "

"""The README.md of an exported folder, made from a run's own numbers and from nothing else. Called
by run, pretrained.

Every key of `results` may be missing; what is missing is left out, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdistill.interop.configs import architecture, family_of, why_not_huggingface
from jaxdistill.models import ModelConfig

# Columns of the evaluation table: key of results["networks"][name]["text"] -> heading.
COLUMNS = {
    "mlm_loss": "MLM loss",
    "mlm_accuracy": "MLM accuracy",
    "nsp_accuracy": "NSP accuracy",
    "teacher_kl": "KL from teacher",
    "top1_agreement": "top-1 agreement with teacher",
    "top5_agreement": "top-5 agreement with teacher",
}
# Rows of the "how it was made" table: key of results -> heading.
FACTS = {
    "config_name": "recipe",
    "command": "command",
    "seed": "seed",
    "steps": "steps",
    "corpus": "corpus",
    "hardware": "hardware",
    "seconds": "wall time, seconds",
    "versions": "versions",
}


def model_card(
    results: Mapping[str, Any],
    *,
    config: ModelConfig | None = None,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = "apache-2.0",
    reason: str | None = None,
) -> str:
    """Markdown with front matter.

    Args:
        results: `networks` {name: {"parameters": number, feed: {metric: number}}}, and the facts of `FACTS` (texts,
            numbers or mappings).
        config: the architecture, for a line about it and for the tags.
        name: the title; default `results["config_name"]`.
        base_model: the Hub name or path of what it was distilled from, if it has one.
        license: an identifier of the Hub's list; None leaves the line out.
        reason: why the folder is not in Hugging Face's format; default what `config` says.
    """
    if reason is None and config is not None:
        reason = why_not_huggingface(config)
    title = name or str(results.get("config_name") or "jaxdistill model")
    parts = [
        _front_matter(config, base_model, license, reason),
        f"# {title}",
        "Made with jaxdistill.",
        _architecture(config),
        _loading(config, reason),
        _networks(results.get("networks") or {}, results.get("tasks") or ()),
        _facts(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    config: ModelConfig | None, base_model: str | None, license: str | None, reason: str | None
) -> str:
    own = reason is not None
    tags = ["jaxdistill", "distillation"]
    if config is not None and not own:
        tags.append(family_of(config)[0])
    library = "jaxdistill" if own else "transformers"
    head: dict[str, Any] = {
        "license": license,
        "language": "en",
        "library_name": library,
        "tags": tags,
        "base_model": base_model,
    }
    if config is not None and "mlm" in config.heads and not own:
        head["pipeline_tag"] = "fill-mask"
    elif config is not None and "embedding" in config.heads and not own:
        head |= {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    # JSON is YAML, so quoting takes care of itself.
    lines = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in head.items()
        if value is not None
    ]
    return "\n".join(["---", *lines, "---"])


def _architecture(config: ModelConfig | None) -> str:
    if config is None:
        return ""
    inside = f", {config.bottleneck_size} wide inside a block" if config.bottleneck_size else ""
    heads = f"heads: {', '.join(config.heads)}" if config.heads else "no heads"
    return (
        f"{config.num_layers} layers, {config.hidden_size} wide{inside}, {config.num_heads} attention heads, "
        f"{config.num_ffn} feed-forward network{'s' if config.num_ffn > 1 else ''} of {config.intermediate_size} a "
        f"layer, {config.vocab_size} word pieces; {heads}."
    )


def _loading(config: ModelConfig | None, reason: str | None) -> str:
    lines = ["import jaxdistill", "", 'model, params = jaxdistill.from_pretrained("THIS_FOLDER")']
    if reason is not None:
        return f"It is in jaxdistill's own format: {reason}.\n\n" + _code(lines)
    if config is not None:
        family = family_of(config)[0]
        kind = architecture(config, family)
        lines += [
            "",
            f"from transformers import {kind}",
            "",
            f'{kind}.from_pretrained("THIS_FOLDER")',
        ]
        if family == "mobilebert":  # of BERT transformers has a Flax class of its own
            auto = "FlaxAutoModel" + kind.removeprefix("MobileBert").removeprefix("Model")
            lines += [
                "",
                f"from transformers import {auto}",
                "",
                "jaxdistill.register_with_transformers()  # comes first",
                f'{auto}.from_pretrained("THIS_FOLDER")',
            ]
        if "embedding" in config.heads:
            lines += [
                "",
                "from sentence_transformers import SentenceTransformer",
                "",
                'SentenceTransformer("THIS_FOLDER")',
            ]
    return _code(lines)


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _networks(networks: Mapping[str, Mapping[str, Any]], tasks: Iterable[str] = ()) -> str:
    """A table of held-out numbers: of text, and of `tasks`, which stand under their names."""
    shown = {
        name: {key: values[key] for key in ("parameters",) if key in values}
        | {COLUMNS[key]: number for key, number in values.get("text", {}).items() if key in COLUMNS}
        | {
            f"{task}: {key.replace('_', ' ')}": number
            for task in tasks
            for key, number in values.get(task, {}).items()
        }
        for name, values in networks.items()
    }
    columns = dict.fromkeys(key for values in shown.values() for key in values)
    if not columns:
        return ""
    order = [key for key in ("parameters", *COLUMNS.values()) if key in columns]
    titles = list(dict.fromkeys([*order, *columns]))
    rows = [[name, *(_number(row.get(key)) for key in titles)] for name, row in shown.items()]
    return "## Evaluation\n\n" + _table(["network", *titles], rows)


def _facts(results: Mapping[str, Any]) -> str:
    rows = [
        [heading, _text(results[key])]
        for key, heading in FACTS.items()
        if results.get(key) is not None
    ]
    return "## How it was made\n\n" + _table(["", ""], rows) if rows else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )

    return "\n".join(line(cells) for cells in (header, ["---"] * len(header), *rows))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000
        else str(value)
    )

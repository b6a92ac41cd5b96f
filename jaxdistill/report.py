"""What a run leaves for people: a table for the terminal, `results.json`, and three plots under
`workdir/plots`.

Everything is made from the `results` dict and `metrics.jsonl`, and every key may be missing: a run
of one stage, or one that was cut short, still gets the part of the report it has the numbers for.
Called by `run` and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxdistill import plots
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.plots import NETWORKS
from jaxdistill.training.metrics import read_metrics

RESULTS_FILE = "results.json"
_COLUMNS = (
    ("mlm_loss", "MLM loss", "{:.4f}"),
    ("mlm_accuracy", "MLM acc.", "{:.1%}"),
    ("nsp_accuracy", "NSP acc.", "{:.1%}"),
    ("top1_agreement", "top-1", "{:.1%}"),
    ("top5_agreement", "top-5", "{:.1%}"),
    ("teacher_kl", "KL to teacher", "{:.4f}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("steps", "steps", "{:,.0f}"),
    ("seconds", "seconds", "{:,.0f}"),
)
_STAGE_COLUMNS = (
    ("steps", "steps", "{:,.0f}"),
    ("seconds", "seconds", "{:,.0f}"),
    ("sequences_per_second", "sequences/s", "{:,.1f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("student_flops", "student FLOPs", "{:.1e}"),
    ("teacher_flops", "teacher FLOPs", "{:.1e}"),
    ("final_loss", "final loss", "{:.4f}"),
)


def write_results(
    workdir: epath.PathLike, results: Mapping[str, Any], name: str = RESULTS_FILE
) -> epath.Path:
    """Writes `workdir/results.json` (or another `name`) whole or not at all; returns its path.
    Numbers that are not finite become null."""
    path = epath.Path(workdir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), indent=2, sort_keys=False, allow_nan=False) + "\n"
    beside = path.with_name(name + ".tmp")
    beside.write_text(text)
    beside.replace(path)
    return path


def read_results(workdir: epath.PathLike) -> dict[str, Any]:
    """What `results.json` holds; {} if there is none, or none that can be read as one."""
    path = epath.Path(workdir) / RESULTS_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    sections: list[Any] = [found.get(name) or {} for name in ("networks", "stages", "corpus")]
    whole = all(isinstance(section, dict) for section in sections) and all(
        isinstance(row, dict) for section in sections[:2] for row in section.values()
    )
    return found if whole else {}


def format_table(results: Mapping[str, Any]) -> str:
    """Networks and stages as aligned plain text, then what the numbers say, then what they were
    obtained with."""
    blocks = []
    networks = _networks(results)
    if networks:
        rows = {
            NETWORKS.get(name, name): {**(row.get(TEXT) or {}), **row}
            for name, row in networks.items()
        }
        blocks.append(_table("held-out text" if _losses(results) else "network", rows, _COLUMNS))
    for task in results.get("tasks") or {}:
        every = {**networks, **(results.get("ensembles") or {})}
        rows = {NETWORKS.get(name, name): row[task] for name, row in every.items() if task in row}
        if rows:
            blocks.append(_table(f"held-out {task}", rows, _score_columns(rows)))
    stages = results.get("stages") or {}
    if stages:
        blocks.append(_table("stage", stages, _STAGE_COLUMNS))
    for stage, layers in _layers(results).items():
        better = sum(after < before for _, before, after in layers)
        blocks.append(
            f"Stage {stage} lowered the transfer loss of {better} of its {len(layers)} layers."
        )
    if _losses(results):
        blocks.append("\n".join(comparison(results)))
    shown = (
        {**results, "corpus": corpus_line(results["corpus"])} if results.get("corpus") else results
    )
    if (unigram := results.get("unigram_mlm_loss")) is not None:
        shown = {**shown, "unigram_mlm_loss": f"{unigram:.4f}"}
    facts = [
        f"{name}: {_flat(shown[key])}"
        for key, name in (
            ("config_name", "config"),
            ("corpus", "corpus"),
            ("hardware", "hardware"),
            ("versions", "versions"),
            ("seed", "seed"),
            ("seconds", "seconds in all"),
            ("unigram_mlm_loss", "MLM loss of word frequencies alone"),
            ("student_sha256", "student SHA-256"),
        )
        if results.get(key) is not None
    ]
    warnings = [
        f"WARNING: {line}" for line in results.get("warnings") or ()
    ]  # last, where they are read
    return "\n\n".join([*blocks, *("\n".join(lines) for lines in (facts, warnings) if lines)])


def _score_columns(rows: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Columns for all numbers of a task; shares of rows in percent."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return [
        (name, name.replace("_", " "), "{:.1%}" if name.endswith("accuracy") else "{:.4f}")
        for name in names
    ]


def corpus_line(corpus: Any) -> str:
    """The text of a run in a line; `results.json` has the rest (digests of both parts, versions of
    what wrote it)."""
    if not isinstance(corpus, Mapping):
        return str(corpus)
    parts = [str(corpus.get("source", ""))]
    for name, words in (("train", "training"), ("heldout", "held-out")):
        part = corpus.get(name)
        if isinstance(part, Mapping) and "tokens" in part:
            parts.append(
                f"{part['tokens']:,} {words} tokens of {part.get('documents', 0):,} documents"
            )
    if corpus.get("digest"):
        parts.append(f"digest {str(corpus['digest'])[:12]}")
    return ", ".join(parts)


def comparison(results: Mapping[str, Any]) -> list[str]:
    """In plain words: who has the lowest held-out MLM loss, and the student's margin over each of
    its baselines."""
    losses = _losses(results)
    if not losses:
        return ["No network has a held-out MLM loss."]
    best = min(losses, key=losses.__getitem__)
    lines = [f"Lowest held-out MLM loss: {NETWORKS.get(best, best)}, {losses[best]:.4f}."]
    pupils = {name: loss for name, loss in losses.items() if name != "teacher"}
    if best == "teacher" and len(pupils) > 1:
        second = min(pupils, key=pupils.__getitem__)
        lines.append(
            f"Lowest of the students: {NETWORKS.get(second, second)}, {losses[second]:.4f}."
        )
    if "student" not in losses:
        return [*lines, "The student has no held-out MLM loss: nothing to compare."]
    for name in ("random_start", "copied_start"):
        if name not in losses:
            lines.append(
                f"The student is not compared with the {NETWORKS[name]}: it has no held-out MLM loss."
            )
            continue
        margin = losses[name] - losses["student"]
        word = "lower, so better" if margin > 0 else "HIGHER, so worse"
        lines.append(
            f"The student's loss is the same as the {NETWORKS[name]}'s."
            if margin == 0
            else f"The student's loss is {abs(margin):.4f} ({abs(margin) / losses[name]:.1%}) {word} than the "
            f"{NETWORKS[name]}'s."
        )
    return lines


def write_plots(workdir: epath.PathLike, results: Mapping[str, Any]) -> list[epath.Path]:
    """Draws whatever there are numbers for into `workdir/plots`; returns the paths written."""
    figures = {
        "loss_by_stage.png": plots.loss_by_stage(
            read_metrics(workdir), list(results.get("stages") or {})
        ),
        "heldout.png": plots.heldout(_losses(results)),
    }
    for task, facts in (results.get("tasks") or {}).items():
        metric, better = facts.get("metric", "accuracy"), facts.get("higher_is_better", True)
        scores = {
            name: value
            for name, row in _networks(results).items()
            if (value := _finite((row.get(task) or {}).get(metric))) is not None
        }
        label = f"{metric.replace('_', ' ')} on the held-out rows of {task} ({'higher' if better else 'lower'} is better)"
        figures[f"heldout_{task}.png"] = plots.heldout(scores, label)
    transfers = _layers(results)
    for stage, layers in transfers.items():
        figures["layer_transfer.png" if len(transfers) == 1 else f"layer_transfer_{stage}.png"] = (
            plots.layer_transfer(layers)
        )
    return [
        plots.save(figure, epath.Path(workdir) / "plots" / name)
        for name, figure in figures.items()
        if figure is not None
    ]


def _networks(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The networks that have numbers, the known ones in reading order first."""
    found = {name: row for name, row in (results.get("networks") or {}).items() if row}
    return {name: found[name] for name in sorted(found, key=lambda n: [*NETWORKS, n].index(n))}


def _losses(results: Mapping[str, Any]) -> dict[str, float]:
    """Held-out MLM losses of the networks that have one."""
    every = {
        name: _finite((row.get(TEXT) or {}).get("mlm_loss"))
        for name, row in _networks(results).items()
    }
    return {name: loss for name, loss in every.items() if loss is not None}


def _layers(results: Mapping[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """By stage, (layer, loss before, loss after) for every layer that has both.
    `results["transfer"]` holds the layers of one stage or, by name, those of several."""
    transfer = results.get("transfer") or {}
    found: dict[str, list[tuple[int, float, float]]] = {}
    for stage, page in ({"transfer": transfer} if "layers" in transfer else transfer).items():
        for number, row in enumerate(page.get("layers") or []):
            before, after = (
                _finite((row.get(when) or {}).get("loss")) for when in ("before", "after")
            )
            if before is not None and after is not None:
                found.setdefault(stage, []).append((int(row.get("layer", number)), before, after))
    return found


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _table(
    corner: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]
) -> str:
    """Rows by name under the titles of `columns` (key, title, format), without the columns that
    nobody has."""
    columns = [
        c for c in columns if any(_finite(row.get(c[0])) is not None for row in rows.values())
    ]
    cells = [[corner, *(title for _, title, _ in columns)]]
    for name, row in rows.items():
        numbers = [(_finite(row.get(key)), form) for key, _, form in columns]
        cells.append(
            [name, *("-" if number is None else form.format(number) for number, form in numbers)]
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _flat(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_flat, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """JSON-ready: NumPy and JAX scalars as numbers, arrays as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)

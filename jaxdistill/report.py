"""What a run leaves for people: a table for the terminal, `results.json`, and three plots under `workdir/plots`.

Everything is made from the `results` dict and `metrics.jsonl`, and every key may be missing: a run of one stage, or
one that was cut short, still gets the part of the report it has the numbers for. Called by `run` and the command line.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxdistill.training.metrics import read_metrics

RESULTS_FILE = "results.json"
NETWORKS = {"teacher": "teacher", "student": "student", "copied_start": "copied start", "random_start": "random start"}
_COLUMNS = (("mlm_loss", "MLM loss", "{:.4f}"), ("mlm_accuracy", "MLM acc.", "{:.1%}"),
            ("nsp_accuracy", "NSP acc.", "{:.1%}"), ("top1_agreement", "top-1", "{:.1%}"),
            ("top5_agreement", "top-5", "{:.1%}"), ("teacher_kl", "KL to teacher", "{:.4f}"),
            ("parameters", "parameters", "{:,.0f}"), ("steps", "steps", "{:,.0f}"), ("seconds", "seconds", "{:,.0f}"))
_STAGE_COLUMNS = (("steps", "steps", "{:,.0f}"), ("seconds", "seconds", "{:,.0f}"),
                  ("sequences_per_second", "sequences/s", "{:,.1f}"), ("tokens_per_second", "tokens/s", "{:,.0f}"),
                  ("final_loss", "final loss", "{:.4f}"))

# A network has the same colour in every plot; the palette is safe for colour-blind readers.
_COLOURS = {"teacher": "#555555", "student": "#0072B2", "copied_start": "#E69F00", "random_start": "#CC79A7"}
_OTHER_COLOURS = ("#009E73", "#D55E00", "#56B4E9", "#8B6F47")
_BEFORE, _AFTER = "#BBBBBB", "#0072B2"
_LONG = 150  # more points than this: a line of means over the range of what they average
_WIDE = 20.0  # values that span more than this factor go on a logarithmic axis


def write_results(workdir: epath.PathLike, results: Mapping[str, Any], name: str = RESULTS_FILE) -> epath.Path:
    """Writes `workdir/results.json` (or another `name`) whole or not at all; returns its path. Numbers that are not
    finite become null."""
    path = epath.Path(workdir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results), indent=2, sort_keys=False, allow_nan=False) + "\n"
    beside = path.with_name(name + ".tmp")
    beside.write_text(text)
    beside.replace(path)
    return path


def report(workdir: epath.PathLike, results: Mapping[str, Any]) -> str:
    """Writes `results.json` and the plots, and returns the table with its summary in words."""
    write_results(workdir, results)
    plots = write_plots(workdir, results)
    where = [f"Plots: {', '.join(str(path) for path in plots)}"] if plots else []
    return "\n".join([format_table(results), *where])


def format_table(results: Mapping[str, Any]) -> str:
    """Networks and stages as aligned plain text, then what the numbers say, then what they were obtained with."""
    blocks = []
    networks = _networks(results)
    if networks:
        rows = {NETWORKS.get(name, name): row for name, row in networks.items()}
        blocks.append(_table("held-out text", rows, _COLUMNS))
    stages = results.get("stages") or {}
    if stages:
        blocks.append(_table("stage", stages, _STAGE_COLUMNS))
    for stage, layers in _layers(results).items():
        better = sum(after < before for _, before, after in layers)
        blocks.append(f"Stage {stage} lowered the transfer loss of {better} of its {len(layers)} layers.")
    if networks:
        blocks.append("\n".join(comparison(results)))
    shown = {**results, "corpus": corpus_line(results["corpus"])} if results.get("corpus") else results
    facts = [f"{name}: {_flat(shown[key])}" for key, name in (
        ("config_name", "config"), ("corpus", "corpus"), ("hardware", "hardware"), ("versions", "versions"),
        ("seed", "seed"), ("seconds", "seconds in all"), ("student_sha256", "student SHA-256"))
        if results.get(key) is not None]
    return "\n\n".join([*blocks, *(["\n".join(facts)] if facts else [])])


def corpus_line(corpus: Any) -> str:
    """The text of a run in a line; `results.json` has the rest (digests of both parts, versions of what wrote it)."""
    if not isinstance(corpus, Mapping):
        return str(corpus)
    parts = [str(corpus.get("source", ""))]
    for name, words in (("train", "training"), ("heldout", "held-out")):
        part = corpus.get(name)
        if isinstance(part, Mapping) and "tokens" in part:
            parts.append(f"{part['tokens']:,} {words} tokens of {part.get('documents', 0):,} documents")
    if corpus.get("digest"):
        parts.append(f"digest {str(corpus['digest'])[:12]}")
    return ", ".join(parts)


def comparison(results: Mapping[str, Any]) -> list[str]:
    """In plain words: who has the lowest held-out MLM loss, and the student's margin over each of its baselines."""
    losses = _losses(results)
    if not losses:
        return ["No network has a held-out MLM loss."]
    best = min(losses, key=losses.__getitem__)
    lines = [f"Lowest held-out MLM loss: {NETWORKS.get(best, best)}, {losses[best]:.4f}."]
    pupils = {name: loss for name, loss in losses.items() if name != "teacher"}
    if best == "teacher" and len(pupils) > 1:
        second = min(pupils, key=pupils.__getitem__)
        lines.append(f"Lowest of the students: {NETWORKS.get(second, second)}, {losses[second]:.4f}.")
    if "student" not in losses:
        return [*lines, "The student has no held-out MLM loss: nothing to compare."]
    for name in ("random_start", "copied_start"):
        if name not in losses:
            lines.append(f"The student is not compared with the {NETWORKS[name]}: it has no held-out MLM loss.")
            continue
        margin = losses[name] - losses["student"]
        word = "lower, so better" if margin > 0 else "HIGHER, so worse"
        lines.append(f"The student's loss is the same as the {NETWORKS[name]}'s." if margin == 0 else
                     f"The student's loss is {abs(margin):.4f} ({abs(margin) / losses[name]:.1%}) {word} than the "
                     f"{NETWORKS[name]}'s.")
    return lines


def write_plots(workdir: epath.PathLike, results: Mapping[str, Any]) -> list[epath.Path]:
    """Draws whatever there are numbers for into `workdir/plots`; returns the paths written."""
    figures = {"loss_by_stage.png": loss_by_stage(read_metrics(workdir), list(results.get("stages") or {})),
               "heldout.png": heldout(_losses(results))}
    transfers = _layers(results)
    for stage, layers in transfers.items():
        figures["layer_transfer.png" if len(transfers) == 1 else f"layer_transfer_{stage}.png"] = layer_transfer(layers)
    return [_save(figure, epath.Path(workdir) / "plots" / name)
            for name, figure in figures.items() if figure is not None]


def loss_by_stage(metrics: Sequence[Mapping[str, Any]], order: Sequence[str] = ()) -> Any | None:
    """One panel a stage, one line a network: `loss` over steps from the lines of `metrics.jsonl`.

    `order`: stages in reading order; those it does not name follow in the order of their lines.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in metrics:
        if line.get("loss") is not None and math.isfinite(line["loss"]):
            networks = curves.setdefault(line["stage"], {})
            networks.setdefault(line.get("network", "student"), []).append((line["step"], line["loss"]))
    if not curves:
        return None
    stages = [*(s for s in order if s in curves), *(s for s in curves if s not in order)]
    columns = min(len(stages), 3 if len(stages) <= 9 else 4)
    rows = math.ceil(len(stages) / columns)
    figure = _figure(width=max(4.2 * columns, 6.4), height=max(3.2 * rows, 4.0))
    colours = _colours([network for stage in stages for network in curves[stage]])
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(stage, loc="left", fontweight="bold", pad=8)
        values: list[float] = []
        for network, points in curves[stage].items():
            _draw_curve(axes, points, colours[network], NETWORKS.get(network, network))
            values += [loss for _, loss in points]
        if min(values) > 0 and max(values) / min(values) > _WIDE:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if number % columns == 0:
            axes.set_ylabel("training loss (sum of weighted terms)")
        if number >= len(stages) - columns:
            axes.set_xlabel("step of the stage")
        axes.legend(frameon=False, loc="best")
        _tidy(axes)
        axes.xaxis.set_major_formatter(_thousands)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def layer_transfer(layers: Sequence[tuple[int, float, float]]) -> Any | None:
    """Two bars a layer: its transfer loss before and after its phase. `layers`: (layer, before, after)."""
    if not layers:
        return None
    positions = np.arange(len(layers))
    before, after = (np.array([row[i] for row in layers]) for i in (1, 2))
    figure = _figure(width=min(max(2.5 + 0.55 * len(layers), 6.4), 14.0), height=4.4)
    axes = figure.add_subplot()
    axes.bar(positions - 0.2, before, 0.4, color=_BEFORE, label="before its phase")
    axes.bar(positions + 0.2, after, 0.4, color=_AFTER, label="after its phase")
    every, scale = np.concatenate([before, after]), ""
    if every.min() > 0 and every.max() / every.min() > _WIDE:
        axes.set_yscale("log")
        # Room above for the numbers and the legend; below, so that the lowest bar is still a bar.
        axes.set_ylim(10 ** math.floor(math.log10(every.min() / 1.5)), every.max() * 6)
        scale = " (log scale)"
    else:
        axes.set_ylim(min(0.0, 1.1 * every.min()), 1.28 * max(every.max(), 1e-12))
    for position, low, high in zip(positions, after, before):
        if high > 0:
            change = f"{100 * (low / high - 1):+.0f}%".replace("-", "\N{MINUS SIGN}")
            axes.annotate(change, (position, max(low, high)), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=9 if len(layers) <= 12 else 8, color="#333333",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_xticks(positions, [str(layer) for layer, _, _ in layers])
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xlabel("layer (0 is next to the embeddings)")
    axes.set_ylabel(f"transfer loss of the layer{scale}")
    axes.legend(frameon=False, loc="upper right", ncols=2)
    _tidy(axes)
    axes.grid(visible=False, axis="x")
    return figure


def heldout(losses: Mapping[str, float]) -> Any | None:
    """One bar a network: its held-out MLM loss in nats a masked token."""
    if not losses:
        return None
    names, values = list(losses), list(losses.values())
    colours = _colours(names)
    figure = _figure(width=7.0, height=1.5 + 0.55 * len(names))
    axes = figure.add_subplot()
    bars = axes.barh([NETWORKS.get(name, name) for name in names], values, 0.62, color=[colours[n] for n in names])
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.set_xlim(0, 1.14 * max(*values, 1e-12))
    axes.invert_yaxis()
    axes.set_xlabel("held-out masked-LM loss (nats per masked token; lower is better)")
    _tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def _save(figure: Any, path: epath.PathLike) -> epath.Path:
    """Writes the figure as a PNG, locally or into a bucket; returns the path."""
    target, buffer = epath.Path(path), io.BytesIO()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(buffer, format="png", dpi=150)
    target.write_bytes(buffer.getvalue())
    return target


def _draw_curve(axes: Any, points: Sequence[tuple[int, float]], colour: str, label: str) -> None:
    steps, losses = (np.array(column, dtype=np.float64) for column in zip(*sorted(points)))
    if len(steps) <= _LONG:
        axes.plot(steps, losses, color=colour, label=label, linewidth=1.6,
                  marker="o" if len(steps) < 3 else None, markersize=4)
        return
    # Means of _LONG equal groups; behind them the least and greatest of each, so that a spike is not averaged away.
    groups = [np.array_split(column, _LONG) for column in (steps, losses)]
    middle = [part.mean() for part in groups[0]]
    axes.fill_between(middle, [part.min() for part in groups[1]], [part.max() for part in groups[1]], color=colour,
                      alpha=0.18, linewidth=0)
    axes.plot(middle, [part.mean() for part in groups[1]], color=colour, label=label, linewidth=1.6)


def _colours(networks: Sequence[str]) -> dict[str, str]:
    others = [name for name in dict.fromkeys(networks) if name not in _COLOURS]
    return _COLOURS | {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)}


def _figure(width: float, height: float) -> Any:
    """A figure outside pyplot: nothing global is touched and nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def _thousands(value: float, _: int) -> str:
    """120000 -> "120k"."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


def _networks(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The networks that have numbers, the known ones in reading order first."""
    found = {name: row for name, row in (results.get("networks") or {}).items() if row}
    return {name: found[name] for name in sorted(found, key=lambda n: [*NETWORKS, n].index(n))}


def _losses(results: Mapping[str, Any]) -> dict[str, float]:
    """Held-out MLM losses of the networks that have one."""
    every = {name: _finite(row.get("mlm_loss")) for name, row in _networks(results).items()}
    return {name: loss for name, loss in every.items() if loss is not None}


def _layers(results: Mapping[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """By stage, (layer, loss before, loss after) for every layer that has both. `results["transfer"]` holds the
    layers of one stage or, by name, those of several."""
    transfer = results.get("transfer") or {}
    found: dict[str, list[tuple[int, float, float]]] = {}
    for stage, page in ({"transfer": transfer} if "layers" in transfer else transfer).items():
        for number, row in enumerate(page.get("layers") or []):
            before, after = (_finite((row.get(when) or {}).get("loss")) for when in ("before", "after"))
            if before is not None and after is not None:
                found.setdefault(stage, []).append((int(row.get("layer", number)), before, after))
    return found


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _table(corner: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    """Rows by name under the titles of `columns` (key, title, format), without the columns that nobody has."""
    columns = [c for c in columns if any(_finite(row.get(c[0])) is not None for row in rows.values())]
    cells = [[corner, *(title for _, title, _ in columns)]]
    for name, row in rows.items():
        numbers = [(_finite(row.get(key)), form) for key, _, form in columns]
        cells.append([name, *("-" if number is None else form.format(number) for number, form in numbers)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _flat(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_flat, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """JSON-ready: NumPy and JAX scalars as numbers, arrays as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)

"""The figures of a run: loss by stage, transfer loss by layer, held-out loss by network. Called by
`report`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

# How networks are called in print; others go by their own name.
NETWORKS = {
    "teacher": "teacher",
    "student": "student",
    "copied_start": "copied start",
    "random_start": "random start",
}
# A network has the same colour in every plot; the palette is safe for colour-blind readers.
_COLOURS = {
    "teacher": "#555555",
    "student": "#0072B2",
    "copied_start": "#E69F00",
    "random_start": "#CC79A7",
}
_OTHER_COLOURS = ("#009E73", "#D55E00", "#56B4E9", "#8B6F47")
_BEFORE, _AFTER = "#BBBBBB", "#0072B2"
_LONG = 150  # more points than this: a line of means over the range of what they average
_WIDE = 20.0  # values that span more than this factor go on a logarithmic axis


def loss_by_stage(metrics: Sequence[Mapping[str, Any]], order: Sequence[str] = ()) -> Any | None:
    """One panel a stage, one line a network: `loss` over steps from the lines of `metrics.jsonl`.

    `order`: stages in reading order; those it does not name follow in the order of their lines.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in metrics:
        if line.get("loss") is not None and math.isfinite(line["loss"]):
            networks = curves.setdefault(line["stage"], {})
            networks.setdefault(line.get("network", "student"), []).append(
                (line["step"], line["loss"])
            )
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
    """Two bars a layer: its transfer loss before and after its phase. `layers`: (layer, before,
    after)."""
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
            axes.annotate(
                change,
                (position, max(low, high)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9 if len(layers) <= 12 else 8,
                color="#333333",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    axes.set_xticks(positions, [str(layer) for layer, _, _ in layers])
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xlabel("layer (0 is next to the embeddings)")
    axes.set_ylabel(f"transfer loss of the layer{scale}")
    axes.legend(frameon=False, loc="upper right", ncols=2)
    _tidy(axes)
    axes.grid(visible=False, axis="x")
    return figure


def heldout(
    numbers: Mapping[str, float],
    label: str = "held-out masked-LM loss (nats per masked token; lower is better)",
) -> Any | None:
    """One bar a network: `numbers` by network, of which `label` says what they are."""
    if not numbers:
        return None
    names, values = list(numbers), list(numbers.values())
    colours = _colours(names)
    figure = _figure(width=7.0, height=1.5 + 0.55 * len(names))
    axes = figure.add_subplot()
    bars = axes.barh(
        [NETWORKS.get(name, name) for name in names],
        values,
        0.62,
        color=[colours[n] for n in names],
    )
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.set_xlim(0, 1.14 * max(*values, 1e-12))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    _tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def search(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Fitness over generations: every candidate a point, the mean of each generation, the best so far; from
    the lines of a search."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(width=7.0, height=4.0)
    axes = figure.add_subplot()
    numbers = sorted({line["generation"] for line in lines})
    groups = [[line["fitness"] for line in lines if line["generation"] == n] for n in numbers]
    for number, group in zip(numbers, groups):
        label = "a candidate" if number == numbers[0] else None
        axes.scatter([number] * len(group), group, 22, color=_BEFORE, label=label, zorder=2)
    means = [sum(group) / len(group) for group in groups]
    best = np.maximum.accumulate([max(group) for group in groups])
    axes.plot(numbers, means, color=_OTHER_COLOURS[1], marker="o", markersize=4, label="mean")
    axes.plot(numbers, best, color=_AFTER, marker="o", markersize=4, label="best so far")
    axes.set_xlabel("generation")
    axes.set_ylabel("fitness (higher is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    return figure


def layer_map(followed: Sequence[int], teacher: int) -> Any:
    """Which of `teacher` layers each layer of a student follows, from 0; -1: none."""
    figure = _figure(width=3.6, height=1.2 + 0.36 * max(teacher, len(followed)))
    axes = figure.add_subplot()
    # Both stacks fill the height, the first layer at the bottom.
    heights = [[(i + 0.5) / depth for i in range(depth)] for depth in (teacher, len(followed))]
    sides = ((0.0, "teacher", set(followed)), (1.0, "student", None))
    for (x, name, used), column in zip(sides, heights):
        for layer, y in enumerate(column):
            linked = layer in used if used is not None else followed[layer] >= 0
            axes.text(
                x, y, str(layer), ha="center", va="center", color="white" if linked else "#555555",
                bbox={"boxstyle": "round,pad=0.35", "fc": _AFTER if linked else "#EEEEEE", "ec": "none"},
            )  # fmt: skip
        axes.text(x, 1.04, name, ha="center", va="bottom", fontweight="bold")
    for layer, at in enumerate(followed):
        if at >= 0:
            ends = heights[1][layer], heights[0][at]
            axes.plot([0.9, 0.1], ends, color=_AFTER, linewidth=1.6, zorder=0)
    axes.set_xlim(-0.25, 1.25)
    axes.set_ylim(0, 1.12)
    axes.axis("off")
    return figure


def save(figure: Any, path: epath.PathLike) -> epath.Path:
    """Writes the figure as a PNG, locally or into a bucket; returns the path."""
    target, buffer = epath.Path(path), io.BytesIO()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(buffer, format="png", dpi=150)
    target.write_bytes(buffer.getvalue())
    return target


def _draw_curve(axes: Any, points: Sequence[tuple[int, float]], colour: str, label: str) -> None:
    steps, losses = (np.array(column, dtype=np.float64) for column in zip(*sorted(points)))
    if len(steps) <= _LONG:
        axes.plot(
            steps,
            losses,
            color=colour,
            label=label,
            linewidth=1.6,
            marker="o" if len(steps) < 3 else None,
            markersize=4,
        )
        return
    # Means of _LONG equal groups; behind them the least and greatest of each, so that a spike is
    # not averaged away.
    groups = [np.array_split(column, _LONG) for column in (steps, losses)]
    middle = [part.mean() for part in groups[0]]
    axes.fill_between(
        middle,
        [part.min() for part in groups[1]],
        [part.max() for part in groups[1]],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )
    axes.plot(middle, [part.mean() for part in groups[1]], color=colour, label=label, linewidth=1.6)


def _colours(networks: Sequence[str]) -> dict[str, str]:
    others = [name for name in dict.fromkeys(networks) if name not in _COLOURS]
    return _COLOURS | {
        name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)
    }


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

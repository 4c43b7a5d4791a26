"""The figures of a comparison, in the colours of the report's charts."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from fedmed_simulations.compare.columns import (
    COLUMNS,
    FALSE_TAIL,
    HEAD,
    LOWER_IS_BETTER,
    MEAN,
    MEDIUM,
    TAIL,
    WORST,
)
from fedmed_simulations.compare.results import Results

_INK, _MUTED, _RULE = "#1a2330", "#5b6673", "#e2e6ea"
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b5578f", "#b87d00", "#3f97cf", "#6a51a3", "#7f5a3a", "#a9b2bb")
_SHADES = {HEAD: "#d8ebe9", MEDIUM: "#f1f4f6", TAIL: "#fdeed3"}
_FOREST = (MEAN, HEAD, TAIL, WORST, FALSE_TAIL)


def draw(found: Results) -> dict[str, bytes]:
    """PNGs by name: ``differences``, ``classes`` and, where the task has false positives, ``tail``."""
    pictures = {"differences": _forest(found), "classes": _bars(found)}
    if TAIL in found.columns and FALSE_TAIL in found.columns:
        pictures["tail"] = _scatter(found)
    return pictures


def _colours(found: Results) -> dict[str, str]:
    """A colour for each competitor, the same in all figures; beyond the palette grey."""
    last = len(_PALETTE) - 1
    return {name: _PALETTE[min(place, last)] for place, name in enumerate(found.points)}


def _forest(found: Results) -> bytes:
    """Differences to the reference: one panel a column, one line a competitor."""
    shown = [column for column in _FOREST if column in found.columns]
    names = list(found.differences)
    canvas = Canvas(figsize=(2.4 + 2.3 * len(shown), 1.5 + 0.42 * len(names)), dpi=130, layout="constrained")
    panels = np.atleast_1d(canvas.subplots(1, len(shown), sharey=True))
    colours = _colours(found)
    for axes, column in zip(panels, shown, strict=True):
        axes.axvline(0.0, color=_MUTED, linewidth=1)
        for place, name in enumerate(names):
            interval = found.differences[name][column]
            if math.isfinite(interval.low):
                axes.plot((interval.low, interval.high), (place, place), color=colours[name], linewidth=2.2)
            axes.plot(interval.value, place, marker="o", markersize=6, color=colours[name])
        better = "left" if column in LOWER_IS_BETTER else "right"
        axes.set_title(f"{_named(column)}\n(better: {better})", fontsize=10, color=_INK)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        _plain(axes, grid="x")
    panels[0].set_yticks(range(len(names)), names, fontsize=10)
    canvas.supxlabel(f"difference to {found.reference}, 95 % interval", fontsize=10, color=_INK)
    return _png(canvas)


def _bars(found: Results) -> bytes:
    """The leading metric by class, classes by frequency, head, medium and tail shaded."""
    ordered = [(group, name) for group in (HEAD, MEDIUM, TAIL) for name in _by_frequency(found, group)]
    names, colours = list(found.points), _colours(found)
    canvas = Canvas(figsize=(max(5.5, 2.0 + 0.95 * len(ordered)), 4.6), dpi=130, layout="constrained")
    axes = canvas.subplots()
    first = 0
    for group in (HEAD, MEDIUM, TAIL):
        size = len(_by_frequency(found, group))
        if size:
            axes.axvspan(first - 0.5, first + size - 0.5, color=_SHADES[group], zorder=-1)
            axes.text(
                first + (size - 1) / 2,
                1.01,
                group,
                ha="center",
                transform=axes.get_xaxis_transform(),
                color=_MUTED,
            )
        first += size
    width = 0.84 / len(names)
    for place, name in enumerate(names):
        heights = [found.by_class[name][found.classes.names.index(klass)] for _, klass in ordered]
        left = np.arange(len(ordered)) - 0.42 + (place + 0.5) * width
        axes.bar(left, np.nan_to_num(heights), width=width * 0.92, color=colours[name], label=name, zorder=2)
    labels = [f"{klass}\n({found.presence[klass]:g})" for _, klass in ordered]
    axes.set_xticks(range(len(ordered)), labels, fontsize=9, rotation=35 if len(ordered) > 6 else 0)
    axes.set_xlim(-0.5, len(ordered) - 0.5)
    axes.set_ylabel(f"{found.classes.lead.title}, mean over seeds")
    axes.set_xlabel("class (training patients who show it)")
    _plain(axes, grid="y")
    canvas.legend(loc="outside upper center", ncols=min(5, len(names)), frameon=False, fontsize=9)
    return _png(canvas)


def _scatter(found: Results) -> bytes:
    """Tail score against the rate of false positives of the tail classes; each seed small, the mean large."""
    canvas = Canvas(figsize=(6.4, 4.6), dpi=130, layout="constrained")
    axes, colours = canvas.subplots(), _colours(found)
    for name, columns in found.points.items():
        wrong, right = columns[FALSE_TAIL], columns[TAIL]
        if not (np.isfinite(wrong).any() and np.isfinite(right).any()):
            continue
        axes.plot(wrong, right, linestyle="", marker="o", markersize=4, alpha=0.35, color=colours[name])
        axes.plot(
            np.nanmean(wrong),
            np.nanmean(right),
            marker="o",
            markersize=10,
            linestyle="",
            color=colours[name],
            label=name,
        )
    axes.set_xlabel("false positives of tail classes (share of patients without it; better: left)")
    axes.set_ylabel(f"{found.classes.lead.title} of tail classes (better: up)")
    _plain(axes, grid="both")
    canvas.legend(loc="outside right upper", frameon=False, fontsize=9)
    return _png(canvas)


def _by_frequency(found: Results, group: str) -> list[str]:
    return sorted(found.classes.groups.get(group, ()), key=lambda name: -found.presence[name])


def _named(column: str) -> str:
    return "tail false positives" if column == FALSE_TAIL else COLUMNS[column]


def _plain(axes: Axes, *, grid: Literal["both", "x", "y"]) -> None:
    axes.grid(axis=grid, color=_RULE, linewidth=1, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_RULE)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, length=0)


def _png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()

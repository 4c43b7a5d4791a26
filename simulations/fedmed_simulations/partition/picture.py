"""A picture of a split: who has what, how large the sites are, and how long the tail is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fedmed_server.report import Figure
from fedmed_simulations.partition.counts import Counts

_INK, _MUTED, _RULE, _ACCENT = "#1a2330", "#5b6673", "#e2e6ea", "#0b6e69"
_SHADES = LinearSegmentedColormap.from_list("split", ["#eef5f4", "#0b5d59"])
_SPLIT_COLOURS = ("#0b6e69", "#7fb5b1", "#c9d3d9")
_POOL = "#dfe6ea"
_HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": _MUTED, "hatch": "////", "linewidth": 0}
_FRAMED: dict[str, Any] = {"facecolor": "white", "edgecolor": "#a8201a", "linewidth": 1.2}
_AIMED: dict[str, Any] = {"color": "#d55e00", "marker": "o", "markersize": 4, "linewidth": 1.4}
_MOST_NUMBERED = 40
"""Sites up to which each cell has its number, and each row its name."""


def split_figure(counts: Counts) -> Figure:
    """The picture with its words, for a report. It has numbers of patients however few they are, and stays on this machine."""
    left_out = (
        f" {counts.left_out} training patients are left out for the long tail." if counts.left_out else ""
    )
    return Figure(
        title="Who has what",
        caption=(
            "Training patients by site and class. Hatched: the site does not annotate the class. Framed: vacant, whoever "
            f"shows it was dealt to other sites.{left_out}{''.join(f' {sentence}' for sentence in counts.told)}"
        ),
        png=draw_split(counts),
    )


def draw_split(counts: Counts) -> bytes:
    """The picture as PNG: sites by classes in numbers of training patients, sizes of sites beside, the tail below."""
    sites, classes = counts.shows.shape
    longest = max(map(len, counts.sites)) if sites <= _MOST_NUMBERED else 4
    width = min(20.0, 5.4 + 0.1 * longest + max(3.2, 0.72 * classes))
    rows = min(12.0, max(1.5, 0.34 * sites))
    canvas = Canvas(figsize=(width, rows + 4.6), dpi=110, layout="constrained")
    grid = canvas.add_gridspec(2, 2, width_ratios=(max(3.2, 0.72 * classes), 3.0), height_ratios=(rows, 2.2))
    heat = canvas.add_subplot(grid[0, 0])
    _draw_heat(heat, counts)
    _draw_sizes(canvas.add_subplot(grid[0, 1]), counts)
    _draw_tail(canvas.add_subplot(grid[1, :]), counts)
    canvas.get_layout_engine().set(h_pad=0.14)  # type: ignore[union-attr,call-arg]
    canvas.legend(
        handles=_legend(counts),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=10,
        labelcolor=_INK,
    )
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_heat(axes: Axes, counts: Counts) -> None:
    sites, classes = counts.shows.shape
    most = max(1, int(counts.shows.max(initial=1)))
    shade = np.sqrt(counts.shows / most)
    axes.imshow(shade, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    numbered = sites <= _MOST_NUMBERED
    unknown, vacant = ~counts.annotated, counts.annotated & counts.vacant
    cells = [Rectangle((k - 0.5, site - 0.5), 1, 1) for site, k in np.argwhere(unknown)]
    axes.add_collection(PatchCollection(cells, **_HATCHED))
    inner = [Rectangle((k - 0.42, site - 0.38), 0.84, 0.76) for site, k in np.argwhere(vacant)]
    axes.add_collection(PatchCollection(inner, **_FRAMED))
    for site, k in np.argwhere(counts.annotated) if numbered else ():
        colour = "white" if shade[site, k] > 0.6 else _INK
        axes.text(k, site, str(counts.shows[site, k]), ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(
        range(classes),
        counts.classes,
        rotation=30 if classes > 3 else 0,
        ha="right" if classes > 3 else "center",
    )
    _name_sites(axes, counts)
    axes.set_xticks(np.arange(-0.5, classes), minor=True)
    if numbered:
        axes.set_yticks(np.arange(-0.5, sites), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    _plain(axes, "Training patients who show the class")


def _draw_sizes(axes: Axes, counts: Counts) -> None:
    sites = len(counts.sites)
    start = np.zeros(sites)
    for colour, sizes in zip(_SPLIT_COLOURS, counts.sizes.T, strict=True):
        if sites <= _MOST_NUMBERED:
            axes.barh(range(sites), sizes, left=start, height=0.72, color=colour)
        else:
            axes.fill_betweenx(range(sites), start, start + sizes, step="mid", color=colour, linewidth=0)
        start += sizes
    if sites <= _MOST_NUMBERED:
        for site in range(sites):
            told = " / ".join(map(str, counts.sizes[site]))
            axes.text(start[site] + 0.02 * start.max(), site, told, va="center", color=_MUTED, fontsize=9)
    axes.set_ylim(sites - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlim(0, start.max() * 1.45)
    axes.set_xticks([])
    _plain(axes, "Patients: train / validation / test")


def _draw_tail(axes: Axes, counts: Counts) -> None:
    """Classes by their number in the pool, or in all sites: what there is, what trains, what was aimed at."""
    order = np.argsort(-counts.everyone, kind="stable")
    places, trains = range(len(order)), counts.shows.sum(axis=0)[order]
    everyone = counts.everyone[order]
    aims = everyone if counts.aims is None else counts.aims[order]
    if (everyone != trains).any():
        axes.bar(places, everyone, width=0.72, color=_POOL)
    axes.bar(places, trains, width=0.46, color=_ACCENT)
    lift = 0.02 * max(1, int(everyone.max()))
    for place, there, used, aim in zip(places, everyone, trains, aims, strict=True):
        told = str(used) if used == there else f"{used} of {there}"
        axes.text(place, max(there, aim) + lift, told, ha="center", va="bottom", color=_INK, fontsize=10)
    if counts.aims is not None:
        axes.plot(places, aims, **_AIMED)
    axes.set_xticks(places, [counts.classes[k] for k in order])
    if len(order) > 6:
        axes.tick_params(axis="x", rotation=30)
    axes.set_ylim(0, max(1, int(everyone.max())) * 1.18)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.yaxis.grid(visible=True, color=_RULE)
    axes.set_axisbelow(True)
    _plain(axes, "All sites: training patients by class")


def _legend(counts: Counts) -> list[Artist]:
    """What is in this picture, and nothing else."""
    entries: list[Artist] = []
    if not counts.annotated.all():
        entries.append(Patch(**_HATCHED, label="not annotated"))
    if counts.vacant.any():
        entries.append(Patch(**_FRAMED, label="vacant: dealt to other sites"))
    if (counts.everyone != counts.shows.sum(axis=0)).any():
        entries.append(Patch(color=_POOL, label="training patients of the pool"))
        entries.append(Patch(color=_ACCENT, label="those who train, with the class annotated"))
    if counts.aims is not None:
        entries.append(Line2D([], [], **_AIMED, label="the long tail that was asked for"))
    return entries


def _name_sites(axes: Axes, counts: Counts) -> None:
    if len(counts.sites) <= _MOST_NUMBERED:
        axes.set_yticks(range(len(counts.sites)), counts.sites)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(counts.sites)} sites", color=_MUTED)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.tick_params(which="both", length=0, colors=_MUTED, labelsize=10)
    for side in axes.spines.values():
        side.set_visible(False)

"""What was measured beside the peers, as figures, a table and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pages
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

BARE, OURS, OURS_SEVERAL = "plain loop", "fedmed, inline", "fedmed, process"
NAME = "simulators"
ROUNDING = 10.0
"""Weights that differ from the plain loop's may be so many times as far from them as those of a plain loop that adds the sites
backwards. That one is no less right: what is between the two is rounding alone, which each further step makes larger."""
QUIET = 0.05
"""A machine of which others have less is idle."""
_COLOURS = {"fedmed": "#c1440e", "plain": "#555555"}
_OTHERS = "#2a6f97"


@dataclass(kw_only=True)
class Found:
    """What one way took, by repeat. ``apart``: how far its weights were from the plain loop's at most, over how far training
    moved those; ``problem``: why there is nothing."""

    label: str
    name: str
    at_once: int
    seconds: list[float] = field(default_factory=list)
    seconds_in_rounds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    apart: float = 0.0
    problem: str = ""


Rows = Sequence[Mapping[str, Any]]


def judged(apart: float, rounding: float) -> str:
    """Whether weights are the plain loop's; 'differ' is a failure."""
    if apart == 0:
        return "bit-identical"
    return "equal but for rounding" if apart <= ROUNDING * rounding else "differ"


def is_right(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every way that gave weights gave the plain loop's."""
    return all(
        judged(row["apart"], result["rounding"]) != "differ"
        for result in results
        for row in result["rows"]
        if row["seconds"]
    )


def write_page(results: Sequence[Mapping[str, Any]], *, kept: bool) -> bool:
    """Print the page and, where it is ``kept``, write it beside its figures and plot; whether all weights are right."""
    name = pages.dated(NAME)
    lines = _lines(results, name)
    print("\n".join(lines))
    if kept:
        document = {
            "date": datetime.now(UTC).date().isoformat(),
            "made_by": pages.made_by(),
            "results": results,
        }
        (pages.HERE / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        _plot(results, pages.HERE / f"{name}.png")
        pages.write(name, lines)
    return is_right(results)


def _lines(results: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    lines = [
        f"# The same federated averaging by others, {datetime.now(UTC):%Y-%m-%d}",
        "",
        pages.made_by(),
        "",
        f"![seconds of each]({name}.png)",
        "",
        "Each is a process of its own, all in turn, medians over the repeats; one thread a site. *Start to end* is the whole "
        "command: imports, the framework's start, the rounds, its end; fedmed's is `fedmed simulate`, with its checks, MLflow "
        "and the report. *In rounds* is from the start of the first round until the last round's model is there, in fedmed's "
        "and NVFlare's case on disk. *Beside fedmed* is the median of the ratios within a repeat, to the inline engine where "
        "one site trains at a time, to the process engine where several do: 2.00 took twice as long. *CPU* is the work of all "
        "its processes that was seen, which a busy machine changes less than the clock. Memory is what they held together at "
        "most, seen twice a second, shared pages counted once.",
        "",
        told_of_others(share for result in results for row in result["rows"] for share in row["others"]),
        "",
    ]
    for result in results:
        lines += _table(result)
    lines += ["Versions: " + "; ".join(_versions(results)) + ".", ""]
    return lines


def told_of_others(shares: Iterable[float]) -> str:
    """Whether the machine was ours."""
    share = statistics.median(list(shares) or [0.0])
    rough = ": the times are rough" if share > QUIET else ""
    return f"Other programs had {share:.0%} of the machine's cores meanwhile (median){rough}."


def _table(result: Mapping[str, Any]) -> list[str]:
    rows: Rows = result["rows"]
    alone, several = (next(row for row in rows if row["name"] == name) for name in (OURS, OURS_SEVERAL))
    lines = [
        f"## {result['sites']} sites, {result['rounds']} rounds of {result['steps']} steps, {result['parameters']:,} parameters",
        "",
        "| | at once | start to end, s | beside fedmed | in rounds, s | beside fedmed | CPU, s | memory, MB | weights | runs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["seconds"]:
            lines.append(_row(row, alone if row["at_once"] == 1 else several, result["rounding"]))
    lines += [
        "",
        "Weights are compared with the plain loop's: the distance over how far training moved them. A plain loop that adds the "
        f"sites in the reverse order is {result['rounding']:.1e} away; up to {ROUNDING:g} times that passes for rounding.",
        "",
    ]
    for row in rows:
        if row["problem"]:
            lines += [f"{row['label']}, {len(row['seconds'])} runs:", "", "```", row["problem"], "```", ""]
    return lines


def _row(row: Mapping[str, Any], ours: Mapping[str, Any], rounding: float) -> str:
    apart = f" ({row['apart']:.1e})" if row["apart"] else ""
    cells = [
        row["name"],
        str(row["at_once"]),
        f"{statistics.median(row['seconds']):.1f}",
        _ratio(row, ours, "seconds"),
        f"{statistics.median(row['seconds_in_rounds']):.1f}",
        _ratio(row, ours, "seconds_in_rounds"),
        f"{statistics.median(row['cpu_seconds']):.1f}",
        f"{statistics.median(row['peak_mb']):.0f}",
        judged(row["apart"], rounding) + apart,
        str(len(row["seconds"])),
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(row: Mapping[str, Any], ours: Mapping[str, Any], what: str) -> str:
    """Over the repeats that both have."""
    ratios = [theirs / own for theirs, own in zip(row[what], ours[what], strict=False)]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def _versions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    told = {}
    for result in results:
        for row in result["rows"]:
            if row["versions"]:
                name = row["name"] if not row["name"].startswith("fedmed") else "fedmed"
                told[name] = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
    return [f"{name}: {versions}" for name, versions in told.items()]


def _plot(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Seconds on a logarithmic axis: filled in rounds, hollow from start to end; a panel for each number of sites."""
    mpl.use("agg")
    heights = [len([row for row in result["rows"] if row["seconds"]]) for result in results]
    figure = Figure(figsize=(8.0, 0.9 * len(results) + 0.36 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, result in zip(axes, results, strict=True):
        _panel(axis, result)
    axes[-1].set_xlabel("seconds; filled: in rounds, hollow: start to end")
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _panel(axis: Axes, result: Mapping[str, Any]) -> None:
    rows = [row for row in result["rows"] if row["seconds"]]
    for place, row in enumerate(rows):
        colour = _COLOURS.get(row["name"].partition(",")[0].partition(" ")[0], _OTHERS)
        inside, whole = statistics.median(row["seconds_in_rounds"]), statistics.median(row["seconds"])
        axis.plot([inside, whole], [place, place], color=colour, linewidth=1.5, zorder=1)
        axis.scatter([inside], [place], color=colour, s=45, zorder=2)
        axis.scatter([whole], [place], facecolor="white", edgecolor=colour, s=45, zorder=2)
        axis.annotate(
            f"{inside:.1f}",
            (inside, place),
            (-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            size=8,
        )
        axis.annotate(
            f"{whole:.1f}", (whole, place), (7, 0), textcoords="offset points", ha="left", va="center", size=8
        )
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(
        f"{result['sites']} sites, {result['rounds']} rounds of {result['steps']} steps", loc="left", size=10
    )
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)

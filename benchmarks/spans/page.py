"""A deployed round beside others, and where its time goes, as a page and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import pages
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from peers.page import told_of_others
from spans.reading import Round, parts, timeline

from fedmed_common.processes import cores

NAME = "deployed_round"
FACTOR, SPARE_SECONDS = 2.0, 2.0
"""The bar: so many times the plain transfer, and so much more."""
_COLOURS = {
    "push an order": "#9ecae1",
    "fetch the order": "#2a6f97",
    "look for a sealed reply": "#e6c229",
    "train": "#c1440e",
    "seal": "#5b8e3e",
    "between link and worker": "#bbbbbb",
    "announce the reply": "#d98cb3",
    "upload the reply": "#7a4fa3",
    "pull a reply": "#b39ddb",
    "gate": "#8d6e63",
    "add": "#f4a582",
    "new parameters": "#f4a582",
    "checkpoint": "#a1d99b",
}


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What a consortium's run took. ``peak_mb``: by role, the most that one such process held."""

    rounds: tuple[Round, ...]
    peak_mb: dict[str, float]

    @property
    def counted(self) -> tuple[Round, ...]:
        """Those after the first, if there are any."""
        return self.rounds[1:] or self.rounds


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What else was measured, in seconds. ``size``: bytes of the model; ``plain``: its transfer to ``sites`` clients and back, by
    the way; ``disk``: writing as many models; ``nvflare``: its rounds, or why there are none."""

    sites: int
    size: int
    plain: Mapping[str, Sequence[float]]
    disk: Sequence[float]
    nvflare: Sequence[float] | str


def page(beside: Beside, found: Deployed) -> list[str]:
    """The day's page."""
    rounds = found.counted
    return [
        f"# A deployed round of a large model, {datetime.now(UTC):%Y-%m-%d}",
        "",
        pages.made_by(),
        "",
        f"{beside.size / 1e6:.0f} MB of float32 to each of {beside.sites} sites and back, {beside.size // 4:,} parameters, on "
        "loopback. A round is from its start until its checkpoint is on disk; the first of each, which warms up, is named and "
        "does not count. NVFlare's clients train nothing and keep nothing; fedmed's sites take one step, and write their "
        "replies to disk before they send them.",
        "",
        told_of_others(one.others for one in rounds),
        "",
        *_beside(beside, found),
        *_where(found, rounds),
    ]


def _beside(beside: Beside, found: Deployed) -> Iterator[str]:
    """The table, and the bar."""
    yield from ("| | seconds | all of them |", "|---|---|---|")
    for way, seconds in beside.plain.items():
        yield _line(f"plain transfer over {way}, both ways", seconds, seconds)
    yield _line(f"writing {beside.sites} models to this disk, synced", beside.disk, beside.disk)
    name = "a round of NVFlare's proof of concept"
    if isinstance(beside.nvflare, str):
        yield f"| {name} | did not run: {beside.nvflare.splitlines()[-1]} | |"
    else:
        yield _line(name, beside.nvflare, beside.nvflare[1:] or beside.nvflare)
    each = [one.seconds for one in found.rounds]
    yield _line("a round of fedmed, deployed", each, each[1:] or each)
    beyond = statistics.median(one.seconds - one.training_cpu / cores() for one in found.counted)
    yield f"| the same beyond training | {beyond:.2f} | |"
    bar = FACTOR * min(map(statistics.median, beside.plain.values())) + SPARE_SECONDS
    kept = "it is kept." if beyond <= bar else f"it is missed, by {beyond - bar:.2f} s."
    yield ""
    yield (
        f"Beyond training: less the sites' CPU seconds of training over {cores()} cores, which all share. The bar is {FACTOR:g} "
        f"times the plain transfer and {SPARE_SECONDS:g} s, here {bar:.2f} s: {kept}"
    )
    yield ""


def _line(name: str, each: Sequence[float], counted: Sequence[float]) -> str:
    return (
        f"| {name} | {statistics.median(counted):.2f} | {', '.join(f'{seconds:.2f}' for seconds in each)} |"
    )


def _where(found: Deployed, rounds: Sequence[Round]) -> list[str]:
    """Where fedmed's time goes."""
    lines = [
        "## When, in fedmed's round",
        "",
        f"![a round]({pages.dated(NAME)}.png)",
        "",
        "Seconds after its start, at the first site, the middle one and the last; medians over the rounds that count.",
        "",
        "| | first | middle | last |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {first:.2f} | {middle:.2f} | {last:.2f} |"
        for name, first, middle, last in timeline(rounds)
    ]
    lines += [
        "",
        "## What its processes do",
        "",
        "Calls in a round, the longest, and all of them together: by the clock, and in CPU seconds of the calling thread. A call "
        "can lie within another (`store:` and `database:` within `to a site:` and `to the run:`), and threads wait for each "
        "other. TLS and what is around a call are in the processes' own CPU, below.",
        "",
        "| process | | calls | longest, s | together, s | CPU, s |",
        "|---|---|---|---|---|---|",
    ]
    for role, what, calls, longest, together, cpu in sorted(
        parts(rounds), key=lambda part: (part[0], -part[4])
    ):
        lines.append(f"| {role} | {what} | {calls:.0f} | {longest:.2f} | {together:.2f} | {cpu:.2f} |")
    lines += ["", "| processes | CPU in a round, s | memory of one at most, MB |", "|---|---|---|"]
    for role in rounds[0].cpu:
        cpu = statistics.median(one.cpu[role] for one in rounds)
        lines.append(f"| {role} | {cpu:.2f} | {found.peak_mb.get(role, 0.0):.0f} |")
    whole = statistics.median(sum(one.cpu.values()) for one in rounds)
    share = statistics.median(sum(one.cpu.values()) / (one.seconds * cores()) for one in rounds)
    lines += [
        f"| all | {whole:.2f} | |",
        "",
        f"They had the {cores()} cores busy for {share:.0%} of the round.",
        "",
    ]
    return lines


def plot(one: Round, file: Path) -> None:
    """A round as bars in time: the server above, a lane for each site's link and worker."""
    mpl.use("agg")
    lanes = dict.fromkeys(
        (span.site, span.role) for span in one.spans if span.what in _COLOURS and span.role != "superlink"
    )
    order = sorted(lanes, key=lambda lane: (lane[0] != "", lane))
    figure = Figure(figsize=(11.0, 0.9 + 0.26 * len(order)), layout="constrained")
    axis = figure.subplots()
    for span in one.spans:
        if span.what in _COLOURS and (span.site, span.role) in lanes:
            place = order.index((span.site, span.role))
            axis.barh(
                place,
                span.end - span.start,
                left=span.start - one.start,
                height=0.8,
                color=_COLOURS[span.what],
            )
    axis.set_yticks(range(len(order)), [f"{site} {role}".strip() for site, role in order], size=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds after the round's start")
    shown = {span.what for span in one.spans}
    handles = [Patch(color=colour, label=what) for what, colour in _COLOURS.items() if what in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=7, fontsize=7, frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})

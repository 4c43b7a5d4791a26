"""A deployed round with a large model: what it takes beyond training, beside the plain transfer of the same bytes and beside
NVFlare's proof-of-concept mode with the same model.

Everything is on loopback: fedmed's consortium with its certificates and processes, each site with a link and a worker; NVFlare's
server and clients, which train nothing. fedmed's processes write down what they do when (``spans/sitecustomize.py``): the
page says where a round's time goes.

    python benchmarks/deployed_round.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import pages
from load import Crowd, write_pictures
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from peers.environments import NotInstalled, environment
from peers.measure import adopt, measured
from peers.page import told_of_others
from peers.transfer import WAYS
from spans.reading import HERE as SPANS
from spans.reading import Meter, Round, parts, read, timeline

from fedmed_common import params
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model
from fedmed_common.processes import cores
from fedmed_simulations.rehearsal.consortium import Consortium

NAME = "deployed_round"
EXPERIMENT = """
name = "deployed-round"
seed = 1
rounds = {rounds}
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = [32, 32]
augmentation = "none"
splits = {{ validation = 0.0, test = 0.0 }}
[model]
name = "unet_2015"
channels = {channels}
[train]
steps = 1
batch_size = 1
optimizer = "sgd"
device = "cpu"
threads = 1
[federation]
evaluate_every = {rounds}
deadline_seconds = 3000
roll_call_seconds = 900
"""
FACTOR, SPARE_SECONDS = 2.0, 2.0
"""The bar: so many times the plain transfer, and so much more."""
_AT_ONCE = 4
_TOLD_LINES = 15
_COLOURS = {
    "push an order": "#2a6f97",
    "fetch the order": "#2a6f97",
    "between link and worker": "#bbbbbb",
    "look for a sealed reply": "#d9a404",
    "train": "#c1440e",
    "seal": "#5b8e3e",
    "announce the reply": "#d9a404",
    "upload the reply": "#7a4fa3",
    "pull a reply": "#7a4fa3",
    "gate": "#d9a404",
    "add": "#c1440e",
    "new parameters": "#c1440e",
    "checkpoint": "#5b8e3e",
}


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What a consortium's run took. ``peak_mb``: by role, the most that one such process held."""

    rounds: tuple[Round, ...]
    peak_mb: dict[str, float]


def deployed(folder: Path, experiment: Path, options: argparse.Namespace) -> Deployed:
    """Found a consortium, run the experiment through it, and read what its processes wrote down."""
    names = [f"site-{number}" for number in range(1, options.sites + 1)]
    spans = folder / "spans"
    spans.mkdir()
    for number, name in enumerate(names):
        write_pictures(folder / "federation" / name, number)
    paths = os.pathsep.join([str(SPANS), *filter(None, [os.environ.get("PYTHONPATH")])])
    watched = {"PYTHONPATH": paths, "FEDMED_SPANS": str(spans), "OMP_NUM_THREADS": "1"}
    with Crowd(folder / "consortium", names, watched) as consortium, Meter(lambda: pids(consortium)) as meter:
        consortium.found(folder / "federation")
        consortium.start_server()
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            for name in some:
                consortium.start_site(name)
            consortium.wait_connected(some, seconds=600.0)
        run = consortium.launch(experiment)
        ended = consortium.wait_ended(run, seconds=3000.0)
    if ended.status != "completed":
        raise SystemExit(f"the run ended '{ended.status}'")
    return Deployed(rounds=tuple(read(spans, meter)), peak_mb=meter.peak_mb)


def pids(consortium: Consortium) -> dict[str, list[int]]:
    """The consortium's processes by role."""
    found = {role: [consortium.pid(consortium.server, role)] for role in ("superlink", "serverapp")}
    found |= {
        role: [consortium.pid(consortium.site(name), role) for name in consortium.names]
        for role in ("link", "worker")
    }
    return {role: [pid for pid in some if pid] for role, some in found.items()}


def transfer(folder: Path, way: str, sites: int, size: int) -> float:
    """The seconds of a plain transfer."""
    script = [sys.executable, str(Path(__file__).parent / "peers" / "transfer.py"), way]
    found = measured(
        [*script, "--clients", str(sites), "--bytes", str(size)], {}, folder / "transfer.log", 1200.0
    )
    if found.code != 0:
        raise SystemExit(found.log)
    return float(found.log)


def nvflare(folder: Path, options: argparse.Namespace) -> list[float]:
    """The seconds of the rounds in NVFlare's proof-of-concept mode.

    Raises:
        NotInstalled: or it did not run, in its own words.
    """
    script, out = Path(__file__).parent / "peers" / "nvflare_poc.py", folder / "nvflare"
    sizes = ["--clients", str(options.sites), "--rounds", str(options.rounds)]
    command = [str(environment("nvflare").python), str(script), str(out), *sizes]
    command += ["--channels", *map(str, options.channels)]
    variables = {"PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": "1"}
    found = measured(command, variables, folder / "nvflare.log", 1800.0)
    if found.code != 0:
        raise NotInstalled("\n".join(found.log.splitlines()[-_TOLD_LINES:]))
    seconds: list[float] = json.loads((out / "rounds.json").read_text())
    return seconds


def page(
    plain: Mapping[str, Sequence[float]], theirs: Sequence[float] | str, found: Deployed, size: int
) -> list[str]:
    """The day's page. ``theirs``: seconds of NVFlare's rounds, or why there are none."""
    rounds = found.rounds[1:] or found.rounds
    whole = statistics.median(one.seconds for one in rounds)
    beyond = statistics.median(one.seconds - one.training_cpu / cores() for one in rounds)
    least = min(map(statistics.median, plain.values()))
    bar = FACTOR * least + SPARE_SECONDS
    lines = [
        f"# A deployed round of a large model, {datetime.now(UTC):%Y-%m-%d}",
        "",
        pages.made_by(),
        "",
        f"{size / 1e6:.0f} MB of float32 to each site and back, {size // 4:,} parameters, all on loopback. A round is from its "
        "start until its checkpoint is on disk; the first of each, which warms up, is named and does not count.",
        "",
        told_of_others(one.others for one in rounds),
        "",
        "| | seconds of a round | all of them |",
        "|---|---|---|",
    ]
    for way, seconds in plain.items():
        lines.append(_line(f"plain transfer over {way}, both ways", seconds, statistics.median(seconds)))
    if isinstance(theirs, str):
        lines.append(
            f"| NVFlare's proof of concept, nothing trained | did not run: {theirs.splitlines()[-1]} | |"
        )
    else:
        counted = theirs[1:] or theirs
        lines.append(_line("NVFlare's proof of concept, nothing trained", theirs, statistics.median(counted)))
    lines += [
        _line("fedmed, deployed", [one.seconds for one in found.rounds], whole),
        f"| fedmed beyond training | {beyond:.2f} | |",
        "",
        f"Beyond training: less the sites' CPU seconds of training over {cores()} cores, which all share. The bar is {FACTOR:g} "
        f"times the plain transfer and {SPARE_SECONDS:g} s, here {bar:.2f} s: "
        + ("it is kept." if beyond <= bar else f"it is missed, by {beyond - bar:.2f} s."),
        "",
    ]
    return lines + _where(found, rounds)


def _line(name: str, each: Sequence[float], middle: float) -> str:
    return f"| {name} | {middle:.2f} | {', '.join(f'{seconds:.2f}' for seconds in each)} |"


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
        "can lie within another (`store:` within `to a site:` and `to the run:`), and threads wait for each other. Signing "
        "requests and TLS are in the processes' own CPU, below.",
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


def main() -> None:
    """Measure all, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="the first warms up and does not count")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3, help="of the plain transfers")
    parser.add_argument("--only-fedmed", action="store_true", help="without NVFlare, and without a page")
    options = parser.parse_args()
    adopt()
    with tempfile.TemporaryDirectory(prefix="fedmed-round-") as temporary:
        folder = Path(temporary)
        file = folder / "deployed-round.toml"
        file.write_text(EXPERIMENT.format(rounds=options.rounds, channels=options.channels))
        size = sum(array.nbytes for array in params.from_model(build_model(load_experiment(file))).values())
        plain = {
            way: [transfer(folder, way, options.sites, size) for _ in range(options.repeats)] for way in WAYS
        }
        print(f"plain: {plain}", flush=True)
        found = deployed(folder, file, options)
        print(f"fedmed: {[one.seconds for one in found.rounds]}", flush=True)
        theirs: Sequence[float] | str = "left out"
        if not options.only_fedmed:
            try:
                theirs = nvflare(folder, options)
            except NotInstalled as error:
                theirs = str(error)
        lines = page(plain, theirs, found, size)
        print("\n".join(lines))
        if not options.only_fedmed:
            pages.write(pages.dated(NAME), lines)
            plot(found.rounds[-1], pages.HERE / f"{pages.dated(NAME)}.png")


if __name__ == "__main__":
    main()

"""What a round costs beyond training and measuring, over the number of registered sites, at a fixed cohort.

Each roster is drawn from one pool of small pictures, three patients a site, and run by the inline engine: so many rounds with a
cohort that trains and one that measures. Beyond training is a round's time without what its sites say that they took.

    python benchmarks/rosters.py --rosters 10 100 1000 5000 --cohort 10 --rounds 30
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pages import dated, made_by, write
from PIL import Image

from fedmed_client.workbench import COHORTS
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone, RunEnded, RunStarted
from fedmed_server.report import write_report
from fedmed_server.state import CHECKPOINT
from fedmed_simulations import runfolder
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

EXPERIMENT = """
name = "roster"
rounds = {rounds}
seed = 1
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = [16, 16]
splits = {{ validation = 0.33, test = 0.33 }}
[model]
channels = [8, 16]
residual_units = 0
[train]
steps = 2
batch_size = 1
threads = 1
[federation]
sites_per_round = {cohort}
evaluation_sites = {cohort}
[simulation]
partition = {{ kind = "even", sites = {sites} }}
[[simulation.sites]]
name = "pool"
labels = {{ disc = ["1"] }}
policy = {{ least_patients = 1 }}
data = {{ format = "images", root = "{root}" }}
"""


def write_pictures(root: Path, number: int) -> None:
    """Bright discs on noise, 16 x 16; three a site."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index in range(number):
        x, y = rng.uniform(4, 12, 2)
        disc = (rows - x) ** 2 + (columns - y) ** 2 < rng.uniform(2, 5) ** 2
        image = rng.normal(80, 20, (16, 16)) + 90 * disc
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{index:05d}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "labels" / f"p{index:05d}.png")


def measure(sites: int, cohort: int, rounds: int, work: Path) -> dict[str, float]:
    """One run of a roster."""
    write_pictures(work / "data", 3 * sites)
    root = json.dumps(str(work / "data"))[1:-1]
    file = work / "roster.toml"
    file.write_text(EXPERIMENT.format(sites=sites, cohort=cohort, rounds=rounds, root=root))
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), work / "sites")
    before = time.perf_counter()
    for home in homes:
        COHORTS.get(home, experiment.order_text())
    opened = time.perf_counter() - before
    folder = work / "run"
    runfolder.create(folder, experiment, runfolder.Plan(engine="inline", command="benchmark"))
    started = time.time()
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="benchmark", sites=sites))
    records = list(history.read(folder / history.FILE))
    done = [record for record in records if isinstance(record, RoundDone)]
    lines = (folder / history.FILE).read_bytes().splitlines()
    before = time.perf_counter()
    report = write_report(folder)
    (began,) = (record for record in records if isinstance(record, RunStarted))
    (ended,) = (record for record in records if isinstance(record, RunEnded))
    assert ended.status == "completed", ended.status
    return {
        "sites": sites,
        "open": opened,
        "roll call": _moment(began.time) - started,
        "round": 1e3 * statistics.median(beyond(record) for record in done[1:]),
        "work": 1e3 * statistics.median(at_sites(record) for record in done[1:]),
        "between": 1e3 * statistics.median(between(done)),
        "line": statistics.median(map(len, lines[2:-1])) / 1e3,
        "checkpoint": (folder / CHECKPOINT).stat().st_size / 1e3,
        "test": _moment(ended.time) - _moment(done[-1].time),
        "report": time.perf_counter() - before,
        "page": report.stat().st_size / 1e3,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def at_sites(record: RoundDone) -> float:
    """Seconds that the round's sites say that they worked."""
    return sum(result.seconds["site"] for result in (*record.train, *record.evaluation))


def beyond(record: RoundDone) -> float:
    """The round's seconds without those."""
    return record.seconds["total"] - at_sites(record)


def between(done: Sequence[RoundDone]) -> list[float]:
    """Seconds from the end of one round to the begin of the next: checkpoint and history."""
    ends = [_moment(record.time) for record in done]
    return [
        end - before - record.seconds["total"]
        for before, end, record in zip(ends, ends[1:], done[1:], strict=False)
    ]


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def page(found: Sequence[dict[str, float]], options: argparse.Namespace) -> list[str]:
    """The table, each time also as a ratio to the smallest roster."""
    first = found[0]
    rows = [
        f"| {one['sites']:,} | {one['round']:.1f} ms ({one['round'] / first['round']:.2f}) | {one['work']:.1f} ms "
        f"| {one['between']:.1f} ms | {one['line']:.1f} kB | {one['checkpoint']:.0f} kB | {one['roll call']:.2f} s "
        f"| {one['test']:.2f} s | {one['report']:.2f} s, {one['page']:.0f} kB | {one['memory']:.0f} MB |"
        for one in found
    ]
    return [
        "# What a round costs over the number of registered sites",
        "",
        f"Inline engine, {options.cohort} sites train and {options.cohort} measure in each of {options.rounds} rounds; medians "
        "over rounds; in brackets the ratio to the smallest roster. Each roster in a process of its own.",
        "",
        "| sites | a round beyond its sites' work | its sites' work | between rounds | line of the history | checkpoint "
        "| roll call | test of both models, all sites | report | memory at its peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "The roll call and the test ask every site, once a run; opening a site's cohort is in neither. ",
        "",
        made_by(),
    ]


def main() -> None:
    """Measure and write the page."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rosters", type=int, nargs="+", default=[10, 100, 1000, 5000])
    options.add_argument("--cohort", type=int, default=10)
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--one", type=int, help="measure this roster alone, and print its numbers")
    given = options.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory(prefix="fedmed-rosters-") as folder:
            sys.stdout.write(json.dumps(measure(given.one, given.cohort, given.rounds, Path(folder))) + "\n")
        return
    import subprocess

    found = []
    for sites in given.rosters:
        command = [
            sys.executable,
            __file__,
            "--one",
            str(sites),
            "--cohort",
            str(given.cohort),
            "--rounds",
            str(given.rounds),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    write(dated("rosters"), page(found, given))


if __name__ == "__main__":
    main()

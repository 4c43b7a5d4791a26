"""One experiment on each engine: how much faster than in one process, and whether the weights are the same.

    python benchmarks/engines.py --workers 2 --sites 8 --rounds 6 --steps 30 --repeats 5

Every site trains with one thread. A round is timed from its orders to its aggregate, the run from the engine's start to its end;
the first round, in which workers are cold, counts for the run alone. Engines take turns, and the median of the turns counts. What
the machine itself permits is measured beside them: the same steps in so many processes at once that share nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pages
from safetensors.numpy import load_file
from simulation_overhead import EXPERIMENT, write_pictures

from fedmed_client.train import Course, train
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_common.params import Parameters
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone
from fedmed_simulations import runfolder
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import ENGINES
from fedmed_simulations.federation import make_homes
from fedmed_simulations.resources import Engine, Resources

_SPAWNED = multiprocessing.get_context("spawn")


def run(
    engine: Engine, experiment: Experiment, homes: Sequence[SiteHome], folder: Path, workers: int
) -> tuple[dict[str, float], Parameters]:
    """Seconds of the run and of a warm round, and the last weights."""
    resources = Resources(workers=0 if engine == "inline" else workers)
    runfolder.create(folder, experiment, runfolder.Plan(engine=engine, command="benchmark"))
    request = RunRequest(
        experiment=experiment, folder=folder, command="benchmark", sites=len(homes), stop=threading.Event()
    )
    before = time.perf_counter()
    ENGINES[engine](homes, request, resources)
    whole = time.perf_counter() - before
    records = [record for record in history.read(folder / history.FILE) if isinstance(record, RoundDone)]
    warm = statistics.median(record.seconds["total"] for record in records[1:])
    return {"run": whole, "round": warm}, load_file(folder / "models" / "last.safetensors")


def alone(file: Path, work: Path, steps: int, barrier: Barrier, told: multiprocessing.SimpleQueue) -> None:
    """In a process: one site's steps, timed after a warm-up, together with the other processes at the barrier."""
    experiment = load_experiment(file)
    home = make_homes(experiment, check_experiment(experiment, file), work / "sites")[0]
    bench = bench_for(experiment.order_text())
    _, sampler = COHORTS.get(home, experiment.order_text())
    assert sampler is not None
    start = params.from_model(bench.model)
    with numerics(experiment, bench.device):
        for count in (3, steps):
            course = Course(round=1, seed=seed_for(1, 1, "one"), steps=count)
            barrier.wait()
            before = time.perf_counter()
            train(bench, sampler, start, course, lambda _step: None)
    told.put(time.perf_counter() - before)


def permitted(file: Path, work: Path, steps: int, workers: int) -> float:
    """How many times as much work so many processes do at once, as one does in the same time."""
    took = []
    for count in (1, workers):
        barrier, told = _SPAWNED.Barrier(count), _SPAWNED.SimpleQueue()
        crew = [_SPAWNED.Process(target=alone, args=(file, work, steps, barrier, told)) for _ in range(count)]
        for process in crew:
            process.start()
        took.append(statistics.mean(told.get() for _ in crew))
        for process in crew:
            process.join()
    return workers * took[0] / took[1]


def measure(options: argparse.Namespace, work: Path) -> tuple[dict[str, list[dict[str, float]]], list[float]]:
    """By engine: the seconds of each turn; and what the machine permitted."""
    write_pictures(work / "data", 4 * options.sites)
    file = work / "engines.toml"
    root = json.dumps(str(work / "data"))[1:-1]
    size = {"channels": [16, 32, 64, 128], "patch": [96, 96], "batch": 4}
    asked = {"sites": options.sites, "rounds": options.rounds, "steps": options.steps}
    file.write_text(EXPERIMENT.format(root=root, **asked, **size))
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), work / "sites")
    for home in homes:
        COHORTS.get(home, experiment.order_text())
    seconds: dict[str, list[dict[str, float]]] = {engine: [] for engine in options.engines}
    ceilings = []
    for turn in range(options.repeats):
        ceilings.append(permitted(file, work, 4 * options.steps, options.workers))
        expected: Parameters | None = None
        for engine in options.engines:
            took, found = run(engine, experiment, homes, work / f"{engine}-{turn}", options.workers)
            expected = expected or found
            for name, array in expected.items():
                np.testing.assert_array_equal(array, found[name], err_msg=f"{engine}: {name}")
            seconds[engine].append(took)
            print(turn, engine, {name: round(value, 2) for name, value in took.items()}, flush=True)
    return seconds, ceilings


def page(
    options: argparse.Namespace, seconds: dict[str, list[dict[str, float]]], ceilings: Sequence[float]
) -> list[str]:
    """The dated page."""
    lines = [
        "# The engines",
        "",
        pages.made_by(),
        "",
        f"{options.sites} sites, {options.steps} steps of one thread each in a round, {options.rounds} rounds, {options.workers} "
        "workers. In every turn all engines gave the same last weights, bit for bit. Medians of "
        f"{options.repeats} turns; in brackets: the least and the most.",
        "",
        "| engine | seconds a round | x inline | seconds a run | x inline |",
        "|---|---|---|---|---|",
    ]
    for engine, turns in seconds.items():
        cells = []
        for what in ("round", "run"):
            ratios = [base[what] / turn[what] for base, turn in zip(seconds["inline"], turns, strict=True)]
            middle = statistics.median(turn[what] for turn in turns)
            cells += [
                f"{middle:.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    middle, least, most = statistics.median(ceilings), min(ceilings), max(ceilings)
    lines += [
        "",
        f"{options.workers} processes at once that share nothing did {middle:.2f} ({least:.2f} to {most:.2f}) times the steps "
        "that one did in the same time: more the machine does not permit.",
        "",
    ]
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", default=["inline", "process", "ray"], choices=list(ENGINES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, ceilings = measure(options, Path(folder))
    pages.write(pages.dated("engines"), page(options, seconds, ceilings))


if __name__ == "__main__":
    main()

"""Wall time of a simulated federation over a bare PyTorch loop that takes the same steps and averages.

Both train the same U-Net on the same drawn sites; their weights are compared. The inline run is timed whole: orders, the
gate, checkpoints and history; with --mlflow once more with MLflow following it in its thread, and with --ray on the ray engine.
Each case has a process of its own, whose peak memory is told.

    python benchmarks/simulation_overhead.py --sites 8 1000 --models small large --rounds 5 1 --steps 15 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone
from fedmed_server.tracking import BackgroundTracker
from fedmed_simulations import runfolder
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import ENGINES, Engine
from fedmed_simulations.federation import make_homes

EXPERIMENT = """
name = "overhead-{sites}"
rounds = {rounds}
seed = 1
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = {patch}
splits = {{ validation = 0.0, test = 0.0 }}
[model]
channels = {channels}
[train]
steps = {steps}
batch_size = {batch}
threads = 1
[simulation]
partition = {{ kind = "even", sites = {sites} }}
[[simulation.sites]]
name = "pool"
labels = {{ disc = ["1"] }}
data = {{ format = "images", root = "{root}" }}
"""

MODELS = {
    "small": {"channels": [24, 48, 96], "patch": [96, 96], "batch": 4},
    "large": {"channels": [96, 192, 384, 768, 1536], "patch": [32, 32], "batch": 1},
}
"""About 0.1 and 30 million parameters; the large one on patches so small that a thousand sites can be waited for."""


def write_pictures(root: Path, number: int) -> None:
    """Bright discs on noise, 128 x 128."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :128]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index in range(number):
        x, y = rng.uniform(30, 98, 2)
        disc = (rows - x) ** 2 + (columns - y) ** 2 < rng.uniform(10, 30) ** 2
        image = rng.normal(80, 20, (128, 128)) + 90 * disc
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{index:04d}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "labels" / f"{index:04d}.png")


def bare_loop(experiment: Experiment, homes: Sequence[SiteHome]) -> params.Parameters:
    """Federated averaging as one would write it in a script: no messages, no checks, no records."""
    bench = bench_for(experiment.order_text())
    settings = experiment.train
    weights = params.from_model(bench.model)
    with numerics(experiment, bench.device):
        for number in range(1, experiment.rounds + 1):
            total = {name: np.zeros_like(array) for name, array in weights.items()}
            patients = 0
            for home in sorted(homes, key=lambda home: home.site.name):
                cohort, sampler = COHORTS.get(home, experiment.order_text())
                assert sampler is not None
                params.to_model(weights, bench.model)
                bench.model.train()
                optimizer = torch.optim.AdamW(
                    bench.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
                )
                rng = np.random.default_rng(seed_for(experiment.seed, number, home.site.name))
                torch.manual_seed(int(rng.integers(2**63)))
                for _ in range(settings.steps):
                    image, label, annotated = sampler.batch(rng)
                    optimizer.zero_grad(set_to_none=True)
                    outputs = bench.model(image.to(bench.device))
                    loss = bench.task.loss(outputs, label.to(bench.device), annotated)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(bench.model.parameters(), settings.gradient_norm)
                    optimizer.step()
                    loss.item()
                count = cohort.patients("train")
                for name, change in params.delta(bench.model, weights).items():
                    total[name] += change * np.float32(count)
                patients += count
            weights = {name: weights[name] + total[name] / np.float32(patients) for name in weights}
    return weights


def engine_run(
    engine: Engine, experiment: Experiment, homes: Sequence[SiteHome], folder: Path, *, tracked: bool
) -> tuple[float, params.Parameters]:
    """The same work as a run of fedmed: its wall time, and the last weights."""
    before = time.perf_counter()
    runfolder.create(folder, experiment, runfolder.Plan(engine=engine, command="benchmark"))
    request = RunRequest(
        experiment=experiment, folder=folder, command="benchmark", sites=len(homes), stop=threading.Event()
    )
    with BackgroundTracker(folder, experiment) if tracked else nullcontext():
        ENGINES[engine](homes, request)
    return time.perf_counter() - before, load_file(folder / "models" / "last.safetensors")


def rounds_seconds(folder: Path) -> float:
    """Seconds spent inside rounds, without an engine's start and end."""
    records = history.read(folder / history.FILE)
    return sum(record.seconds["total"] for record in records if isinstance(record, RoundDone))


def measure(case: tuple[int, str, int, int], options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Alternate the bare loop and the inline engine, without and with MLflow; then the Ray engine once.

    ``case``: sites, model, rounds, steps.
    """
    sites, model, rounds, steps = case
    write_pictures(work / "data", 4 * sites)
    file = work / f"overhead-{sites}.toml"
    root = json.dumps(str(work / "data"))[1:-1]
    file.write_text(EXPERIMENT.format(sites=sites, rounds=rounds, steps=steps, root=root, **MODELS[model]))
    experiment = load_experiment(file)
    start = params.from_model(bench_for(experiment.order_text()).model)
    before_sites = _anonymous_megabytes()
    homes = make_homes(experiment, check_experiment(experiment, file), work / "sites")
    for home in homes:
        COHORTS.get(home, experiment.order_text())
    index = _anonymous_megabytes() - before_sites
    ways = (("inline", False), ("inline_mlflow", True))[: 1 + options.mlflow]
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", *(name for name, _ in ways))}
    for repeat in range(options.repeats + 1):
        params.to_model(start, bench_for(experiment.order_text()).model)
        before = time.perf_counter()
        expected = bare_loop(experiment, homes)
        timed = {"bare": time.perf_counter() - before}
        for name, tracked in ways:
            folder = work / f"{name}-{sites}-{repeat}"
            timed[name], found = engine_run("inline", experiment, homes, folder, tracked=tracked)
            for tensor in expected:
                np.testing.assert_array_equal(expected[tensor], found[tensor])
        if repeat:
            for name, value in timed.items():
                seconds[name].append(value)
            print(
                f"{sites} sites:",
                ", ".join(f"{name} {value:.2f} s" for name, value in timed.items()),
                flush=True,
            )
    result: dict[str, object] = {"sites": sites, "model": model, "parameters": params.count(start)}
    result |= {"rounds": rounds, "steps": steps, "weights": "bit-identical"}
    for name, values in seconds.items():
        ratios = [value / bare for value, bare in zip(values, seconds["bare"], strict=True)]
        result[name] = {
            "seconds": values,
            "median_ratio_to_bare": statistics.median(ratios),
            "ratios": ratios,
        }
    if options.ray:
        folder = work / f"ray-{sites}"
        total, found = engine_run("ray", experiment, homes, folder, tracked=False)
        equal = all(np.array_equal(expected[tensor], found[tensor]) for tensor in expected)
        result["ray"] = {
            "seconds": total,
            "seconds_in_rounds": rounds_seconds(folder),
            "weights_equal": equal,
        }
        print(f"{sites} sites: ray {result['ray']}", flush=True)
    result["anonymous_memory_mb"], result["index_of_sites_mb"] = _anonymous_megabytes(), index
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def _anonymous_megabytes() -> float:
    """Of this process at this moment, without what is mapped from files, as the sites' images are."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure and write a dated file beside this one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 1], help="for each number of sites")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[15, 10], help="of a site in a round, likewise"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["small", "small"], help="likewise")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    results = []
    for case in zip(options.sites, options.models, options.rounds, options.steps, strict=True):
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        ):
            results.append(pool.submit(measure, case, options, Path(folder)).result())
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "benchmarks/simulation_overhead.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("fedmed", "torch", "flwr")},
        "results": results,
    }
    file = Path(__file__).parent / f"simulation_overhead-{report['date']}.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main()

"""How fast a site trains: precision, compiled kernels, the order of channels; waiting for batches; privacy; the engine.

    python benchmarks/training_speed.py

On a machine with a GPU all of it runs there, on patches of usual sizes. Without one, what means something on a CPU runs on small
patches, and the page names what was left out. Each network is measured in a process of its own, all its ways in turns, through
the function that sites train with, on cases mapped from disk; what is compared is compared within one turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pages
import private_steps
import speed_tables
import torch
from simulation_overhead import bare_loop, engine_run

from fedmed_client.data.ahead import Batches
from fedmed_client.data.cohort import Case, Cohort
from fedmed_client.data.samplers import Sampler, build_sampler
from fedmed_client.train import Course, train
from fedmed_client.workbench import Bench, SiteHome, bench_for, numerics, pick_device, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment, Site
from fedmed_common.processes import cores

NETWORKS: dict[str, dict[str, Any]] = {
    "3D U-Net": {
        "model": {"name": "unet3d"},
        "gpu": {"patch": [128, 128, 128], "batch": 2},
        "cpu": {"patch": [32, 32, 32], "batch": 2},
        "private": {"patch": [64, 64, 64], "samples": 2},
    },
    "DeepLabV3+": {
        "model": {"name": "deeplab_v3plus"},
        "gpu": {"patch": [512, 512], "batch": 8},
        "cpu": {"patch": [96, 96], "batch": 2},
        "private": {"patch": [256, 256], "samples": 4},
    },
    "SegFormer-B2": {
        "model": {"name": "segformer", "variant": "b2"},
        "gpu": {"patch": [512, 512], "batch": 8},
        "cpu": {"patch": [96, 96], "batch": 2},
        "private": {"patch": [256, 256], "samples": 4},
    },
}
SPEEDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "bf16, compiled, channels last": {"precision": "bf16", "compile": True, "channels_last": True},
}
ON_CPU = ("fp32", "bf16")
CASES, SITES, ROUNDS = 6, 4, 2


def main() -> None:
    """Measure each network, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of an order; 0: 40 on a GPU, 4 on a CPU")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--no-page", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = pick_device(options.device)
    options.steps = options.steps or (40 if device.type == "cuda" else 4)
    if options.part is not None:
        part, network = options.part
        print(json.dumps(PARTS[part](network, device, options)))
        return
    wanted = tuple(PARTS) if device.type == "cuda" else ON_A_CPU
    measured: dict[str, dict[str, Any]] = {}
    for network in options.only:
        measured[network] = {part: _part(part, network, options) for part in wanted}
        print(network, json.dumps(measured[network]), flush=True)
    if not options.no_page:
        pages.write(pages.dated("training_speed"), speed_tables.page(measured, _about(device, options)))


def _about(device: torch.device, options: argparse.Namespace) -> speed_tables.About:
    on_gpu = device.type == "cuda"
    return speed_tables.About(
        device=torch.cuda.get_device_name(device) if on_gpu else "a CPU",
        on_gpu=on_gpu,
        steps=options.steps,
        repeats=options.repeats,
        networks={
            network: {
                "orders": _shape(sizes["gpu" if on_gpu else "cpu"], "batch"),
                "cuts": _shape(sizes["gpu"], "batch"),
                "privacy": f"{private_steps.PATIENTS} patients of {_shape(sizes['private'], 'samples')}",
            }
            for network, sizes in NETWORKS.items()
        },
        federation=f"{ROUNDS} rounds at {SITES} sites",
    )


def _shape(size: Mapping[str, Any], count: str) -> str:
    return f"{size[count]} x {' x '.join(map(str, size['patch']))}"


def _part(part: str, network: str, options: argparse.Namespace) -> Any:
    words = ["--part", part, network, "--device", options.device]
    words += ["--repeats", str(options.repeats), "--steps", str(options.steps)]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def speeds(network: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Of each way to train: samples a second, times fp32, the share of waiting, and the most memory beyond what lay there, MB."""
    ways = list(SPEEDS) if device.type == "cuda" else list(ON_CPU)
    with tempfile.TemporaryDirectory() as folder:
        orders = {way: _order(network, device, Path(folder), options, SPEEDS[way]) for way in ways}
        return _compared(orders, options, device, "fp32")


def waits(network: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """The share of waiting, and samples a second, with batches cut when they are asked for, and ahead."""
    train = {"precision": "bf16"} if device.type == "cuda" else {}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for level in ("light", "standard"):
            orders = {
                f"{level}, {ahead or 'none'} ahead": _order(
                    network, device, Path(folder), options, {**train, "prefetch": ahead}, level
                )
                for ahead in (0, 1, 4)
            }
            found |= _compared(orders, options, device, f"{level}, none ahead")
    return found


def cuts(network: str, device: torch.device, options: argparse.Namespace) -> dict[str, float]:
    """Batches a second that are cut and handed over, of the sizes for a GPU and the standard augmentation: by threads, and by
    torch's worker processes, which are there before the clock runs."""
    most = min(4, cores())
    torch.set_num_threads(most)
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(network, torch.device("cuda"), {}, "standard")
        sampler = build_sampler(_cases(experiment, Path(folder)), experiment)
        rng = np.random.default_rng(0)
        choices = [sampler.draw(rng) for _ in range(32)]
        ways: dict[str, Callable[[], Iterable[Any]]] = {"when asked for": lambda: map(sampler.cut, choices)}
        for count in sorted({1, most}):
            several = "es" if count > 1 else ""
            ways[f"{count} thread{several[1:]}"] = partial(_by_threads, sampler, choices, count)
            ways[f"{count} worker process{several}"] = _by_processes(sampler, choices, count).__iter__
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats + 1):
            for way, batches in ways.items():
                before = time.perf_counter()
                for _ in batches():
                    pass
                if repeat:
                    taken[way].append(len(choices) / (time.perf_counter() - before))
    return {way: statistics.median(each) for way, each in taken.items()}


def _by_threads(sampler: Sampler, choices: Sequence[Any], count: int) -> Iterator[Any]:
    with Batches(choices, sampler.cut, count) as batches:
        yield from batches


class _Cut(torch.utils.data.Dataset[Any]):
    """What torch's loader of data takes."""

    def __init__(self, sampler: Sampler, choices: Sequence[Any]) -> None:
        self._sampler, self._choices = sampler, choices

    def __len__(self) -> int:
        return len(self._choices)

    def __getitem__(self, place: int) -> Any:
        return self._sampler.cut(self._choices[place])


def _by_processes(sampler: Sampler, choices: Sequence[Any], count: int) -> torch.utils.data.DataLoader[Any]:
    """Spawned: a process that is forked from one with threads of arithmetic hangs in them."""
    return torch.utils.data.DataLoader(
        _Cut(sampler, choices),
        batch_size=None,
        num_workers=count,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )


def privacy(network: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """A step of eight patients without privacy, one patient at a time, and all in a pass; as ``private_steps.py``."""
    private_steps.NETWORKS[network] = {"model": NETWORKS[network]["model"], **NETWORKS[network]["private"]}
    found = private_steps.times(network, str(device), options.repeats)
    megabytes = {
        way: private_steps.memory(network, str(device), options.repeats, way=way) for way in found["median"]
    }
    return {**found, "megabytes": megabytes}


def engine(network: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """A federation in one process over a bare loop of the same steps, the model on the device in both, no batch cut ahead."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment = _experiment(
            network, device, {"precision": "bf16", "prefetch": 0, "steps": options.steps}
        )
        homes = [_home(experiment, folder, f"site-{number}") for number in range(SITES)]
        model = bench_for(experiment.order_text()).model
        start, ratios, difference = params.from_model(model), list[float](), 0.0
        for repeat in range(options.repeats + 1):
            params.to_model(start, model)
            before = _now(device)
            expected = bare_loop(experiment, homes)
            bare = _now(device) - before
            whole, found = engine_run("inline", experiment, homes, folder / f"run-{repeat}", tracked=False)
            apart = (float(np.abs(found[name] - expected[name]).max()) for name in expected)
            difference = max(difference, *apart)
            if repeat:
                ratios.append(whole / bare)
    return {"ratio": statistics.median(ratios), "ratios": ratios, "largest difference": difference}


class _Order:
    """A training order of a network in one way, as a site carries it out."""

    def __init__(self, bench: Bench, sampler: Sampler, steps: int) -> None:
        self.bench, self._sampler, self._steps = bench, sampler, steps
        self._start = params.from_model(bench.model)

    def __call__(self) -> tuple[float, float]:
        """Seconds, and how many of them it waited for batches."""
        course = Course(round=1, seed=seed_for(0, 1, "site"), steps=self._steps)
        with numerics(self.bench.experiment, self.bench.device):
            before = _now(self.bench.device)
            update = train(self.bench, self._sampler, self._start, course, lambda _step: None)
            return _now(self.bench.device) - before, update.waited


def _order(
    network: str,
    device: torch.device,
    folder: Path,
    options: argparse.Namespace,
    train: Mapping[str, Any],
    level: str = "light",
) -> _Order:
    experiment = _experiment(network, device, train, level)
    bench_for.cache_clear()
    bench = bench_for(experiment.order_text())
    return _Order(bench, build_sampler(_cases(experiment, folder), experiment), options.steps)


def _compared(
    orders: Mapping[str, _Order], options: argparse.Namespace, device: torch.device, base: str
) -> dict[str, Any]:
    """The ways in turns; the first turn, which compiles, does not count."""
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in orders}
    memory = dict[str, float]()
    for repeat in range(options.repeats + 1):
        for way, order in orders.items():
            lay = _reset(device)
            once = order()
            if repeat:
                taken[way].append(once)
                memory[way] = _peak(device) - lay
    found = {}
    for way, times in taken.items():
        batch = orders[way].bench.experiment.train.batch_size
        ratios = [slow / fast for (slow, _), (fast, _) in zip(taken[base], times, strict=True)]
        found[way] = {
            "samples": statistics.median(options.steps * batch / seconds for seconds, _ in times),
            "times": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "waited": statistics.median(waited / seconds for seconds, waited in times),
            "megabytes": memory[way] / 1e6,
        }
    return found


def _experiment(
    network: str, device: torch.device, train: Mapping[str, Any], level: str = "light"
) -> Experiment:
    size = NETWORKS[network]["gpu" if device.type == "cuda" else "cpu"]
    return Experiment.model_validate(
        {
            "name": "training-speed",
            "rounds": ROUNDS,
            "task": {"classes": ["lesion"], "dimensions": len(size["patch"])},
            "data": {"patch": size["patch"], "augmentation": level},
            "model": NETWORKS[network]["model"],
            "train": {"batch_size": size["batch"], "device": device.type, **train},
        }
    )


def _cases(experiment: Experiment, folder: Path, site: str = "site") -> tuple[Case, ...]:
    """Noise with a box in it, a quarter larger than the patch, mapped from disk; as many patients."""
    shape = tuple(side * 5 // 4 for side in experiment.data.patch)
    shape = (*shape, 1)[:3]
    rng = np.random.default_rng(0)
    found = []
    for number in range(CASES):
        image, label = folder / f"{site}-{number}.image.npy", folder / f"{site}-{number}.label.npy"
        if not image.exists():
            mask = np.zeros(shape, np.uint8)
            mask[tuple(slice(side // 4, side // 2 + 1) for side in shape)] = 1
            np.save(label, mask)
            np.save(image, (rng.normal(size=(1, *shape)) + mask).astype(np.float32))
        mapped = np.asarray(np.load(label, mmap_mode="r"))
        places = np.argwhere(mapped)
        found.append(
            Case(
                id=str(number),
                patient=number,
                split="train",
                image=np.asarray(np.load(image, mmap_mode="r")),
                label=mapped,
                spacing_mm=(1.0, 1.0, 1.0),
                annotated=(True,),
                present=(True,),
                points=(places[:: max(1, len(places) // 2000)].astype(np.int32),),
                oriented=len(experiment.data.patch) == 3,
            )
        )
    return tuple(found)


def _home(experiment: Experiment, folder: Path, name: str) -> SiteHome:
    cases = _cases(experiment, folder, name)
    cohort = Cohort(site=name, classes=("lesion",), cases=cases, manifest_hash=name, skipped=())
    site = Site.model_validate(
        {
            "name": name,
            "data": {"format": "images", "root": str(folder)},
            "labels": {"lesion": ["1"]},
            "policy": {"least_patients": 1},
        }
    )
    return SiteHome(site=site, folder=folder / "sites" / name, open=lambda _experiment: cohort)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return float(torch.cuda.memory_allocated(device))


def _peak(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


PARTS: dict[str, Callable[[str, torch.device, argparse.Namespace], Any]] = {
    "speeds": speeds,
    "waits": waits,
    "cuts": cuts,
    "privacy": privacy,
    "engine": engine,
}
ON_A_CPU = ("speeds", "waits", "cuts")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()

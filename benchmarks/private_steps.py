"""A private step beside a plain one, in time and memory: patients one at a time, several in a pass, and Opacus' two engines.

    python benchmarks/private_steps.py

Each network takes steps on the same invented patients in every way, in turns within one process, so that the ratios hold on any
machine; what a way needs in memory is measured in a process of its own. Everything counts: gradients, clipping, noise, and the
optimizer's step. Opacus' engines give privacy to samples, not to patients, and stand here for their cost alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pages
import torch
from torch import Tensor

from fedmed_client.patient_gradients import Samples, can_map, invented
from fedmed_client.private import Mechanism, clipped_sum
from fedmed_client.workbench import Bench, pick_device
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.tasks import build_task

NETWORKS: dict[str, dict[str, Any]] = {
    "U-Net 2D": {"model": {"name": "unet"}, "patch": [128, 128], "samples": 8},
    "U-Net 2D, small patches": {"model": {"name": "unet"}, "patch": [64, 64], "samples": 8},
    "U-Net 3D": {"model": {"name": "unet"}, "patch": [32, 48, 32], "samples": 4},
    "DeepLabV3+": {"model": {"name": "deeplab_v3plus"}, "patch": [128, 128], "samples": 4},
    "SegFormer-B0": {"model": {"name": "segformer"}, "patch": [128, 128], "samples": 4},
}
"""Patches and samples as in the experiments that ship; and one network at a quarter of its patch."""
PATIENTS = 8
WAYS = ("plain", "loop", "together", "hooks", "ghost")
TITLES = {
    "plain": "without privacy",
    "loop": "one patient at a time",
    "together": "all patients in a pass",
    "hooks": "Opacus, hooks",
    "ghost": "Opacus, ghost clipping",
}
Step = Callable[[], object]


def main() -> None:
    """Time and weigh each network in each way, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path("private_steps.json"),
        help="networks that are done, not measured again",
    )
    parser.add_argument("--no-page", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        network, way = arguments.part
        found = times if way == "times" else partial(memory, way=way)
        print(json.dumps(found(network, arguments.device, arguments.repeats)))
        return
    measured = json.loads(arguments.kept.read_text()) if arguments.kept.exists() else {}
    for network in arguments.only:
        if network in measured:
            continue
        seconds = _part(network, "times", arguments)
        megabytes = {way: _part(network, way, arguments) for way in WAYS if way in seconds["median"]}
        measured[network] = {**seconds, "megabytes": megabytes, "repeats": arguments.repeats}
        arguments.kept.write_text(json.dumps(measured, indent=1))
        print(network, json.dumps(measured[network]), flush=True)
    if not arguments.no_page:
        pages.write(pages.dated("private_steps"), page(measured))


def _part(network: str, way: str, arguments: argparse.Namespace) -> Any:
    words = ["--part", network, way, "--repeats", str(arguments.repeats), "--device", arguments.device]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def times(network: str, device: str, repeats: int) -> dict[str, Any]:
    """Seconds a step by way, the median of the repeats; each repeat's ratio to the plain step; why a way cannot be taken."""
    steps, refused = dict[str, Step](), dict[str, str]()
    for way in WAYS:
        try:
            step = make(network, way, device)
            step()
            steps[way] = step
        except Exception as problem:
            refused[way] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:120]}"
    taken: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            before = _now()
            step()
            taken[way].append(_now() - before)
    ratios = {way: [a / b for a, b in zip(taken[way], taken["plain"], strict=True)] for way in taken}
    return {
        "median": {way: statistics.median(each) for way, each in taken.items()},
        "ratio": {way: statistics.median(each) for way, each in ratios.items()},
        "least": {way: min(each) for way, each in ratios.items()},
        "most": {way: max(each) for way, each in ratios.items()},
        "refused": refused,
        "parameters": sum(each.numel() for each in _bench(network, device).model.parameters()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and device != "cpu" else "CPU",
    }


def memory(network: str, device: str, repeats: int, *, way: str) -> float:
    """MB that a few steps need at most beyond the network and the patients."""
    step = make(network, way, device)
    if torch.cuda.is_available() and device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(min(repeats, 2)):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def make(network: str, way: str, device: str) -> Step:
    """A step of the network in this way, on patients of its own."""
    torch.manual_seed(0)
    bench = _bench(network, device)
    samples = NETWORKS[network]["samples"]
    image = torch.zeros(samples, 1, *bench.experiment.data.patch)
    target = torch.zeros(samples, *bench.experiment.data.patch, dtype=torch.int64)
    example = image, target, torch.ones(samples, 1, dtype=torch.bool)
    patients = [invented(example, seed) for seed in range(PATIENTS)]
    bench.model.train()
    optimizer = torch.optim.AdamW(bench.model.parameters(), lr=1e-3)
    makers = {"plain": _plain, "loop": _private, "together": _private, "hooks": _opacus, "ghost": _opacus}
    if way == "together" and not can_map(bench, example):
        raise ValueError("the network cannot be mapped over patients")
    return makers[way](bench, patients, optimizer, way)


def _plain(bench: Bench, patients: list[Samples], optimizer: torch.optim.Optimizer, _way: str) -> Step:
    batch = tuple(torch.cat(parts).to(bench.device) for parts in zip(*patients, strict=True))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        bench.task.objective(bench.model, *batch).backward()
        optimizer.step()

    return step


def _private(bench: Bench, patients: list[Samples], optimizer: torch.optim.Optimizer, way: str) -> Step:
    parameters = list(bench.model.parameters())
    mechanism = Mechanism(clipping_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, patients=2 * PATIENTS)
    at_once = PATIENTS if way == "together" else 1

    def step() -> None:
        total = clipped_sum(bench, parameters, mechanism, patients, at_once=at_once)
        for parameter, gradient in zip(parameters, mechanism.release(total), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _opacus(bench: Bench, patients: list[Samples], optimizer: torch.optim.Optimizer, way: str) -> Step:
    from opacus import PrivacyEngine

    images, targets, annotated = (torch.cat(parts).to(bench.device) for parts in zip(*patients, strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=len(images))
    criterion = _Criterion(bench, annotated)
    made = PrivacyEngine(accountant="rdp").make_private(
        module=bench.model,
        optimizer=optimizer,
        criterion=criterion,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=way,
    )
    model, optimizer = made[0], made[1]
    loss = made[2] if way == "ghost" else criterion

    def step() -> None:
        optimizer.zero_grad()
        loss(model(images), targets).backward()
        optimizer.step()

    return step


class _Criterion(torch.nn.Module):
    """The product's loss as Opacus takes one: by sample, and their mean."""

    def __init__(self, bench: Bench, annotated: Tensor) -> None:
        super().__init__()
        self.bench, self.annotated, self.reduction = bench, annotated, "mean"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.bench.task.per_sample(logits, target, self.annotated)  # type: ignore[attr-defined]
        return loss if self.reduction == "none" else loss.mean()


def _bench(network: str, device: str) -> Bench:
    asked = _experiment(network, device)
    place = pick_device(device)
    return Bench(experiment=asked, model=build_model(asked).to(place), task=build_task(asked), device=place)


def _experiment(network: str, device: str) -> Experiment:
    asked = NETWORKS[network]
    return Experiment.model_validate(
        {
            "name": "private-steps",
            "rounds": 1,
            "task": {"classes": ["lesion"], "dimensions": len(asked["patch"])},
            "data": {"patch": asked["patch"]},
            "model": asked["model"],
            "train": {"steps": 1, "batch_size": asked["samples"], "threads": 1, "device": device},
            "privacy": {"epsilon": 8.0, "sampling_rate": 0.5, "noise_multiplier": 2.0},
        }
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def page(measured: dict[str, Any]) -> list[str]:
    """The dated page."""
    device = next(iter(measured.values()))["device"]
    lines = [
        "# What a private step costs",
        "",
        pages.made_by(),
        "",
        f"Steps of {PATIENTS} patients, on {device}, one thread; AdamW. Ratios to the step without "
        "privacy are medians over repeats, the least and the most in brackets. Memory is the most that steps need beside network "
        "and patients.",
        "",
        "| network | way | ms a step | times plain | MB |",
        "|---|---|---|---|---|",
    ]
    for network, found in measured.items():
        patch = " x ".join(map(str, NETWORKS[network]["patch"]))
        times = f"{found['repeats']} repeat{'s' if found['repeats'] > 1 else ''}"
        name = (
            f"{network}, {found['parameters'] / 1e6:.1f} M, {NETWORKS[network]['samples']} x {patch}, {times}"
        )
        for way in WAYS:
            if way in found["refused"]:
                lines.append(f"| {name} | {TITLES[way]} | cannot: {found['refused'][way]} | | |")
                continue
            lines.append(
                f"| {name} | {TITLES[way]} | {1000 * found['median'][way]:.0f} | {found['ratio'][way]:.2f} "
                f"({found['least'][way]:.2f} to {found['most'][way]:.2f}) | {found['megabytes'][way]:.0f} |"
            )
    worst = max(found["ratio"]["loop"] for found in measured.values())
    lighter = all(found["megabytes"]["loop"] < found["megabytes"]["plain"] for found in measured.values())
    lines += [
        "",
        f"One patient at a time costs {worst:.2f} times a plain step at most (bar: 1.25), and "
        f"{'less' if lighter else 'not everywhere less'} memory.",
    ]
    return lines


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()

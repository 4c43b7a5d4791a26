"""Every architecture trained federated with one small common budget: Dice or AUROC, seconds per step, peak memory.

    FEDMED_DATA=... python benchmarks/models.py
    FEDMED_DATA=... python benchmarks/models.py --only unet segformer

Segmentation in 3D is learned on the hippocampus volumes, in 2D on the nuclei, classification on synthetic hospitals: each by
``fedmed simulate`` in a process of its own. Seconds per step are taken afterwards, side by side: for each architecture a process
takes steps of it and of a plain U-Net in turns, so that the ratio holds on any machine. A finished part is kept below
``--runs`` and not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedmed_common.catalogue import ARCHITECTURES

FEDMED = str(Path(sys.executable).with_name("fedmed"))
ROUNDS, STEPS, BATCH = 4, 8, 2
PRIVATE = ("unet", "deeplab_v3plus", "segformer")
SIZES: dict[str, dict[str, Any]] = {
    "fcn": {"width": 0.25},
    "segnet": {"width": 0.35},
    "pspnet": {"width": 0.5},
    "hrnet": {"width": 0.5},
    "deepmedic": {"width": 0.5},
    "unet3d": {"channels": [16, 32, 64, 128]},
    "vnet": {"channels": [8, 16, 32, 64, 128]},
    "residual_unet": {"channels": [16, 32, 64, 128]},
    "inception_unet": {"channels": [8, 16, 32, 64, 128]},
    "r2unet": {"channels": [8, 16, 32, 64, 128]},
    "dense_unet": {"growth": 8, "blocks": [4, 5, 7, 10], "stem": 24},
    "unetplusplus": {"channels": [8, 16, 32, 64, 128]},
    "dynunet": {"features": 16},
    "swin_unetr": {"features": 24},
    "sam": {"image_size": 256},
    "deeplab_v1": {"width": 0.5},
    "deeplab_v2": {"width": 0.5},
    "vgg": {"width": 0.25},
    "alexnet": {"width": 0.5},
}
"""Where the default is too large for the budget: a smaller size of the same architecture."""
PATCHES = {"hrnet": [64, 64, 64], "inception_v3": [128, 128]}
"""Where the common patch is too small."""
TIMED_STEPS = 5
NUCLEI = ("site_a_fluor_256", "site_b_fluor_360", "site_e_stained_320")
HIPPOCAMPUS = ("uint8", "float32")
PHANTOM = ("--sites", "3", "--patients", "24", "--shape", "48,48,24", "--seed", "4", "--vacant", "0")


def experiment(name: str, dimensions: int, data: Path, phantom: Path, private: bool) -> dict[str, Any]:
    """The experiment of one architecture: the same but for its ``[model]``."""
    table: dict[str, Any] = {
        "name": f"models-{name}",
        "seed": 1,
        "rounds": ROUNDS,
        "model": {"name": name, **SIZES.get(name, {})},
        "train": {
            "steps": STEPS,
            "batch_size": BATCH,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "threads": 1,
        },
        "federation": {"evaluate_every": ROUNDS},
    }
    if "classification" in ARCHITECTURES[name].tasks:
        lesions = ["liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion", "pancreas_cyst"]
        table |= {
            "task": {"name": "classification", "classes": lesions, "dimensions": dimensions},
            "data": {
                "patch": [64, 64] if dimensions == 2 else [32, 32, 32],
                "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
            },
            "simulation": {"federation": str(phantom)},
        }
    elif dimensions == 3:
        table |= {
            "task": {"classes": ["anterior", "posterior"], "dimensions": 3},
            "data": {"spacing_mm": [1.0, 1.0, 1.0], "patch": [32, 64, 32]},
            "simulation": {"sites": [_volumes(kind, data) for kind in HIPPOCAMPUS]},
        }
    else:
        table |= {
            "task": {"classes": ["nucleus"], "dimensions": 2},
            "data": {
                "channels": 3,
                "patch": [128, 128],
                "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
            },
            "simulation": {"sites": [_pictures(site, data) for site in NUCLEI]},
        }
    table["data"]["patch"] = PATCHES.get(name, table["data"]["patch"])
    if private:
        table["train"]["steps"] = 2
        table["privacy"] = {
            "epsilon": 8.0,
            "sampling_rate": 1.0,
            "clipping_norm": 1.0,
            "samples": 1,
            "spare_rounds": 0,
        }
    return table


def _volumes(kind: str, data: Path) -> dict[str, Any]:
    root = str(data / "volumes" / "hippocampus")
    return {
        "name": f"site_{kind}",
        "data": {"format": "nifti", "root": root, "stored_type": kind, "maximum_cases": 60},
        "labels": {"anterior": ["1"], "posterior": ["2"]},
        "policy": {"least_patients": 1},
    }


def _pictures(site: str, data: Path) -> dict[str, Any]:
    root = str(data / "nuclei" / site)
    return {
        "name": site,
        "data": {"format": "images", "root": root, "image_labels": "instances", "maximum_cases": 30},
        "labels": {"nucleus": ["1"]},
        "policy": {"least_patients": 1},
    }


def train(name: str, dimensions: int, private: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Train one architecture; what its run's history says, and the most memory that its process held."""
    key = f"{name}-{dimensions}d{'-private' if private else ''}"
    folder = options.runs / key
    kept = folder / "trained.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        asked = experiment(name, dimensions, options.data, options.runs / "phantom", private)
        file = folder / "experiment.toml"
        file.write_text(tomli_w.dumps(asked))
        started = time.perf_counter()
        child = subprocess.Popen(
            [FEDMED, "simulate", str(file), "--runs", str(folder)], stdout=subprocess.DEVNULL
        )
        _, code, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        if child.returncode:
            raise SystemExit(f"{key} ended with {child.returncode}")
        kept.write_text(
            json.dumps(
                {
                    "score": _scores(folder),
                    "seconds": time.perf_counter() - started,
                    "memory_mb": usage.ru_maxrss / 1024,
                }
            )
        )
    return json.loads(kept.read_text())  # type: ignore[no-any-return]


def _scores(folder: Path) -> dict[str, float]:
    """The last model's test metrics, by name, over all sites."""
    (history,) = folder.glob("*/history.jsonl")
    ended = json.loads(history.read_text().splitlines()[-1])
    if ended["status"] != "completed":
        raise SystemExit(f"{folder.name}: {ended['status']}")
    sums: dict[str, list[float]] = {}
    for site in ended["test"]["last"]:
        for metric, (total, weight) in site["metrics"].items():
            known = sums.setdefault(metric, [0.0, 0.0])
            sums[metric] = [known[0] + total, known[1] + weight]
    return {metric: total / weight for metric, (total, weight) in sums.items() if weight}


def measure(name: str, dimensions: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step and peak memory of one architecture, beside a U-Net's in the same process."""
    kept = options.runs / f"{name}-{dimensions}d" / "timed.json"
    if not kept.exists():
        command = [sys.executable, __file__, "--time", name, str(dimensions)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    return json.loads(kept.read_text())  # type: ignore[no-any-return]


def time_steps(name: str, dimensions: int) -> None:
    """Print seconds per step of the architecture and of the U-Net, in turns, and the memory that the former added."""
    import torch

    from fedmed_client.train import make_optimizer
    from fedmed_common.config import Experiment
    from fedmed_common.models import build_model
    from fedmed_common.models.figures import count
    from fedmed_common.tasks import build_task

    def prepare(one: str) -> tuple[Experiment, Iterator[float], int]:
        table = experiment(one, dimensions, Path(), Path(), False)
        if one == "unet":
            reference = experiment(name, dimensions, Path(), Path(), False)
            table |= {key: reference[key] for key in ("data",)}
            table["task"] = {"classes": reference["task"]["classes"], "dimensions": dimensions}
        table.pop("simulation")
        asked = Experiment.model_validate(table)
        network, task = build_model(asked).train(), build_task(asked)
        optimizer = make_optimizer(network, asked.train, 1e-3)
        image = torch.randn(BATCH, asked.data.channels, *asked.data.patch)
        known = torch.ones(BATCH, len(asked.task.classes), dtype=torch.bool)
        shape = (len(asked.task.classes),) if asked.task.name == "classification" else asked.data.patch
        target = torch.randint(0, 2, (BATCH, *shape))

        def steps() -> Iterator[float]:
            while True:
                started = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                task.objective(network, image, target, known).backward()
                optimizer.step()
                yield time.perf_counter() - started

        return asked, steps(), count(network)

    _, plain, _ = prepare("unet")
    next(plain)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked, own, parameters = prepare(name)
    next(own)
    pairs = [(next(plain), next(own)) for _ in range(TIMED_STEPS)]
    print(
        json.dumps(
            {
                "parameters": parameters,
                "unet_seconds": statistics.median(first for first, _ in pairs),
                "seconds": statistics.median(second for _, second in pairs),
                "ratio": statistics.median(second / first for first, second in pairs),
                "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
                "patch": list(asked.data.patch),
            }
        )
    )


def row(name: str, dimensions: int, options: argparse.Namespace) -> str:
    """A line of the table."""
    trained, timed = train(name, dimensions, False, options), measure(name, dimensions, options)
    private = f"{headline(train(name, dimensions, True, options)):.3f}" if name in PRIVATE else ""
    size = ", ".join(f"{key} {value}" for key, value in SIZES.get(name, {}).items()) or "default"
    return (
        f"| {name} | {dimensions} | {size} | {timed['parameters'] / 1e6:.2f} | {headline(trained):.3f} | {private} "
        f"| {timed['seconds']:.2f} | {timed['ratio']:.1f} | {timed['memory_mb']:.0f} | {trained['memory_mb']:.0f} |"
    )


def headline(trained: dict[str, Any]) -> float:
    """The mean over classes of Dice, or of AUROC."""
    values = [value for name, value in trained["score"].items() if name.startswith(("dice/", "auroc/"))]
    return statistics.mean(values) if values else float("nan")


def main() -> None:
    """Train and time what is missing, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sorted(ARCHITECTURES))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEDMED_DATA", "../shared/data")))
    parser.add_argument("--runs", type=Path, default=Path("runs/models"))
    parser.add_argument("--time", nargs=2, metavar=("NAME", "DIMENSIONS"), help=argparse.SUPPRESS)
    parser.add_argument("--train-only", action="store_true", help="leave timing, and the page, for later")
    options = parser.parse_args()
    if options.time:
        return time_steps(options.time[0], int(options.time[1]))
    options.data, options.runs = options.data.absolute(), options.runs.absolute()
    phantom = options.runs / "phantom"
    if not phantom.exists():
        subprocess.run([FEDMED, "phantom", str(phantom), *PHANTOM], check=True)
    wanted = [(name, max(kind.dimensions)) for name, kind in ARCHITECTURES.items()]
    wanted = [pair for pair in wanted if not options.only or pair[0] in options.only]
    for name, dimensions in wanted:
        train(name, dimensions, False, options)
        if name in PRIVATE:
            train(name, dimensions, True, options)
        print(name, dimensions, flush=True)
    if options.train_only:
        return None
    rows = [row(name, dimensions, options) for name, dimensions in wanted]
    write_page(rows)
    return None


def write_page(rows: list[str]) -> None:
    """The dated page."""
    today = datetime.now(UTC).date().isoformat()
    text = "\n".join(
        [
            f"# Architectures, {today}",
            "",
            f"`python benchmarks/models.py`; torch {version('torch')}, monai {version('monai')}, {os.cpu_count()} cores "
            f"({platform.machine()}). {ROUNDS} rounds of {STEPS} steps with {BATCH} patches at each site, AdamW at 1e-3 falling "
            "by a cosine, seed 1; the last model on held-out patients. 3D: hippocampus (2 sites, 60 cases each, patch 32x64x32, "
            "mean Dice of two classes); 2D: nuclei (3 sites, 30 pictures each, patch 128x128, Dice); classification: synthetic "
            "hospitals (3 sites, 24 patients each, mean AUROC of five lesion classes; of so few test patients it is chance: the "
            "column shows that the classifiers train, and ranks none). SAM was prompted with boxes from the reference label. "
            "'Private': patient-level differential "
            "privacy at epsilon 8, every patient in every step, one patch of each, so that a round is two steps; from random "
            "weights and with so few patients the noise is larger than what is learned. Seconds per step beside a plain U-Net's "
            "in the same process; 'step MB' is what steps added to that process, 'run MB' the peak of the whole federation in "
            "one process.",
            "",
            "| architecture | D | size | M parameters | Dice or AUROC | private | s/step | x U-Net | step MB | run MB |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (Path(__file__).parent / f"models-{today}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""What privacy costs in Dice: epsilon 1, 3, 8 and none, with and without secure sums, and for the long tail's recipe.

    FEDMED_DATA=... python benchmarks/utility.py --seeds 1 2 3 --folder utility

`phantom`: six synthetic hospitals of 96 patients with rare lesions. `hippocampus`: real volumes, dealt to four sites. Each run
takes the same number of steps at a site; epsilon is that of the whole run for each patient, at a delta of 1e-5. With secure sums
the noise is shared: each site adds its part, a round is one step, and the optimizer is the server's. What is there already is
not done again. The result is a page beside this file, by today's date.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pages
import tomli_w

from fedmed_common.metrics import Metrics, class_mean, merge
from fedmed_server import history
from fedmed_server.history import RunEnded

FEDMED = str(Path(sys.executable).with_name("fedmed"))
EPSILONS = (None, 8, 3, 1)
ROUNDS, STEPS = 12, 5
SITES, PATIENTS, SHAPE = 6, 96, "48,48,24"
CLASSES = {
    "phantom": ["liver", "spleen", "kidneys", "liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion"],
    "hippocampus": ["anterior", "posterior"],
}
TAIL = ("liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion")
PLAIN = {"name": "fedavg"}
LONGTAIL = {"name": "longtail"}
PRIVATE_LONGTAIL = {
    "name": "fedavg",
    "also": ["rarity", "kept_moments", "holders"],
    "settings": {"counts": {"epsilon": 0.3}},
}
"""Of the long tail's recipe what [privacy] allows: its sampler and its operating points look at who shows what."""
SHARED = {"name": "fedadam"}
SHARED_LONGTAIL = {
    "name": "fedadam",
    "also": ["rarity", "holders"],
    "settings": {"counts": {"epsilon": 0.3}},
}
"""Where noise is shared sites keep no moments either."""


def main() -> None:
    """Carry the runs out, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("utility"), help="for experiments and runs")
    parser.add_argument("--no-page", action="store_true", help="only carry the runs out")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for data in arguments.data:
            if data == "phantom":
                draw(folder, seed)
            for row in ROWS:
                carry_out(folder, data, seed, row)
    if not arguments.no_page:
        pages.write(pages.dated("utility"), page(folder, arguments.data, arguments.seeds))


Row = tuple[int | None, str, bool]
"""Epsilon, recipe, whether sums are secure."""
ROWS: list[Row] = list(product(EPSILONS, ("fedavg", "longtail"), (False, True)))


def draw(folder: Path, seed: int) -> None:
    """The hospitals of a seed."""
    options = ["--sites", SITES, "--patients", PATIENTS, "--shape", SHAPE, "--seed", seed]
    options += ["--imbalance", 10, "--alpha", 0.5, "--unannotated", 0]
    command = [FEDMED, "phantom", folder / f"federation-{seed}", *options]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def carry_out(folder: Path, data: str, seed: int, row: Row) -> None:
    """One run, where it is not there yet."""
    name = _name(data, seed, row)
    if _ended(folder, name) is not None:
        return
    file = folder / f"{name}.toml"
    file.write_text(tomli_w.dumps(experiment(data, seed, row)))
    command = [FEDMED, "simulate", str(file), "--runs", str(folder / "runs")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ended = _ended(folder, name)
    print(name, "none" if ended is None else f"{class_mean(_tested(ended), 'dice'):.3f}", flush=True)


def experiment(data: str, seed: int, row: Row) -> dict[str, Any]:
    """The run's file."""
    epsilon, recipe, secure = row
    shared = secure and epsilon is not None
    rounds = ROUNDS * STEPS if shared else ROUNDS
    document: dict[str, Any] = {
        "name": _name(data, seed, row),
        "seed": seed,
        "rounds": rounds,
        "task": {"classes": CLASSES[data]},
        "data": {"augmentation": "light", "splits": {"validation": 0.1, "test": 0.2}},
        "train": {"steps": STEPS, "threads": 1, "learning_rate": 3e-3, "schedule": "cosine"},
        "federation": {"evaluate_every": rounds},
        "recipe": LONGTAIL if recipe == "longtail" else PLAIN,
    }
    if secure:
        document["secure_aggregation"] = {"distributed_noise": shared}
    if epsilon is not None:
        document["privacy"] = {
            "epsilon": float(epsilon),
            "sampling_rate": 0.25,
            "samples": 2,
            "spare_rounds": 0,
        }
        document["recipe"] = PRIVATE_LONGTAIL if recipe == "longtail" else PLAIN
    if shared:
        document["train"] |= {"steps": 1, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}
        document["train"] |= {"weight_decay": 0.0, "schedule": "constant"}
        document["recipe"] = SHARED_LONGTAIL if recipe == "longtail" else SHARED
    return _with_data(document, data, seed)


def _with_data(document: dict[str, Any], data: str, seed: int) -> dict[str, Any]:
    if data == "phantom":
        document["task"]["dimensions"] = 2
        document["data"] |= {"spacing_mm": [8.0, 8.0, 8.5], "crop_to_foreground": True, "patch": [48, 32]}
        document["data"]["foreground_share"] = 1.0
        document["model"] = {"name": "unet_2015", "channels": [8, 16, 32]}
        document["train"]["batch_size"] = 24
        document["simulation"] = {"federation": f"federation-{seed}"}
        return document
    document["task"]["dimensions"] = 3
    document["data"] |= {"spacing_mm": [1.0, 1.0, 1.0], "patch": [32, 48, 32], "foreground_share": 0.66}
    document["data"]["intensity"] = {"kind": "zscore"}
    document["model"] = {"name": "unet", "channels": [8, 16, 32], "residual_units": 1}
    document["train"]["batch_size"] = 8
    site = {
        "name": "pool",
        "data": {"format": "nifti", "root": "${FEDMED_DATA}/volumes/hippocampus"},
        "labels": {"anterior": ["1"], "posterior": ["2"]},
        "policy": {"least_patients": 1},
    }
    document["simulation"] = {"partition": {"kind": "even", "sites": 4}, "sites": [site]}
    return document


def _name(data: str, seed: int, row: Row) -> str:
    epsilon, recipe, secure = row
    promise = "open" if epsilon is None else f"epsilon-{epsilon}"
    return f"{data}-{seed}-{promise}-{recipe}" + ("-secure" if secure else "")


def _ended(folder: Path, name: str) -> RunEnded | None:
    """The last line of the run's history, where it is done."""
    for file in sorted((folder / "runs").glob(f"20*-{name}-????/{history.FILE}")):
        *_, last = history.read(file)
        if isinstance(last, RunEnded) and last.status == "completed":
            return last
    return None


def _tested(ended: RunEnded) -> Metrics:
    """The last round's model on the test patients of all sites."""
    return merge(result.means() for result in ended.test["last"])


def page(folder: Path, data: list[str], seeds: list[int]) -> list[str]:
    """The dated page."""
    lines = [
        "# What privacy costs in Dice",
        "",
        pages.made_by(),
        "",
        f"{ROUNDS} rounds of {STEPS} steps, or as many rounds of one step where noise is shared. The last round's model on all "
        f"sites' test patients, mean over classes; mean over seeds {', '.join(map(str, seeds))} and standard deviation.",
    ]
    for one in data:
        columns = ["epsilon", "FedAvg", "FedAvg, secure", "long tail", "long tail, secure"]
        for title, names in (
            ("mean Dice", CLASSES[one]),
            *([("Dice of lesions", TAIL)] if one == "phantom" else []),
        ):
            lines += [
                "",
                f"## {one}: {title}",
                "",
                "| " + " | ".join(columns) + " |",
                "|---" * len(columns) + "|",
            ]
            for epsilon in EPSILONS:
                cells = [_cell(folder, one, seeds, row, names) for row in ROWS if row[0] == epsilon]
                lines.append(f"| {'none' if epsilon is None else epsilon} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(folder: Path, data: str, seeds: list[int], row: Row, classes: tuple[str, ...] | list[str]) -> str:
    values = []
    for seed in seeds:
        ended = _ended(folder, _name(data, seed, row))
        if ended is None:
            return "not run"
        metrics = _tested(ended)
        each = [metrics[f"dice/{name}"].value for name in classes if f"dice/{name}" in metrics]
        values.append(sum(each) / len(each))
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()

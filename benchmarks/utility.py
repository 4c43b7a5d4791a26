"""What privacy costs in Dice: epsilon 1, 3, 8 and none, with and without secure sums, and for the long tail's recipe.

    FEDMED_DATA=... python benchmarks/utility.py --seeds 1 2 3 --folder utility

`phantom`: six synthetic hospitals of 96 patients with rare lesions. `hippocampus`: real volumes, dealt to four sites, slice by
slice. Every run goes on from a network that was trained in the open on patients whom no site has: two synthetic hospitals more,
and every fifth patient of the hippocampus. Each takes the same number of steps at a site; epsilon is that of the whole run for
each patient, at a delta of 1e-5. Of the long tail's recipe [privacy] allows its loss and its holders' rows, these in the open
alone. With secure sums the noise is shared: each site adds its part, and a round is one step. What is there already is not done
again. The result is a page beside this file, by today's date.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pages
import runs

from fedmed_common.metrics import Metrics, class_mean, merge

EPSILONS = (None, 8, 3, 1)
ROUNDS, STEPS = 10, 3
SITES, PATIENTS, SHAPE = 6, 96, "48,48,24"
PUBLIC = {"sites": 2, "patients": 120, "seed": 1001}
CLASSES = {
    "phantom": ["liver", "spleen", "kidneys", "liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion"],
    "hippocampus": ["anterior", "posterior"],
}
TAIL = ("liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion")
OPEN_RATE = {"phantom": 1e-3, "hippocampus": 3e-3}
RATE = {"phantom": 0.2, "hippocampus": 0.05}
"""Of AdamW without privacy, and of SGD with it at an epsilon of 8, in proportion to epsilon; all of it found on seed 0."""


def main() -> None:
    """Carry the runs out, and write the page."""
    parser = pages.parser(__doc__, "utility", [1, 2, 3])
    parser.add_argument("--data", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    arguments = parser.parse_args()
    folder = arguments.folder
    for data in arguments.data:
        share(folder, data)
        carry_out(folder, f"{data}-public", on_public_patients(folder, data))
    for seed, data in product(arguments.seeds, arguments.data):
        if data == "phantom":
            draw(folder, f"federation-{seed}", SITES, PATIENTS, seed, imbalance=10, alpha=0.5)
        carry_out(folder, f"{data}-{seed}-start", untrained(folder, data, seed))
        for row in ROWS:
            carry_out(folder, _name(data, seed, row), experiment(folder, data, seed, row))
    if not arguments.no_page:
        pages.write(pages.dated("utility"), page(folder, arguments.data, arguments.seeds))


Row = tuple[int | None, str, bool]
"""Epsilon, recipe, whether sums are secure."""
ROWS: list[Row] = list(product(EPSILONS, ("fedavg", "longtail"), (False, True)))


def share(folder: Path, data: str) -> None:
    """Whom no site has, and, of the hippocampus, whom the sites have."""
    if data == "phantom":
        draw(folder, "public", PUBLIC["sites"], PUBLIC["patients"], PUBLIC["seed"], imbalance=1, alpha=50)
        return
    source = Path(os.environ["FEDMED_DATA"]).absolute() / "volumes" / "hippocampus"
    for number, file in enumerate(sorted((source / "images").iterdir())):
        for kind in ("images", "labels"):
            link = folder / "hippocampus" / ("sites" if number % 5 else "public") / kind / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(source / kind / file.name)


def draw(
    folder: Path, name: str, sites: int, patients: int, seed: int, *, imbalance: int, alpha: float
) -> None:
    """Synthetic hospitals."""
    if (folder / name).exists():
        return
    options = ["--sites", sites, "--patients", patients, "--shape", SHAPE, "--seed", seed]
    options += ["--imbalance", imbalance, "--alpha", alpha, "--unannotated", 0]
    command = [runs.FEDMED, "phantom", folder / name, *options]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def carry_out(folder: Path, name: str, document: dict[str, Any]) -> None:
    """One run, where it is not there yet."""
    if runs.simulate(folder, name, document | {"federation": {"evaluate_every": document["rounds"]}}):
        print(name, f"{class_mean(_tested(folder, name) or {}, 'dice'):.3f}", flush=True)


def on_public_patients(folder: Path, data: str) -> dict[str, Any]:
    """What all others start from."""
    document = _plain(folder, data, "public") | {"rounds": 12 if data == "phantom" else 4}
    document["train"] |= {"steps": 110 if data == "phantom" else 15, "learning_rate": 3e-3}
    if data == "phantom":
        document["recipe"] = {"name": "longtail"}
    return document


def untrained(folder: Path, data: str, seed: int) -> dict[str, Any]:
    """The start, on the patients on whom the others are tested."""
    document = _plain(folder, data, f"federation-{seed}") | {"seed": seed, "rounds": 1}
    document["train"] |= {"steps": 1, "learning_rate": 1e-12}
    return document | {"transfer": _start(folder, data)}


def experiment(folder: Path, data: str, seed: int, row: Row) -> dict[str, Any]:
    """The run's file."""
    epsilon, recipe, secure = row
    shared = secure and epsilon is not None
    document = _plain(folder, data, f"federation-{seed}") | {"seed": seed, "transfer": _start(folder, data)}
    document["rounds"] = ROUNDS * STEPS if shared else ROUNDS
    document["train"] |= {"steps": 1 if shared else STEPS}
    document["recipe"] = {"name": recipe}
    if secure:
        document["secure_aggregation"] = {"distributed_noise": shared}
    if epsilon is not None:
        rate = RATE[data] * epsilon / 8
        document["train"] |= {"optimizer": "sgd", "momentum": 0.0, "learning_rate": rate, "weight_decay": 0.0}
        document["train"]["schedule"] = "constant"
        sampled = (0.25, 2) if data == "phantom" else (0.5, 4)
        document["privacy"] = {"epsilon": float(epsilon), "spare_rounds": 0}
        document["privacy"] |= dict(zip(("sampling_rate", "samples"), sampled, strict=True))
        if recipe == "longtail":
            also = ["rarity"] if secure else ["rarity", "holders"]
            document["recipe"] = {"name": "fedavg", "also": also, "settings": {"counts": {"epsilon": 0.3}}}
    return document


def _plain(folder: Path, data: str, federation: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "task": {"classes": CLASSES[data], "dimensions": 2},
        "data": {
            "augmentation": "light",
            "splits": {"validation": 0.1, "test": 0.2},
            "foreground_share": 1.0,
        },
        "model": {"name": "unet_2015", "channels": [8, 16, 32]},
        "train": {"threads": 1, "learning_rate": OPEN_RATE[data], "schedule": "cosine"},
        "recipe": {"name": "fedavg"},
    }
    if data == "phantom":
        document["data"] |= {"spacing_mm": [8.0, 8.0, 8.5], "crop_to_foreground": True, "patch": [48, 32]}
        document["train"]["batch_size"] = 24
        document["simulation"] = {"federation": federation}
        return document
    document["data"] |= {"spacing_mm": [1.0, 1.0, 1.0], "patch": [32, 48], "intensity": {"kind": "zscore"}}
    document["train"]["batch_size"] = 16
    is_public = federation == "public"
    site = {
        "name": "pool",
        "data": {
            "format": "nifti",
            "root": str(folder / "hippocampus" / ("public" if is_public else "sites")),
        },
        "labels": {"anterior": ["1"], "posterior": ["2"]},
        "policy": {"least_patients": 1},
    }
    document["simulation"] = {
        "partition": {"kind": "even", "sites": 2 if is_public else 4},
        "sites": [site],
    }
    return document


def _start(folder: Path, data: str) -> dict[str, Any]:
    done = runs.done(folder, f"{data}-public")
    if done is None:
        raise SystemExit(f"{data}-public did not end")
    return {"weights": str(done[0] / "models" / "last.safetensors")}


def _name(data: str, seed: int, row: Row) -> str:
    epsilon, recipe, secure = row
    promise = "open" if epsilon is None else f"epsilon-{epsilon}"
    return f"{data}-{seed}-{promise}-{recipe}" + ("-secure" if secure else "")


def _tested(folder: Path, name: str) -> Metrics | None:
    """The last round's model on the test patients of all sites."""
    done = runs.done(folder, name)
    return None if done is None else merge(result.means() for result in done[1].test["last"])


def page(folder: Path, data: list[str], seeds: list[int]) -> list[str]:
    """The dated page."""
    lines = [
        "# What privacy costs in Dice",
        "",
        pages.made_by(),
        "",
        f"{ROUNDS} rounds of {STEPS} steps, or as many rounds of one step where noise is shared, from a network trained in "
        "the open on patients whom no site has. The last round's model on all sites' test patients, mean over classes; mean over "
        f"seeds {', '.join(map(str, seeds))} and standard deviation.",
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
            start = _cell(folder, [f"{one}-{seed}-start" for seed in seeds], names)
            lines.append(f"| the start | {start} | | | |")
            for epsilon in EPSILONS:
                rows = [row for row in ROWS if row[0] == epsilon]
                cells = [_cell(folder, [_name(one, seed, row) for seed in seeds], names) for row in rows]
                lines.append(f"| {'none' if epsilon is None else epsilon} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(folder: Path, names: list[str], classes: Sequence[str]) -> str:
    values = []
    for name in names:
        metrics = _tested(folder, name)
        if metrics is None:
            return "not run"
        each = [metrics[f"dice/{name}"].value for name in classes if f"dice/{name}" in metrics]
        values.append(sum(each) / len(each))
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()

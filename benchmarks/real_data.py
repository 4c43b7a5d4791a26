"""Federated, pooled and local-only Dice on the real data sets, over seeds, through the ``fedmed`` command.

    FEDMED_DATA=... python benchmarks/real_data.py nuclei retina hippocampus --seeds 1 2 3

A finished run is kept below ``--runs`` and not run again, so the benchmark can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FEDMED = str(Path(sys.executable).with_name("fedmed"))


def run(experiment: str, seed: int, runs: Path) -> dict[str, object]:
    """One experiment with one seed and both baselines: Dice by kind of training and class."""
    folder = runs / f"{experiment}-{seed}"
    done = folder / "result.json"
    if not done.exists():
        command = [
            "simulate",
            experiment,
            "--seed",
            str(seed),
            "--baseline",
            "pooled",
            "--baseline",
            "local",
            "--runs",
            str(folder),
        ]
        started = time.perf_counter()
        subprocess.run([FEDMED, *command], check=True)
        comparison = max(folder.glob("*/comparison.json"), key=lambda file: file.stat().st_mtime)
        dice = {
            kind: {
                name.partition("/")[2]: total / weight
                for name, (total, weight) in metrics.items()
                if name.startswith("dice/") and weight
            }
            for kind, metrics in json.loads(comparison.read_text()).items()
        }
        result = {
            "command": " ".join(["fedmed", *command[:-2]]),
            "seconds": time.perf_counter() - started,
            "dice": dice,
        }
        done.write_text(json.dumps(result, indent=2))
    return json.loads(done.read_text())  # type: ignore[no-any-return]


def summary(results: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """A Markdown table: mean and standard deviation over seeds."""
    lines = ["| data | class | federated | pooled | local only |", "|---|---|---|---|---|"]
    for experiment, seeds in results.items():
        for klass in seeds[0]["federated"]:
            cells = []
            for kind in ("federated", "pooled", "local"):
                values = [seed[kind][klass] for seed in seeds]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            lines.append(f"| {experiment} | {klass} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()
    raw = {name: [run(name, seed, options.runs) for seed in options.seeds] for name in options.experiments}
    date = datetime.now(UTC).date().isoformat()
    versions = ", ".join(f"{name} {version(name)}" for name in ("fedmed", "torch", "monai", "flwr"))
    page = f"""# Federated, pooled and local-only training on real data

{date}; {platform.machine()}, {os.cpu_count()} cores; {versions}.

Dice on held-out test patients of all sites, mean ± standard deviation over seeds {options.seeds}. The seed sets the
split, the initial weights and the order of patches. Every model takes rounds x steps optimizer steps: the federation's
at each site, the pooled one on everyone's training patients, a local one on its own site's. Each is the best of its
evaluated rounds on validation patients. Local only: each site's model on that site's own test patients.

{summary({name: [result["dice"] for result in results] for name, results in raw.items()})}

Commands, with `FEDMED_DATA` naming the folder of data sets:

{chr(10).join(f"- `{result['command']}` ({result['seconds']:.0f} s)" for results in raw.values() for result in results)}
"""
    file = Path(__file__).parent / f"real_data-{date}.md"
    file.write_text(page)
    file.with_suffix(".json").write_text(json.dumps(raw, indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main()

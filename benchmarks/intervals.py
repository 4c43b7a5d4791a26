"""How often the 95 % intervals of a comparison hold a difference that is known, on invented federations.

A competitor is better than the reference by 0.05, plus what is drawn for each seed and for each patient. Patients are others
under each seed, or the same under all, as with ``[test]``.

    python benchmarks/intervals.py
"""

from __future__ import annotations

import argparse
import itertools
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedmed_common.metrics import SCORES
from fedmed_simulations.compare.columns import Classes, Means, Scored
from fedmed_simulations.compare.statistics import Outcomes, bootstrap

TRUTH = 0.05
SITES, PATIENTS = 3, 10
SEEDS = (3, 5, 10)
SPREADS = ((0.03, 0.1), (0.0, 0.1), (0.03, 0.3))
"""Standard deviation of the difference over seeds, and over patients."""
CLASSES = Classes(
    names=("a", "b", "c"),
    groups={"head": ("a",), "medium": ("b",), "tail": ("c",)},
    lead=SCORES["segmentation"][0],
)


def world(
    rng: np.random.Generator, seeds: int, spread: tuple[float, float], *, same: bool
) -> tuple[Outcomes, Outcomes]:
    """What was measured of the reference and of the competitor."""
    of_seeds, of_patients = spread
    shape = (PATIENTS, len(CLASSES.names))
    people = rng.normal(0, of_patients, (SITES, *shape))
    first: dict[int, dict[str, Scored]] = {}
    second: dict[int, dict[str, Scored]] = {}
    for seed in range(seeds):
        shift = rng.normal(0, of_seeds)
        if not same:
            people = rng.normal(0, of_patients, (SITES, *shape))
        for site in range(SITES):
            base = np.where(rng.random(shape) < 0.3, np.nan, rng.normal(0.5, 0.1, shape))
            gain = TRUTH + shift + people[site] + rng.normal(0, 0.05, shape)
            for outcomes, values in ((first, base), (second, base + gain)):
                scored = Scored(patients=tuple(range(PATIENTS)), sums={"dice": Means(values)})
                outcomes.setdefault(seed, {})[f"site-{site}"] = scored
    return first, second


def coverage(seeds: int, spread: tuple[float, float], worlds: int, *, same: bool) -> float:
    """In which share of the worlds the interval of the mean holds the truth."""
    rng = np.random.default_rng([seeds, *(round(1000 * one) for one in spread), same])
    held = 0
    for _ in range(worlds):
        first, second = world(rng, seeds, spread, same=same)
        both = {"reference": first, "other": second}
        found = bootstrap(both, "reference", CLASSES, draws=300, same_patients=same)["other"]["mean"]
        held += found.low <= TRUTH <= found.high
    return held / worlds


def main() -> None:
    """Measure, and write the dated file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    worlds: int = parser.parse_args().worlds
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"# Intervals, {day}",
        "",
        f"`python benchmarks/intervals.py --worlds {worlds}`; numpy {version('numpy')}, Python {platform.python_version()}. "
        f"Share of {worlds} invented federations of {SITES} sites with {PATIENTS} test patients each in which the 95 % interval "
        "of the mean holds the true difference.",
        "",
        "| SD over seeds | SD over patients | test patients | "
        + " | ".join(f"{n} seeds" for n in SEEDS)
        + " |",
        "|---|---|---|" + "---|" * len(SEEDS),
    ]
    for spread, same in itertools.product(SPREADS, (False, True)):
        shares = [f"{coverage(seeds, spread, worlds, same=same):.3f}" for seeds in SEEDS]
        who = "the same under all seeds" if same else "others under each seed"
        lines.append(f"| {spread[0]:g} | {spread[1]:g} | {who} | {' | '.join(shares)} |")
        print(lines[-1], flush=True)
    Path(__file__).with_name(f"intervals-{day}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""FedBuff beside FedAvg on synthetic hospitals of unequal speed: the time to the same Dice, with as many trainings.

Time is a simulation's: a hospital's pace is log-normal with deviation --spread, and a training takes its steps times its pace.
FedAvg waits for the slowest in each round. All rows train as often, from the same weights, and are measured as often.

    python benchmarks/asynchronous.py --seeds 1 2 3 --spread 0.7 0 --buffers 4 2
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pages

from fedmed_client.workbench import COHORTS
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_common.metrics import class_mean, merge
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone, RunEnded, SiteResult
from fedmed_simulations import runfolder
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation

SITES, PATIENTS, SHAPE = 8, 12, (32, 32, 16)
ROUNDS, LAST = 24, 3
EXPERIMENT = """
name = "asynchronous"
seed = {seed}
rounds = {rounds}
[task]
classes = ["liver", "spleen", "kidneys", "pancreas", "aorta", "spine"]
dimensions = 3
[data]
spacing_mm = [10.0, 10.0, 10.0]
crop_to_foreground = true
patch = [24, 24, 16]
intensity = {{ kind = "percentile", low = 0.5, high = 99.5 }}
splits = {{ validation = 0.25, test = 0.25 }}
[model]
channels = [8, 16, 32]
residual_units = 0
[train]
steps = 10
batch_size = 2
learning_rate = 4e-3
device = "cpu"
threads = 1
[recipe]
{recipe}
[federation]
evaluate_every = {every}
[simulation]
federation = "{federation}"
pace_spread = {spread}
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run. ``curve``: time and mean validation Dice at each evaluation. ``test``, ``worst``: of the last model."""

    curve: tuple[tuple[float, float], ...]
    test: float
    worst: float
    trainings: int
    dropped: int
    staleness: float
    shares: dict[str, float]

    @property
    def last(self) -> float:
        """The mean validation Dice of the last evaluations."""
        return statistics.mean(value for _, value in self.curve[-LAST:])

    def reaches(self, target: float) -> float:
        """When the Dice was first that high; infinite where it never was."""
        return next((clock for clock, value in self.curve if value >= target), math.inf)


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = pages.parser(__doc__, "asynchronous", [1, 2, 3])
    parser.add_argument("--spread", type=float, nargs="+", default=[0.7, 0.0])
    parser.add_argument("--buffers", type=int, nargs="+", default=[4, 2])
    given = parser.parse_args()
    found = {}
    for spread in given.spread:
        for seed in given.seeds:
            for buffer in (0, *given.buffers):
                found[spread, buffer, seed] = outcome_of(given.folder, spread, buffer, seed)
                print(spread, buffer, seed, found[spread, buffer, seed], flush=True)
    if not given.no_page:
        pages.write(pages.dated("asynchronous"), page(found, given.seeds, given.spread, given.buffers))


def outcome_of(folder: Path, spread: float, buffer: int, seed: int) -> Outcome:
    """Of one run, which is carried out where it has not been. ``buffer``: 0 is FedAvg."""
    federation = folder / f"federation-{seed}"
    if not federation.exists():
        settings = PhantomSettings(
            sites=SITES, patients=PATIENTS, shape=SHAPE, seed=seed, vacant=0, unannotated=0
        )
        write_federation(federation, settings, workers=1)
    name = f"spread-{spread:g}-buffer-{buffer}-seed-{seed}"
    recipe = 'name = "fedavg"'
    if buffer:
        recipe = f'name = "fedbuff"\nsettings.buffered = {{ buffer = {buffer}, most_staleness = 40 }}'
    file = folder / f"{name}.toml"
    file.write_text(
        EXPERIMENT.format(
            seed=seed,
            rounds=ROUNDS * (SITES // buffer if buffer else 1),
            every=SITES // buffer if buffer else 1,
            recipe=recipe,
            federation=json.dumps(str(federation))[1:-1],
            spread=spread,
        )
    )
    experiment = load_experiment(file)
    run = folder / "runs" / name
    if not ended(run):
        homes = make_homes(experiment, check_experiment(experiment, file), folder / "sites")
        COHORTS.forget()
        if not run.exists():
            runfolder.create(run, experiment, runfolder.Plan(engine="inline", command="benchmark"))
        run_inline(homes, RunRequest(experiment=experiment, folder=run, command="benchmark", sites=SITES))
    return measured(run, experiment)


def ended(run: Path) -> bool:
    """Whether it was carried out to its end."""
    records = list(history.read(run / history.FILE))
    return bool(records) and isinstance(records[-1], RunEnded)


def measured(run: Path, experiment: Experiment) -> Outcome:
    """What a finished run's history says. FedAvg of sites of equal speed has no clock: all take as long."""
    records = list(history.read(run / history.FILE))
    done = [record for record in records if isinstance(record, RoundDone)]
    end = records[-1]
    assert isinstance(end, RunEnded)
    used = [result for record in done for result in record.train if result.outcome == "ok"]
    clocks = [
        experiment.train.steps * float(record.round) if record.clock is None else record.clock
        for record in done
    ]
    counts = {result.site: 0 for result in end.test["last"]}
    for result in used:
        counts[result.site] += 1
    return Outcome(
        curve=tuple(
            (clock, dice(record.evaluation))
            for clock, record in zip(clocks, done, strict=True)
            if record.evaluation
        ),
        test=dice(end.test["last"]),
        worst=min(dice([result]) for result in end.test["last"]),
        trainings=len(used),
        dropped=sum(result.outcome != "ok" for record in done for result in record.train),
        staleness=statistics.mean(result.staleness for result in used),
        shares={site: count / len(used) for site, count in counts.items()},
    )


def dice(results: Sequence[SiteResult]) -> float:
    """The mean over classes, of all sites' patients together."""
    return class_mean(merge(result.means() for result in results), "dice")


def page(
    found: Mapping[tuple[float, int, int], Outcome],
    seeds: Sequence[int],
    spreads: Sequence[float],
    buffers: Sequence[int],
) -> list[str]:
    """A table for each spread of speeds."""
    lines = [
        "# FedBuff beside FedAvg, by simulated time",
        "",
        pages.made_by(),
        "",
        f"{SITES} synthetic hospitals of {PATIENTS} patients, six organs; {ROUNDS * SITES} trainings of 10 steps in each row; "
        f"seeds {', '.join(map(str, seeds))}: mean and, in brackets, each seed. Time is in steps of a hospital of median "
        f"speed. The Dice to reach is that of FedAvg, the mean of its last {LAST} evaluations on validation patients, and 95 % "
        "of it. Test Dice, and that of the worst site, are of the last model on held-out patients. Shares are of the updates "
        f"that were used; {1 / SITES:.3f} would be equal.",
        "",
    ]
    for spread in spreads:
        lines += [
            f"## Speeds with a deviation of {spread:g}" if spread else "## All equally fast",
            "",
            "| | time of all trainings / FedAvg's | time to 95 % of FedAvg's Dice / FedAvg's | time to FedAvg's Dice / FedAvg's "
            "| test Dice - FedAvg's | worst site - FedAvg's | staleness | fastest, slowest site's share | dropped |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row(found, spread, buffer, seeds) for buffer in (0, *buffers)),
            "",
        ]
    return lines


def row(
    found: Mapping[tuple[float, int, int], Outcome], spread: float, buffer: int, seeds: Sequence[int]
) -> str:
    """One recipe."""
    pairs = [(found[spread, buffer, seed], found[spread, 0, seed]) for seed in seeds]

    def of(value: Sequence[float], form: str = "{:.2f}") -> str:
        told = [form.format(one) if math.isfinite(one) else "never" for one in value]
        finite = [one for one in value if math.isfinite(one)]
        mean = form.format(float(np.mean(finite))) if len(finite) == len(value) else "-"
        return f"{mean} ({', '.join(told)})"

    ends = [one.curve[-1][0] / plain.curve[-1][0] for one, plain in pairs]
    some = [one.reaches(0.95 * plain.last) / plain.reaches(0.95 * plain.last) for one, plain in pairs]
    whole = [one.reaches(plain.last) / plain.reaches(plain.last) for one, plain in pairs]
    if not buffer:
        tests = f"{statistics.mean(one.test for one, _ in pairs):.3f}"
        worst = f"{statistics.mean(one.worst for one, _ in pairs):.3f}"
    else:
        tests = of([one.test - plain.test for one, plain in pairs], "{:+.3f}")
        worst = of([one.worst - plain.worst for one, plain in pairs], "{:+.3f}")
    shares = [f"{max(one.shares.values()):.2f}, {min(one.shares.values()):.2f}" for one, _ in pairs]
    name = f"FedBuff, buffer {buffer}" if buffer else "FedAvg"
    return (
        f"| {name} | {of(ends)} | {of(some)} | {of(whole)} | {tests} | {worst} "
        f"| {statistics.mean(one.staleness for one, _ in pairs):.1f} | {'; '.join(shares)} "
        f"| {sum(one.dropped for one, _ in pairs)} |"
    )


if __name__ == "__main__":
    main()

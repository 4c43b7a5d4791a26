"""A finished run as a federation of four hospitals leaves it, made through the history's own writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteFacts, SiteResult, append

START = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What happens in a made run. ``shares``: class -> share of patients who show it. ``private``: with ``[privacy]``."""

    rounds: int = 12
    sites: tuple[str, ...] = ("north", "east", "south", "west")
    shares: dict[str, float] | None = None
    late: tuple[int, ...] = (5, 9)
    status: str | None = None
    seed: int = 7
    private: bool = False

    def classes(self) -> dict[str, float]:
        """The long tail by default."""
        return self.shares or {
            "liver": 1.0, "spleen": 0.97, "left_kidney": 0.95, "right_kidney": 0.95, "aorta": 0.9,
            "pancreas": 0.75, "spine": 0.6, "kidney_cyst": 0.22, "liver_lesion": 0.12, "adrenal_mass": 0.03,
        }  # fmt: skip


class MadeRun:
    """Writes a run folder record by record, with numbers that depend on the plan alone."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.history = folder / "history.jsonl"
        self.facts = tuple(self._facts(index) for index in range(len(plan.sites)))
        folder.mkdir(parents=True)
        (folder / "experiment.toml").write_text(_experiment(plan, folder), encoding="utf-8")

    def start(self, resumed_from_round: int = 0) -> None:
        """A 'started' line."""
        environment = {
            "fedmed": "0.1.0",
            "torch": "2.9.0",
            "python": "3.11.9",
            "system": "Linux x86_64",
            "gpu": "none",
        }
        record = RunStarted(
            time=self.time(resumed_from_round),
            run_id=self.folder.name,
            resumed_from_round=resumed_from_round,
            sites=self.facts,
            command="fedmed simulate /home/somebody/plans/abdomen.toml --seed 7",
            environment=environment,
            parameters=1_204_331,
        )
        append(self.history, record)

    def round(self, number: int) -> None:
        """One round's line."""
        evaluation = tuple(self._scores(i, number, "validation") for i in range(len(self.facts)))
        record = RoundDone(
            time=self.time(number),
            round=number,
            attempt=0,
            train=tuple(self._training(i, number) for i in range(len(self.facts))),
            evaluation=evaluation,
            criterion=0.3 + 0.5 * (1 - np.exp(-number / 4)),
            is_best=number != self.plan.rounds - 1,
            seconds={"train": 6.1 + 0.2 * (number % 3), "aggregate": 0.08, "evaluate": 2.2, "total": 8.5},
        )
        append(self.history, record)

    def end(self, status: str | None = None) -> None:
        """The last line, with the test."""
        rounds = self.plan.rounds
        test = {
            model: tuple(self._scores(i, rounds, "test") for i in range(len(self.facts)))
            for model in ("best", "last")
        }
        missed = [
            f"{self.plan.sites[-1]} missed the training of round {n} (late: deadline)" for n in self.plan.late
        ]
        status = status or self.plan.status or ("degraded: " + "; ".join(missed) if missed else "completed")
        append(
            self.history, RunEnded(time=self.time(rounds + 1), status=status, best_round=rounds, test=test)
        )

    def all(self) -> Path:
        """The whole run; its folder."""
        self.start()
        for number in range(1, self.plan.rounds + 1):
            self.round(number)
        self.end()
        return self.folder

    def time(self, number: int) -> str:
        """When a round was done."""
        return (START + timedelta(seconds=9 * number)).isoformat(timespec="milliseconds")

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, *key])

    def _facts(self, index: int) -> SiteFacts:
        random = self._random(1, index)
        train = int(random.integers(24, 70))
        presence = {}
        for position, (klass, share) in enumerate(self.plan.classes().items()):
            if (index, position) in {(1, 5), (2, 8), (3, 8), (2, 6)}:
                continue
            count = int(random.binomial(train, share)) if (index, position) != (0, 7) else 0
            presence[klass] = -1 if 0 < count < 3 else count
        patients = {"train": train, "validation": train // 4, "test": train // 3}
        return SiteFacts(name=self.plan.sites[index], patients=patients, presence=presence, version="0.1.0")

    def _training(self, index: int, number: int) -> SiteResult:
        site = self.facts[index]
        if index == len(self.facts) - 1 and number in self.plan.late:
            return SiteResult(
                site=site.name,
                outcome="late",
                code="deadline",
                incident=f"{number:04x}a7",
                bytes_down=4_817_900,
            )
        if self.plan.private:
            return SiteResult(
                site=site.name,
                patients=site.patients["train"],
                epsilon_spent=number / 2 + index / 8,
                bytes_down=4_817_900,
                bytes_up=4_818_344,
            )
        noise = self._random(2, index, number).normal(0, 0.02)
        loss = 0.35 + 0.06 * index + 1.3 * np.exp(-number / 3.5) + noise
        return SiteResult(
            site=site.name,
            patients=site.patients["train"],
            metrics={"loss": (20 * float(loss), 20.0)},
            seconds={"train": 5.1 + index, "wait": 0.4, "site": 5.9 + index},
            bytes_down=4_817_900,
            bytes_up=4_818_344,
        )

    def _scores(self, index: int, number: int, split: str) -> SiteResult:
        site = self.facts[index]
        random = self._random(3, index, number, len(split))
        cohort = self._random(4, index, len(split))
        metrics: dict[str, tuple[float, float]] = {}
        for position, (klass, share) in enumerate(self.plan.classes().items()):
            present = int(cohort.binomial(site.patients[split], share))
            if klass not in site.presence:
                continue
            top = 0.93 - 0.035 * position - (0.25 if share < 0.2 else 0)
            dice = (
                top * (1 - np.exp(-number / (2.2 + 0.5 * position))) - 0.02 * index + random.normal(0, 0.012)
            )
            if present:
                metrics[f"dice/{klass}"] = (present * float(np.clip(dice, 0, 1)), float(present))
            absent = site.patients[split] - present
            if absent:
                metrics[f"false_positive/{klass}"] = (float(random.binomial(absent, 0.08)), float(absent))
        seconds = {"evaluate": 1.4 + 0.3 * index, "site": 1.9 + 0.3 * index}
        return SiteResult(
            site=site.name,
            patients=site.patients[split],
            metrics=metrics,
            seconds=seconds,
            bytes_down=4_817_900,
            bytes_up=1210,
        )


def _experiment(plan: Plan, folder: Path) -> str:
    classes = ", ".join(f'"{klass}"' for klass in plan.classes())
    privacy = "\n[privacy]\nepsilon = 8.0\nsampling_rate = 0.25\n" if plan.private else ""
    return f"""# four hospitals and a long tail
name = "abdomen"
seed = {plan.seed}
rounds = {plan.rounds}

[task]
classes = [{classes}]

[data]
patch = [64, 64, 32]
spacing_mm = [2.0, 2.0, 3.0]

[train]
steps = 20  # per round
{privacy}
[simulation]
federation = "{folder.parent / "hospitals"}"
"""


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., MadeRun]:
    """Begins a run folder: ``make_run(name, **fields of Plan)``."""

    def make(name: str = "abdomen-20250301-7", **changes: object) -> MadeRun:
        return MadeRun(tmp_path / "runs" / name, replace(Plan(), **changes))  # type: ignore[arg-type]

    return make

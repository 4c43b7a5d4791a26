"""What a run leaves behind round by round: one JSON object a line in ``history.jsonl``.

The report and MLflow are both drawn from this file, so neither can delay a round, and either can be made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, RootModel

from fedmed_common.metrics import Mean, Metrics
from fedmed_common.site_config import HeldOut

FILE = "history.jsonl"

Outcome = Literal["ok", "late", "refused", "failed", "rejected"]


class Record(BaseModel):
    """Frozen; ``time`` is ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    time: str


class SiteFacts(BaseModel):
    """What a site declared of its cohort when the run began: counts of patients, all of them sums."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    patients: dict[str, int] = Field(description="by split: train, validation, test")
    presence: dict[str, int] = Field(
        description="by annotated class: training patients who show it; a class not annotated is absent"
    )
    version: str
    withdrawn_from: int = Field(
        0, description="runs that had trained on patients who withdrew there afterwards"
    )
    held_out: HeldOut = Field(
        "measured", description="what leaves of metrics of validation and test patients"
    )
    sites: int = Field(0, description="of a region: how many sites it answers for; 0: it is a hospital")


class SiteResult(BaseModel):
    """One site's part in one round, training or evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    site: str
    outcome: Outcome = "ok"
    code: str = Field("", description="error code, refused rule or the gate's reason; empty when ok")
    incident: str = Field("", description="random id under which the site keeps the details; empty when ok")
    patients: int = 0
    metrics: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="name -> (total, weight)"
    )
    seconds: dict[str, float] = Field(
        default_factory=dict,
        description="as the site says: site, its whole order; train or evaluate, of it; wait, of train, without a batch",
    )
    epsilon_spent: float | None = Field(
        None, description="where there was noise: what the run has cost each of the patients it is of so far"
    )
    bytes_down: int = 0
    bytes_up: int = 0
    staleness: int = Field(0, description="steps that the server took while the site trained")
    asked: int = Field(0, description="of a region: how many of its sites it asked")
    missed: int = Field(0, description="of a region: how many of those are missing in its answer")

    @property
    def is_whole(self) -> bool:
        """Whether it holds the answer of all whom it is of."""
        return self.outcome == "ok" and not self.missed

    def reason(self) -> str:
        """What went wrong, for the coordinator."""
        incident = f", incident {self.incident}" if self.incident else ""
        return f"{self.outcome} ({self.code}{incident})"

    def problem(self) -> str:
        """The same with the site's name."""
        return f"{self.site}: {self.reason()}"

    def means(self) -> Metrics:
        """The metrics as values that can be added."""
        return {name: Mean(*pair) for name, pair in self.metrics.items()}


class RunStarted(Record):
    """The first line, and once more after each resume."""

    kind: Literal["started"] = "started"
    run_id: str
    resumed_from_round: int = 0
    sites: tuple[SiteFacts, ...]
    command: str
    environment: dict[str, str] = Field(description="package versions, device, platform: from an allow-list")
    parameters: int = Field(description="how many numbers the model has")


class RoundDone(Record):
    """One finished round."""

    kind: Literal["round"] = "round"
    round: int
    attempt: int
    train: tuple[SiteResult, ...]
    evaluation: tuple[SiteResult, ...] = Field(
        (), description="validation patients; empty in rounds without evaluation"
    )
    criterion: float | None = Field(
        None, description="value of federation.best over all sites, where evaluated"
    )
    is_best: bool = False
    clock: float | None = Field(
        None,
        description="of a simulation with paces: the time at its end, in steps of a site of median speed",
    )
    seconds: dict[str, float] = Field(description="by phase: train, aggregate, evaluate, checkpoint, total")


class RunEnded(Record):
    """The last line. ``status`` is 'completed' only when every site answered every round."""

    kind: Literal["ended"] = "ended"
    status: str
    best_round: int
    test: dict[str, tuple[SiteResult, ...]] = Field(
        default_factory=dict, description="model ('best', 'last') -> held-out test patients per site"
    )


Line: TypeAlias = RunStarted | RoundDone | RunEnded


class _Line(RootModel[Line]):
    root: Line = Field(discriminator="kind")


def append(file: Path, record: RunStarted | RoundDone | RunEnded) -> None:
    """Write one record durably; a line that a crash left unfinished is cut off first."""
    with file.open("ab+") as stream:
        _cut_unfinished_line(stream.fileno())
        stream.write(record.model_dump_json().encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def missed(results: Iterable[SiteResult], what: str) -> tuple[str, ...]:
    """One sentence for each site that did not do its part, and for each region in whose answer sites are missing."""
    return tuple(
        f"{result.site} missed the {what} ({result.outcome}: {result.code})"
        if result.outcome != "ok"
        else f"{result.missed} of the {result.asked} sites of {result.site} missed the {what}"
        for result in results
        if not result.is_whole
    )


def rounds_by_site(rounds: Iterable[RoundDone]) -> dict[str, int]:
    """In how many rounds each site's update was used."""
    counts: dict[str, int] = {}
    for done in rounds:
        for result in done.train:
            if result.outcome == "ok":
                counts[result.site] = counts.get(result.site, 0) + 1
    return counts


def epsilon_by_site(rounds: Iterable[RoundDone]) -> dict[str, float]:
    """By site that trained privately: what all its answers so far have cost each of its patients."""
    return largest_epsilons(result for done in rounds for result in done.train)


def largest_epsilons(results: Iterable[SiteResult]) -> dict[str, float]:
    """By site whose results had noise: the most that one says to have cost."""
    spent: dict[str, float] = {}
    for result in results:
        if result.epsilon_spent is not None:
            spent[result.site] = max(spent.get(result.site, 0.0), result.epsilon_spent)
    return spent


def read(file: Path) -> Iterator[RunStarted | RoundDone | RunEnded]:
    """The records in order; an unfinished last line is left out."""
    yield from read_from(file, 0)[0]


def read_from(
    file: Path, offset: int, most: int | None = None
) -> tuple[list[RunStarted | RoundDone | RunEnded], int]:
    """The finished records from byte ``offset`` on, ``most`` of them at most, and the offset to go on from."""
    records: list[RunStarted | RoundDone | RunEnded] = []
    if not file.exists():
        return records, offset
    with file.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n") or len(records) == most:
                break
            records.append(_Line.model_validate_json(line).root)
            offset += len(line)
    return records, offset


def _cut_unfinished_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    while size and os.pread(descriptor, 1, size - 1) != b"\n":
        size -= 1
    os.ftruncate(descriptor, size)

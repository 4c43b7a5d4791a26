"""History records as named values, for stores that draw curves: ``train/loss``, ``validation/dice/liver``, ``bytes/train/up``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedmed_common.metrics import SCORES, Metrics, class_mean, merge
from fedmed_server.history import Record, RoundDone, RunEnded, SiteFacts, SiteResult, epsilon_by_site

_NAME = re.compile(r"\w[\w.\- ]*(/\w[\w.\- ]*)*", re.ASCII)
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The numbers of one record at one ``step``: those of the federation, and those of each site."""

    step: int
    federation: dict[str, float]
    sites: dict[str, dict[str, float]] = field(default_factory=dict)


def of_facts(facts: SiteFacts) -> dict[str, float]:
    """A site's patients by split and its training patients by class, without the counts that it hides."""
    counts = {f"patients/{split}": float(count) for split, count in facts.patients.items()}
    return _clean(counts | {f"presence/{klass}": float(n) for klass, n in facts.presence.items() if n >= 0})


def of_round(record: RoundDone) -> Points:
    """Training and validation of one round; the step is the round."""
    federation = {f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    spent = epsilon_by_site([record])
    if spent:
        federation["privacy/epsilon_spent"] = max(spent.values())
    if record.criterion is not None:
        federation["validation/criterion"] = record.criterion
    if record.clock is not None:
        federation["simulated/clock"] = record.clock
    ages = [result.staleness for result in record.train if result.outcome == "ok"]
    if any(ages):
        federation |= {"staleness/mean": sum(ages) / len(ages), "staleness/most": float(max(ages))}
    sites: dict[str, dict[str, float]] = {}
    for site, epsilon in spent.items():
        sites.setdefault(site, {})["privacy/epsilon_spent"] = epsilon
    for phase, results in (("train", record.train), ("validation", record.evaluation)):
        federation |= _of_all(phase, results)
        for result in results:
            sites.setdefault(result.site, {}).update(_of_site(phase, result))
    return Points(
        step=record.round, federation=_clean(federation), sites={s: _clean(v) for s, v in sites.items()}
    )


def of_test(record: RunEnded, last_round: int) -> list[Points]:
    """The held-out patients' metrics of each tested model; 'best' stands at its round, others at the last."""
    points = []
    for model, results in record.test.items():
        phase = f"test/{model}"
        points.append(
            Points(
                step=record.best_round if model == "best" else last_round,
                federation=_clean(_of_all(phase, results)),
                sites={result.site: _clean(_of_site(phase, result)) for result in results},
            )
        )
    return points


def status(ended: RunEnded) -> str:
    """The status' first word; what follows its colon is for the people at this machine."""
    return ended.status.partition(":")[0].strip()


def milliseconds(record: Record) -> int:
    """The record's time since 1970, UTC."""
    time = datetime.fromisoformat(record.time)
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def flatten(document: Any, longest: int, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of at most ``longest`` characters: ``("train.steps", "20")``."""
    if isinstance(document, dict):
        for key, inner in document.items():
            yield from flatten(inner, longest, f"{name}.{key}" if name else key)
        return
    text = document if isinstance(document, str) else json.dumps(document)
    yield name, text if len(text) <= longest else text[: longest - 3] + "..."


def together(results: Sequence[SiteResult]) -> Metrics:
    """The metrics of all sites that answered."""
    return merge(result.means() for result in results if result.outcome == "ok")


def _of_all(phase: str, results: Sequence[SiteResult]) -> dict[str, float]:
    answered = [result for result in results if result.outcome == "ok"]
    merged = merge(result.means() for result in answered)
    values = {f"{phase}/{name}": mean.value for name, mean in merged.items()}
    values |= _headline(phase, merged)
    if results:
        values[f"sites/{phase}/answered"] = len(answered)
        values[f"sites/{phase}/missing"] = len(results) - len(answered)
        values[f"patients/{phase}"] = sum(result.patients for result in answered)
        values[f"bytes/{phase}/down"] = sum(result.bytes_down for result in results)
        values[f"bytes/{phase}/up"] = sum(result.bytes_up for result in results)
    return values


def _of_site(phase: str, result: SiteResult) -> dict[str, float]:
    values = {f"seconds/{phase}/{part}": seconds for part, seconds in result.seconds.items()}
    values |= {f"bytes/{phase}/down": result.bytes_down, f"bytes/{phase}/up": result.bytes_up}
    values[f"answered/{phase}"] = float(result.outcome == "ok")
    if result.staleness:
        values["staleness"] = float(result.staleness)
    if result.outcome == "ok":
        means = result.means()
        values |= {f"{phase}/{name}": mean.value for name, mean in means.items()}
        values |= _headline(phase, means)
    return values


def _headline(phase: str, metrics: Metrics) -> dict[str, float]:
    """The mean over classes of the metric that leads its task, as ``test/mean_dice``; NaN for those of other tasks."""
    return {
        f"{phase}/mean_{scores[0].name}": class_mean(metrics, scores[0].name) for scores in SCORES.values()
    }


def _clean(values: dict[str, float]) -> dict[str, float]:
    """Without NaN and infinity, and without names that a store could take for something else: some come from sites."""
    return {
        name: float(value)
        for name, value in values.items()
        if math.isfinite(value) and len(name) <= _LONGEST_NAME and _NAME.fullmatch(name)
    }

"""Who took part in a run, and what it cost in time and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmed_server.history import SiteResult, epsilon_by_site, largest_epsilons, rounds_by_site
from fedmed_server.report.source import RunHistory, in_order
from fedmed_server.report.tables import last_round
from fedmed_strategies.presets import recipe_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCost:
    """Seconds and bytes of one site, or of all. ``seconds``: phase -> sum over the run of what its orders took; ``waited``: the
    share of training in which it had no batch, where it says so; ``staleness``: mean over its updates that were used."""

    name: str
    patients: Mapping[str, int]
    seconds: Mapping[str, float]
    waited: float | None
    bytes_down: int
    bytes_up: int
    answered: int
    asked: int
    staleness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A site that did not give a usable answer."""

    round: str
    phase: str
    site: str
    outcome: str
    code: str
    incident: str


def costs(run: RunHistory) -> tuple[SiteCost, ...]:
    """Each site's part in the run's time and bytes, by name."""
    phases = [("train", done.train) for done in run.rounds] + [
        ("validate", done.evaluation) for done in run.rounds
    ]
    phases += [("test", results) for results in _distinct_tests(run)]
    by_site: dict[str, list[tuple[str, SiteResult]]] = {site.name: [] for site in run.facts}
    for phase, results in phases:
        for result in results:
            by_site.setdefault(result.site, []).append((phase, result))
    patients = {site.name: site.patients for site in run.facts}
    return tuple(_cost(name, patients.get(name, {}), by_site[name]) for name in sorted(by_site, key=in_order))


def phase_seconds(run: RunHistory) -> dict[str, float]:
    """Seconds of the federation by phase over all rounds, without the total."""
    sums: dict[str, float] = {}
    for done in run.rounds:
        for phase, seconds in done.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
    return sums


def incidents(run: RunHistory) -> tuple[Incident, ...]:
    """Everything that was asked of a site and not answered usably, in order."""
    asked = [
        (str(done.round), phase, results)
        for done in run.rounds
        for phase, results in (("training", done.train), ("validation", done.evaluation))
    ]
    asked += [("end", "test", results) for results in _distinct_tests(run)]
    return tuple(
        Incident(round=number, phase=phase, site=r.site, outcome=r.outcome, code=r.code, incident=r.incident)
        for number, phase, results in asked
        for r in results
        if r.outcome != "ok"
    )


def spent(run: RunHistory) -> list[tuple[str, float]]:
    """Sites that trained privately, by name, with the epsilon that the run has cost each of their patients."""
    return sorted(epsilon_by_site(run.rounds).items(), key=lambda pair: in_order(pair[0]))


def spent_of_sites(run: RunHistory) -> tuple[float, float, int] | None:
    """With central privacy, the epsilon of a whole site, its delta, and the most rounds that a site took part in."""
    central = recipe_of(run.experiment).central_privacy
    if central is None:
        return None
    most = max(rounds_by_site(run.rounds).values(), default=0)
    return central.epsilon(most), central.delta, most


def held_out(run: RunHistory) -> list[tuple[str, tuple[str, ...]]]:
    """How metrics of validation and test patients left the sites, and which did so; with noise each with its epsilons."""
    spent = {
        "validation": largest_epsilons(result for done in run.rounds for result in done.evaluation),
        "test": largest_epsilons(result for results in _distinct_tests(run) for result in results),
    }

    def said(name: str) -> str:
        epsilons = [f"{split} {by_site[name]:.2f}" for split, by_site in spent.items() if name in by_site]
        return f"{name} (epsilon: {', '.join(epsilons)})" if epsilons else name

    ways: dict[str, list[str]] = {"measured": [], "noised": [], "kept": []}
    for facts in sorted(run.facts, key=lambda facts: in_order(facts.name)):
        ways[facts.held_out].append(said(facts.name))
    return [(way, tuple(names)) for way, names in ways.items() if names]


def missing_rounds(run: RunHistory) -> tuple[int, ...]:
    """Rounds before the last one that left no line."""
    known = {done.round for done in run.rounds}
    return tuple(number for number in range(1, last_round(run)) if number not in known)


def participation(
    run: RunHistory, sites: Sequence[str], most_rounds: int = 60
) -> tuple[tuple[int, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The last rounds, and by site the worst outcome in each: an outcome of the history, or 'idle' where nothing was asked."""
    rounds = run.rounds[-most_rounds:]
    rows = []
    for name in sites:
        outcomes = []
        for done in rounds:
            given = [r.outcome for r in (*done.train, *done.evaluation) if r.site == name]
            outcomes.append(
                next((outcome for outcome in given if outcome != "ok"), given[0] if given else "idle")
            )
        rows.append((name, tuple(outcomes)))
    return tuple(done.round for done in rounds), tuple(rows)


def _cost(name: str, patients: Mapping[str, int], parts: Sequence[tuple[str, SiteResult]]) -> SiteCost:
    seconds: dict[str, float] = {}
    ages = [result.staleness for phase, result in parts if phase == "train" and result.outcome == "ok"]
    for phase, result in parts:
        if not result.seconds:
            continue
        seconds[phase] = seconds.get(phase, 0.0) + result.seconds.get("site", 0.0)
    return SiteCost(
        name=name,
        patients=patients,
        seconds=seconds,
        waited=_waited([result.seconds for phase, result in parts if phase == "train"]),
        bytes_down=sum(result.bytes_down for _, result in parts),
        bytes_up=sum(result.bytes_up for _, result in parts),
        answered=sum(result.outcome == "ok" for _, result in parts),
        asked=len(parts),
        staleness=sum(ages) / len(ages) if ages else 0.0,
    )


def _waited(trained: Sequence[Mapping[str, float]]) -> float | None:
    timed = [seconds for seconds in trained if "wait" in seconds]
    spent = sum(seconds.get("train", 0.0) for seconds in timed)
    return sum(seconds["wait"] for seconds in timed) / spent if spent else None


def _distinct_tests(run: RunHistory) -> list[tuple[SiteResult, ...]]:
    """A best model that is the last one is tested once and listed twice."""
    distinct: list[tuple[SiteResult, ...]] = []
    for results in run.ended.test.values() if run.ended else ():
        if results not in distinct:
            distinct.append(results)
    return distinct

"""Judges a run from what lies on disk afterwards: the server's history, the hospitals' audit logs, the weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_client.site.audit import LOG, AuditLog
from fedmed_common.errors import FedmedError
from fedmed_server.history import RoundDone, RunEnded, SiteResult
from fedmed_server.state import load_state, model_file
from fedmed_simulations.rehearsal.consortium import Consortium
from fedmed_simulations.rehearsal.equality import difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, how much of it there was, and what is wrong with it."""

    what: str
    count: int
    problems: tuple[str, ...] = ()


def judge(consortium: Consortium, run: str, whole: Path) -> list[Check]:
    """All checks of one run. ``whole``: the folder of a run of the same experiment that nothing disturbed."""
    records = list(consortium.records(run))
    done = [record for record in records if isinstance(record, RoundDone)]
    return [
        _rounds_once(done),
        _sites_once(done, consortium.names),
        _trained_once(consortium, run, done),
        _chains(consortium),
        _named(records, done),
        _weights(consortium.run_folder(run), records, whole),
    ]


def audit_events(home: Path) -> Iterator[dict[str, object]]:
    """A hospital's audit log, event by event."""
    for line in (home / LOG).read_text().splitlines():
        yield json.loads(line)


def _rounds_once(done: Sequence[RoundDone]) -> Check:
    numbers = [record.round for record in done]
    wrong = () if numbers == list(range(1, len(numbers) + 1)) else (f"the history has the rounds {numbers}",)
    return Check(what="every round is in the history once, in order", count=len(numbers), problems=wrong)


def _sites_once(done: Sequence[RoundDone], names: Sequence[str]) -> Check:
    problems = []
    count = 0
    for record in done:
        for what, results in (("training", record.train), ("evaluation", record.evaluation)):
            sites = Counter(result.site for result in results)
            count += sum(sites.values())
            if sites != Counter(names):
                problems.append(f"{what} of round {record.round} counts {dict(sites)}")
    return Check(what="every order is answered once, by every site", count=count, problems=tuple(problems))


def _trained_once(consortium: Consortium, run: str, done: Sequence[RoundDone]) -> Check:
    """A site may carry an order out again when it ended before the seal; it seals, and the server counts, one reply."""
    problems = []
    count = 0
    counted = {(result.site, record.round) for record in done for result in record.train if _ok(result)}
    for name in consortium.names:
        events = [event for event in audit_events(consortium.site(name)) if event.get("run") == run]
        sealed = Counter(
            event["round"] for event in events if (event["event"], event.get("kind")) == ("sealed", "train")
        )
        count += sum(sealed.values())
        problems += [
            f"{name} sealed {number} replies in round {place}"
            for place, number in sealed.items()
            if number > 1
        ]
        problems += [
            f"{name} sealed a reply in round {place} that was not counted"
            for place in sealed
            if (name, place) not in counted and place in {record.round for record in done}
        ]
    return Check(
        what="a site seals one trained reply a round, and it is counted",
        count=count,
        problems=tuple(problems),
    )


def _chains(consortium: Consortium) -> Check:
    problems = []
    count = 0
    for name in consortium.names:
        try:
            count += AuditLog(consortium.site(name)).verify().lines
        except FedmedError as error:
            problems.append(f"{name}: {error}")
    return Check(what="the sites' audit logs are whole", count=count, problems=tuple(problems))


def _named(records: Sequence[object], done: Sequence[RoundDone]) -> Check:
    """Nobody is left out in silence: who missed a part is in the run's status, and then it is not 'completed'."""
    ended = [record for record in records if isinstance(record, RunEnded)]
    status = ended[-1].status if ended else "no end"
    lost = [
        (result.site, record.round)
        for record in done
        for result in (*record.train, *record.evaluation)
        if not _ok(result)
    ]
    problems = [f"{site} missed round {number}, and the run ended '{status}'" for site, number in lost
                if site not in status or f"round {number}" not in status]  # fmt: skip
    if not status.startswith(("completed", "degraded")):
        problems.append(f"the run ended '{status}'")
    return Check(what="what was missed is named in the run's end", count=len(lost), problems=tuple(problems))


def _weights(folder: Path, records: Sequence[object], whole: Path) -> Check:
    what = "the final weights equal those of a run that nothing disturbed, bit for bit"
    state = load_state(folder)
    completed = any(isinstance(record, RunEnded) and record.status == "completed" for record in records)
    if not completed or state is None:
        return Check(what="the run did not complete, so its weights are not compared", count=0)
    found = difference(model_file(folder, "last"), model_file(whole, "last"))
    return Check(what=what, count=len(state.parameters), problems=(found,) if found else ())


def _ok(result: SiteResult) -> bool:
    return result.outcome == "ok"

"""A long run under random faults: processes killed, machines without power, networks cut and stalled.

One hundred events over twenty rounds of three sites. What happened is recorded, and afterwards judged from what lies on
disk: the events, the server's history, the sites' audit logs, the final weights.

    python benchmarks/chaos.py --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedmed_common.loading import load_experiment
from fedmed_server.history import RoundDone
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import SERVER, Consortium, write_experiment
from fedmed_simulations.rehearsal.machines import wait_for
from fedmed_simulations.rehearsal.rehearse import SHIPPED, inline_run
from fedmed_simulations.rehearsal.relay import Relay
from fedmed_simulations.rehearsal.verdict import judge

ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One fault: what, where, in which round it fell, and for how long where it lasts."""

    time: str
    kind: str
    place: str
    round: int
    seconds: float = 0.0


class Chaos:
    """Draws events and makes them happen."""

    def __init__(self, consortium: Consortium, relays: dict[str, Relay], seed: int, record: Path) -> None:
        self._consortium, self._relays, self._record = consortium, relays, record
        self._rng = random.Random(seed)  # noqa: S311
        self.events: list[Event] = []
        self._machines = threading.Lock()

    def happen(self, round_number: int) -> None:
        """One event, to its end."""
        kind, place, act, seconds = self._draw()
        if not act():
            return
        event = Event(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            kind=kind,
            place=place,
            round=round_number,
            seconds=seconds,
        )
        self.events.append(event)
        with self._record.open("a") as file:
            file.write(json.dumps(asdict(event)) + "\n")
        print(f"{len(self.events):>3} round {round_number}: {kind} {place} {seconds:.1f}", flush=True)

    def _draw(self) -> tuple[str, str, Callable[[], bool], float]:
        site = self._rng.choice(self._consortium.names)
        seconds = self._rng.uniform(0.5, 6.0)
        number = self._rng.choice((signal.SIGKILL, signal.SIGTERM))
        kind = self._rng.choices(
            ("superlink", "serverapp", "link", "worker", "power", "reset", "cut", "stall"),
            (1, 1, 2, 2, 0.5, 2, 2, 2),
        )[0]
        server, home = self._consortium.server, self._consortium.site(site)
        if kind in {"superlink", "serverapp"}:
            return f"{number.name} {kind}", SERVER, lambda: self._end(server, kind, number), 0.0
        if kind in {"link", "worker"}:
            return f"{number.name} {kind}", site, lambda: self._end(home, kind, number), 0.0
        if kind == "power":
            place = self._rng.choice((SERVER, *self._consortium.names))
            return "power cut", place, lambda: self._power(place, seconds), seconds
        if kind == "reset":
            return "connections reset", site, lambda: self._network(site, "reset", 0.0), 0.0
        word = {"cut": "network cut", "stall": "network stalled"}[kind]
        return word, site, lambda: self._network(site, kind, seconds), seconds

    def _end(self, home: Path, role: str, number: signal.Signals) -> bool:
        pid = self._consortium.pid(home, role)
        try:
            os.kill(pid or 0, number) if pid else None
        except ProcessLookupError:
            return False
        return pid is not None

    def _power(self, place: str, seconds: float) -> bool:
        self._consortium.kill(place)
        time.sleep(seconds)
        if place == SERVER:
            self._consortium.start_server()
        else:
            self._consortium.start_site(place)
        return True

    def _network(self, site: str, how: str, seconds: float) -> bool:
        relay = self._relays[site]
        getattr(relay, how)()
        time.sleep(seconds)
        relay.restore()
        return True


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[Consortium, dict[str, Relay], Path]]:
    """A consortium with a relay before each hospital, and the experiment."""
    settings = PhantomSettings(sites=3, patients=5, shape=(32, 32, 16), seed=1)
    write_federation(folder / "federation", settings)
    experiment = load_experiment(SHIPPED)
    training = experiment.train.model_copy(update={"steps": 5})
    write_experiment(
        experiment.model_copy(update={"rounds": ROUNDS, "train": training}),
        folder / "federation",
        folder / "experiment.toml",
    )
    with contextlib.ExitStack() as stack:
        consortium = Consortium(folder, [site.name for site in plan_federation(settings)])
        consortium.found(folder / "federation")
        relays = {}
        for name in consortium.names:
            relays[name] = stack.enter_context(Relay(consortium.public_port()))
            consortium.route(name, relays[name].port)
        stack.enter_context(consortium)
        consortium.start()
        yield consortium, relays, folder / "experiment.toml"


def carry_out(
    folder: Path, number: int, seed: int, limit_seconds: float
) -> tuple[str, list[Event], str, float]:
    """The run's id, the events, how the run ended, and its seconds."""
    began = time.monotonic()
    with running(folder) as (consortium, relays, experiment):
        run = consortium.launch(experiment)
        chaos = Chaos(consortium, relays, seed, folder / "events.jsonl")
        rng = random.Random(seed + 1)  # noqa: S311
        while consortium.ended(run) is None and time.monotonic() - began < limit_seconds:
            done = sum(isinstance(record, RoundDone) for record in consortium.records(run))
            if len(chaos.events) < min(number, (done + 1) * number / ROUNDS):
                time.sleep(rng.uniform(0.0, 3.0))
                chaos.happen(done + 1)
            else:
                time.sleep(0.1)
        for relay in relays.values():
            relay.restore()
        wait_for(lambda: consortium.ended(run) is not None, f"run {run} ends", 300)
        ended = consortium.ended(run)
        assert ended is not None
        consortium.wait_connected()
    return run, chaos.events, ended.status, time.monotonic() - began


def main() -> None:
    """Carry out, judge, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--limit", type=float, default=3000.0, help="seconds after which no more faults happen"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the consortium is made and kept; absent: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmed-chaos-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        run, events, status, seconds = carry_out(folder, options.events, options.seed, options.limit)
        whole = inline_run(folder / "experiment.toml", folder / "inline")
        consortium = Consortium(folder, [path.name for path in sorted((folder / "sites").iterdir())])
        found = judge(consortium, run, whole)
    kinds = Counter(event.kind for event in events)
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"# Chaos, {today}",
        "",
        f"`{' '.join(['python', 'benchmarks/chaos.py', *sys.argv[1:]])}`, {platform.machine()}, {os.cpu_count()} cores, "
        f"fedmed {version('fedmed')}, flwr {version('flwr')}: {len(events)} events over {ROUNDS} rounds of three sites, "
        f"{seconds / 60:.0f} minutes, seed {options.seed}.",
        "",
        f"The run ended: {status}.",
        "",
        "| event | how often |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in sorted(kinds.items())),
        "",
        "| checked afterwards, from what lies on disk | |",
        "|---|---|",
        *(f"| {check.what} | {'; '.join(check.problems) or f'holds ({check.count})'} |" for check in found),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    bad = any(check.problems for check in found) or len(events) < options.events
    if options.events == 100:
        (Path(__file__).parent / f"chaos-{today}.md").write_text(text)
        (Path(__file__).parent / f"chaos-{today}.jsonl").write_text(
            "".join(f"{json.dumps(asdict(e))}\n" for e in events)
        )
    sys.exit(bad)


if __name__ == "__main__":
    main()

"""Many sites at once: 32 real ones, each with its processes, and 500 clients that speak the protocol.

The real sites train a tiny network on pictures of their own. A client is a thread that asks, waits and answers over a link's
own line, and makes its replies up. A round must finish with nobody lost or counted twice, and the server's processes must
not need more memory for more sites.

    python benchmarks/load.py
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tomli_w
from flwr.app import Message
from PIL import Image

from fedmed_client.link.flower import RunOver
from fedmed_client.link.line import Line, Stopped
from fedmed_client.link.link import IDLE_POLL_SECONDS
from fedmed_client.link.pace import waits
from fedmed_client.link.status import Status
from fedmed_client.site.home import SiteFolder
from fedmed_client.site.joining import join, open_home
from fedmed_common import wire
from fedmed_common.errors import ConnectionProblem
from fedmed_common.files import write_atomically
from fedmed_common.metrics import Mean
from fedmed_server.history import RoundDone, RunStarted
from fedmed_server.provision.certify import sign
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_simulations.rehearsal.consortium import Consortium

ROUNDS = 1
SITES, CLIENTS = 32, 500
RAMP_SECONDS, AT_ONCE = 60.0, 4
ANEW_SECONDS = 5.0, 60.0
_log = logging.getLogger(__name__)
EXPERIMENT = f"""
name = "load"
seed = 1
rounds = {ROUNDS}
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = [16, 16]
intensity = {{ kind = "zscore" }}
splits = {{ validation = 0.0, test = 0.0 }}
[model]
channels = [4, 8]
residual_units = 0
[train]
steps = 2
batch_size = 2
device = "cpu"
threads = 1
[federation]
minimum_sites = 1
deadline_seconds = 1800
roll_call_seconds = 900
evaluate_every = {ROUNDS}
"""


class Crowd(Consortium):
    """A consortium whose many hospitals join through the functions behind the commands: the same files, without the starts
    of three processes for each."""

    def join(self, name: str, federation: Path) -> None:
        """Bring one hospital in."""
        out, home = ConsortiumFolder(self.server.parent), SiteFolder(self.site(name))
        open_home(out.path / "kits" / f"{name}.zip", home)
        join(sign(out, home.request_file).file, home)
        home.site_file.write_text(
            tomli_w.dumps(
                {
                    "name": name,
                    "approve": "consortium-signed",
                    "data": {"format": "images", "root": str(federation / name)},
                    "labels": {"disc": ["1"]},
                    "policy": {"least_patients": 1},
                    "limits": {"least_free_gb": 0.1},
                }
            )
        )


def write_pictures(root: Path, seed: int) -> None:
    """Five bright discs on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(5):
        centre = rng.uniform(8, 24, 2)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(4, 8) ** 2
        image = rng.normal(60, 12, (32, 32)) + 110 * disc
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{number}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "labels" / f"p{number}.png")


class Client(threading.Thread):
    """A site without its worker: its line is a link's own; what it answers is made up."""

    def __init__(self, home: Path, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._home, self._site, self._over = SiteFolder(home), home.name, stop

    def run(self) -> None:
        """Work until told to stop. A line that ends for good is opened anew, as a service starts a site anew."""
        chance = random.Random(self._site)  # noqa: S311
        self._over.wait(chance.uniform(0, RAMP_SECONDS))
        for wait in waits(*ANEW_SECONDS, chance):
            line = Line(self._home, Status(self._home, self._home.connection().address), self._over)
            try:
                line.open()
                self._serve(line)
            except Stopped:
                return
            except ConnectionProblem as problem:
                _log.warning("%s: %s", self._site, problem)
            finally:
                line.close()
            self._over.wait(wait)

    def _serve(self, line: Line) -> None:
        known: set[int] = set()
        while True:
            announced = line.pull()
            if announced is None:
                self._over.wait(line.pause(IDLE_POLL_SECONDS))
                continue
            try:
                message = line.fetch(announced)
                if announced.run not in known:
                    line.bundle(announced.run)
                    known.add(announced.run)
                line.push(Message(wire.pack_reply(self._reply(message)), reply_to=message))
            except RunOver as over:
                _log.info("an answer is dropped: %s", over)

    def _reply(self, message: Message) -> wire.Reply:
        order = wire.unpack_order(message.content, wire.Kind(message.metadata.message_type))
        facts = wire.Facts(
            patients={"train": 5, "validation": 0, "test": 0}, presence={"disc": 5}, version=version("fedmed")
        )
        trained = order.kind is wire.Kind.TRAIN
        return wire.Reply(
            site=self._site,
            run=order.run,
            round=order.round,
            attempt=order.attempt,
            facts=None if trained else facts,
            delta={name: np.zeros_like(array) for name, array in order.parameters.items()} if trained else {},
            metrics={"loss": Mean(1.0, 1.0)} if trained else {},
            seconds={"train": 0.0} if trained else {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run with so many sites. Memory in MB, the most that each of the server's processes held."""

    sites: int
    kind: str
    status: str
    roll_call_seconds: float
    round_seconds: float
    superlink_mb: float
    serverapp_mb: float
    problems: tuple[str, ...]


class Memory:
    """The most memory that the server's processes hold while the block runs."""

    def __init__(self, consortium: Consortium) -> None:
        self._consortium = consortium
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most: dict[str, float] = {"superlink": 0.0, "serverapp": 0.0}

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for role, before in self.most.items():
                pid = self._consortium.pid(self._consortium.server, role)
                self.most[role] = max(before, resident_mb(pid) if pid else 0.0)


def resident_mb(pid: int) -> float:
    """What the process holds in memory now."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def measure(consortium: Consortium, names: Sequence[str], kind: str, limit_seconds: float) -> Measured:
    """One run with these sites, and whether each was counted once."""
    experiment = consortium.folder / "load.toml"
    experiment.write_text(EXPERIMENT)
    before = time.time()
    with Memory(consortium) as memory:
        run = consortium.launch(experiment, names)
        ended = consortium.wait_ended(run, seconds=limit_seconds)
    records = list(consortium.records(run))
    problems = []
    for record in records:
        results = record.train if isinstance(record, RoundDone) else ()
        counted = Counter(result.site for result in results if result.outcome == "ok")
        if isinstance(record, RoundDone) and counted != Counter(names):
            missing, double = set(names) - counted.keys(), [n for n, c in counted.items() if c > 1]
            problems.append(f"round {record.round}: {len(missing)} missing, {len(double)} counted twice")
    started = next((record for record in records if isinstance(record, RunStarted)), None)
    done = [record for record in records if isinstance(record, RoundDone)]
    if len(done) != ROUNDS:
        problems.append(f"{len(done)} rounds of {ROUNDS}")
    began = datetime.fromisoformat(started.time).timestamp() if started else before
    return Measured(
        sites=len(names),
        kind=kind,
        status=ended.status[:100],
        roll_call_seconds=began - before,
        round_seconds=min((record.seconds["total"] for record in done), default=0.0),
        superlink_mb=memory.most["superlink"],
        serverapp_mb=memory.most["serverapp"],
        problems=tuple(problems),
    )


def real_sites(consortium: Consortium, names: Sequence[str], options: argparse.Namespace) -> list[Measured]:
    """One run with a quarter of the sites, then one with all of them; every site has its processes."""
    for first in range(0, len(names), AT_ONCE):
        some = names[first : first + AT_ONCE]
        for name in some:
            consortium.start_site(name)
        consortium.wait_connected(some, seconds=options.limit)
    found = [measure(consortium, some, "real", options.limit) for some in (names[: len(names) // 4], names)]
    for name in names:
        consortium.stop(name)
    return found


def clients(consortium: Consortium, names: Sequence[str], options: argparse.Namespace) -> list[Measured]:
    """One run with a quarter of the clients, then one with all of them."""
    stop = threading.Event()
    threads = [Client(consortium.site(name), stop) for name in names]
    with ExitStack() as stack:
        stack.callback(stop.set)
        for thread in threads:
            thread.start()
        consortium.wait_connected(names, seconds=options.limit)
        return [
            measure(consortium, some, "clients", options.limit) for some in (names[: len(names) // 4], names)
        ]


def row(found: Measured) -> str:
    """A line of the table."""
    judged = "; ".join(found.problems) or "each counted once"
    return (
        f"| {found.sites} {found.kind} | {found.status} | {judged} | {found.roll_call_seconds:.0f} "
        f"| {found.round_seconds:.0f} | {found.superlink_mb:.0f} | {found.serverapp_mb:.0f} |"
    )


def page(rows: Iterable[str], today: str) -> str:
    """The day's page."""
    return "\n".join(
        [
            f"# Load, {today}",
            "",
            f"`python benchmarks/load.py`, or a phase of it with `--sites 0` or `--clients 0`; {platform.machine()}, "
            f"{os.cpu_count()} cores that server, sites and clients share, fedmed {version('fedmed')}, flwr {version('flwr')}. "
            "A round of training each.",
            "",
            "| sites | the run ended | in the round | roll call, s | round, s | SuperLink, MB at most | ServerApp, MB at most |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "The seconds of the roll call hold the ServerApp's start. Real sites are a link and a worker each, started four at a "
            "time. The clients are threads of one process, each with a link's own line: it asks every "
            f"{IDLE_POLL_SECONDS:g} s, and less often as the server says or while answers are slow.",
            "",
        ]
    )


def record(found: Sequence[Measured], file: Path, today: str) -> None:
    """Add the rows to the day's page; one that was measured again replaces the old one."""
    old = file.read_text().splitlines() if file.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if re.match(r"\| \d", line)}
    rows |= {f"{one.sites} {one.kind}": row(one) for one in found}
    order = sorted(rows, key=lambda name: (name.endswith("clients"), int(name.split()[0])))
    write_atomically(file, page((rows[name] for name in order), today).encode())


def main() -> None:
    """Measure, and write each phase, once it is over, onto a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=SITES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one run may take")
    options = parser.parse_args()
    sites = [f"site-{number:03d}" for number in range(options.sites)]
    others = [f"client-{number:03d}" for number in range(options.clients)]
    today = datetime.now(UTC).date().isoformat()
    phases = [(real_sites, sites, SITES), (clients, others, CLIENTS)]
    failed = False
    with tempfile.TemporaryDirectory(prefix="fedmed-load-") as temporary:
        folder = Path(temporary)
        for number, name in enumerate(sites):
            write_pictures(folder / "federation" / name, number)
        with Crowd(folder, [*sites, *others]) as consortium:
            consortium.found(folder / "federation")
            consortium.start_server()
            for phase, names, whole in phases:
                found = phase(consortium, names, options) if names else []
                print(*(row(one) for one in found), sep="\n", flush=True)
                if len(names) == whole:
                    record(found, Path(__file__).parent / f"load-{today}.md", today)
                failed |= any(one.problems or one.status != "completed" for one in found)
    sys.exit(failed)


if __name__ == "__main__":
    main()

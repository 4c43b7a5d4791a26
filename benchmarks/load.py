"""Many sites at once: 32 real ones, each with its processes, and 500 clients that speak the protocol.

The real sites train a tiny network on pictures of their own. A client is a thread that signs, pulls, and answers as a site's
link does, through the link's own connection, and makes its replies up. A round must finish with nobody lost or counted
twice, and the server's processes must not need more memory for more sites.

    python benchmarks/load.py
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tomli_w
from flwr.app import Message
from PIL import Image

from fedmed_client.link import reach
from fedmed_client.link.flower import Fleet, LinkForgotten, NotYet, RunOver
from fedmed_client.link.messages import Announced, inflate
from fedmed_client.site.home import SiteFolder
from fedmed_client.site.joining import join, open_home
from fedmed_common import wire
from fedmed_common.errors import ConnectionProblem, TransportAway
from fedmed_common.metrics import Mean
from fedmed_server.history import RoundDone, RunStarted
from fedmed_server.provision.certify import sign
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_simulations.rehearsal.consortium import Consortium

ROUNDS = 1
POLL_SECONDS, BEAT_SECONDS = 5.0, 10.0
RAMP_SECONDS, AT_ONCE = 60.0, 4
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
    """A site without its worker: it connects, pulls and answers as a link does; what it answers is made up."""

    def __init__(self, home: Path, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._fleet = Fleet(reach.load(SiteFolder(home)))
        self._site, self._over = home.name, stop
        self._beat = 0.0
        self.answered = 0
        self.troubles = 0

    def run(self) -> None:
        """Work until told to stop."""
        rest = random.Random(self._site)  # noqa: S311
        self._over.wait(rest.uniform(0, RAMP_SECONDS))
        active = False
        while not self._over.is_set():
            try:
                if not active:
                    self._fleet.activate()
                    active, self._beat = True, time.monotonic()
                if not self._work():
                    self._over.wait(POLL_SECONDS * rest.uniform(0.8, 1.2))
            except LinkForgotten:
                active = False
            except (ConnectionProblem, TransportAway, RunOver):
                self.troubles += 1
                active = False
                self._over.wait(rest.uniform(0.5, 5.0))

    def _work(self) -> bool:
        self._stay()
        announced = self._fleet.pull()
        if announced is None:
            return False
        order = self._fetch(announced)
        reply = Message(wire.pack_reply(self._reply(order)), reply_to=announced.message)
        self._fleet.upload(self._fleet.announce(reply))
        self.answered += 1
        return True

    def _fetch(self, announced: Announced) -> wire.Order:
        contents: dict[str, bytes] = {}
        for name in announced.objects:
            while name not in contents:
                self._stay()
                with suppress(NotYet):
                    contents[name] = self._fleet.pull_object(announced.run, name)
                    break
                self._over.wait(1.0)
        self._fleet.confirm(announced)
        return wire.unpack_order(
            inflate(announced, contents).content, wire.Kind(announced.message.metadata.message_type)
        )

    def _reply(self, order: wire.Order) -> wire.Reply:
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

    def _stay(self) -> None:
        if time.monotonic() - self._beat > BEAT_SECONDS:
            self._fleet.beat()
            self._beat = time.monotonic()


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


def main() -> None:
    """Measure and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one run may take")
    options = parser.parse_args()
    sites = [f"site-{number:03d}" for number in range(options.sites)]
    others = [f"client-{number:03d}" for number in range(options.clients)]
    with tempfile.TemporaryDirectory(prefix="fedmed-load-") as temporary:
        folder = Path(temporary)
        for number, name in enumerate(sites):
            write_pictures(folder / "federation" / name, number)
        with Crowd(folder, [*sites, *others]) as consortium:
            consortium.found(folder / "federation")
            consortium.start_server()
            found = real_sites(consortium, sites, options) if sites else []
            found += clients(consortium, others, options) if others else []
    today = datetime.now(UTC).date().isoformat()
    text = "\n".join(
        [
            f"# Load, {today}",
            "",
            f"`{' '.join(['python', 'benchmarks/load.py', *sys.argv[1:]])}`, {platform.machine()}, {os.cpu_count()} cores that "
            f"server, sites and clients share, fedmed {version('fedmed')}, flwr {version('flwr')}. A round of training each.",
            "",
            "| sites | the run ended | in the round | roll call, s | round, s | SuperLink, MB at most | ServerApp, MB at most |",
            "|---|---|---|---|---|---|---|",
            *(row(one) for one in found),
            "",
            "The seconds of the roll call hold the ServerApp's start. Real sites are a link and a worker each, started four at a "
            f"time; a client is a thread that speaks the protocol through the link's own calls and asks for work every "
            f"{POLL_SECONDS:g} s.",
            "",
        ]
    )
    print(text)
    if (options.sites, options.clients) == (32, 500):
        (Path(__file__).parent / f"load-{today}.md").write_text(text)
    sys.exit(any(one.problems or one.status != "completed" for one in found))


if __name__ == "__main__":
    main()

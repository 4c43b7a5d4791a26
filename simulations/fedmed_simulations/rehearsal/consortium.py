"""A consortium on loopback: a coordinator and hospitals, provisioned, joined and run by the commands that people type.

Folder: ``consortium.toml``, ``consortium/`` as ``fedmed provision`` makes it (the server's home is in it), a home for each
hospital below ``sites/``, and what the machines print below ``log/``.
"""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from fedmed_common.config import Experiment
from fedmed_common.errors import FedmedError
from fedmed_common.files import write_atomically
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.report import REPORT
from fedmed_simulations.rehearsal.machines import FEDMED, Machine, fedmed, free_ports, wait_for
from fedmed_simulations.rehearsal.namespaces import Namespaces

SERVER = "server"
_ENDS = ("completed", "degraded", "failed")


class Consortium:
    """The machines of one consortium; leaving the block stops all of them.

    ``environment`` is added to that of every process. ``names``: the hospitals. ``machines``: by name, those that run.
    ``networks``: where given, each hospital is in its own, and reaches the server and nothing else.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        environment: Mapping[str, str] | None = None,
        networks: Namespaces | None = None,
    ) -> None:
        self.folder, self.names = folder.absolute(), tuple(names)
        self.environment: dict[str, str] = {"PYTHONUNBUFFERED": "1", **(environment or {})}
        self.machines: dict[str, Machine] = {}
        self._cables = networks.cables if networks else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    @property
    def server(self) -> Path:
        """The coordinator's home."""
        return self.folder / "consortium" / "server"

    def site(self, name: str) -> Path:
        """A hospital's home."""
        return self.folder / "sites" / name

    def run_folder(self, run: str) -> Path:
        """What the coordinator keeps of a run."""
        return self.server / "runs" / run

    def provision(self) -> None:
        """Make the consortium's file, its authority, the server's home and a kit for each hospital."""
        public, private, health = free_ports(3)
        document = {
            "name": "rehearsal",
            "coordinator": {
                "address": f"127.0.0.1:{public}",
                "names": [cable.server for cable in self._cables.values()],
            },
            "sites": [{"name": name, "contact": f"it@{name}.example"} for name in self.names],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "consortium.toml"
        file.write_text(tomli_w.dumps(document))
        self.fedmed("provision", str(file), "--out", str(self.server.parent))
        self.set_server(
            public={"host": "0.0.0.0" if self._cables else "127.0.0.1", "port": public},  # noqa: S104
            private={"port": private},
            health={"port": health},
        )

    def join(self, name: str, federation: Path) -> None:
        """Bring one hospital in: kit, key and request at the hospital, signature at the coordinator, answer back.

        ``federation``: the folder whose subfolder ``name`` holds the hospital's data and its ``site.toml``.
        """
        home, out = self.site(name), self.server.parent
        self.fedmed("site", "init", str(out / "kits" / f"{name}.zip"), "--home", str(home))
        self.fedmed("provision", "sign", str(home / "request.json"), "--out", str(out))
        self.fedmed("site", "join", str(self._answer(name)), "--home", str(home))
        own = _read(federation / name / "site.toml")
        own["data"]["root"] = str((federation / name / own["data"]["root"]).absolute())
        file = home / "site.toml"
        document = _read(file) | own | {"approve": "consortium-signed"}
        write_atomically(file, tomli_w.dumps(document).encode())
        if name in self._cables:
            self.route(name, self.public_port(), self._cables[name].server)

    def found(self, federation: Path) -> None:
        """Provision, and bring every hospital in."""
        self.provision()
        for name in self.names:
            self.join(name, federation)

    def start(self) -> None:
        """Start every machine and wait until the hospitals are connected."""
        self.start_server()
        for name in self.names:
            self.start_site(name)
        self.wait_connected()

    def set_server(self, **sections: Any) -> None:
        """Change the coordinator's ``server.toml``."""
        _change(self.server / "server.toml", sections)

    def public_port(self) -> int:
        """Where the coordinator listens for hospitals."""
        return int(_read(self.server / "server.toml")["public"]["port"])

    def route(self, name: str, port: int, host: str = "127.0.0.1") -> None:
        """Have a hospital reach the coordinator by another address, before its machine starts."""
        file = self.site(name) / "connection.json"
        document = json.loads(file.read_text())
        write_atomically(file, json.dumps({**document, "address": f"{host}:{port}"}).encode())

    def set_site(self, name: str, **sections: Any) -> None:
        """Change a hospital's ``site.toml``."""
        _change(self.site(name) / "site.toml", sections)

    def start_server(self) -> None:
        """Start the coordinator's machine and wait until it takes connections."""
        self._start(SERVER, [*FEDMED, "serve", "--home", str(self.server)], {})
        self.wait_until(self._answers, "the server takes connections", 120.0)

    def start_site(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a hospital's machine."""
        prefix = self._cables[name].prefix if name in self._cables else ()
        command = [*prefix, *FEDMED, "site", "start", "--home", str(self.site(name))]
        self._start(name, command, environment or {})

    def stop(self, name: str) -> int:
        """Stop a machine as its administrator does; its exit code."""
        return self.machines.pop(name).stop()

    def kill(self, name: str) -> None:
        """Cut a machine's power."""
        self.machines.pop(name).kill()

    def stop_all(self) -> None:
        """Stop every machine, the hospitals first."""
        for name in sorted(self.machines, key=lambda name: name == SERVER):
            self.stop(name)

    def connected(self) -> set[str]:
        """The hospitals that the coordinator sees."""
        try:
            seen = json.loads((self.server / "state" / "sites.json").read_text())
        except (OSError, ValueError):
            return set()
        return {name for name, site in seen.items() if site["state"] == "connected"}

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
        """Wait until ``condition`` holds.

        Raises:
            FedmedError: it does not in time, or a machine ended; with what it printed last.
        """
        wait_for(condition, what, seconds, tuple(self.machines.values()))

    def wait_connected(self, names: Sequence[str] | None = None, seconds: float = 180.0) -> None:
        """Wait until the hospitals (all by default) are connected."""
        wanted = set(self.names if names is None else names)
        self.wait_until(lambda: wanted <= self.connected(), f"{len(wanted)} hospitals connect", seconds)

    def launch(self, experiment: Path, sites: Sequence[str] | None = None) -> str:
        """Ask for a run; its id."""
        chosen = ["--sites", ",".join(sites)] if sites is not None else []
        said = self.fedmed("launch", str(experiment), *chosen, "--home", str(self.server), "--json")
        return str(json.loads(said)["run"])

    def records(self, run: str) -> Iterator[history.RunStarted | RoundDone | RunEnded]:
        """The run's history so far."""
        return history.read(self.run_folder(run) / history.FILE)

    def ended(self, run: str) -> RunEnded | None:
        """How the run ended for good; None while it goes on, or will be resumed."""
        last = None
        for record in self.records(run):
            last = record
        return last if isinstance(last, RunEnded) and last.status.startswith(_ENDS) else None

    def wait_ended(
        self,
        run: str,
        *,
        seconds: float = 300.0,
        on_round: Callable[[RoundDone], None] = lambda _round: None,
    ) -> RunEnded:
        """Wait for the run's end; ``on_round`` is told of each round once.

        Raises:
            FedmedError: no end in time, or a machine ended.
        """
        told: set[int] = set()

        def over() -> bool:
            for record in self.records(run):
                if isinstance(record, RoundDone) and record.round not in told:
                    told.add(record.round)
                    on_round(record)
            return self.ended(run) is not None

        self.wait_until(over, f"run {run} ends", seconds)
        ended = self.ended(run)
        if ended is None:
            raise FedmedError(f"run {run} was resumed after its end")
        return ended

    def wait_reported(self, run: str, seconds: float = 60.0) -> Path:
        """Wait for the report, which the server draws after the run's end."""
        report = self.run_folder(run) / REPORT
        self.wait_until(report.exists, f"the report of {run}", seconds)
        return report

    def fedmed(self, *arguments: str) -> str:
        """One ``fedmed`` command; what it printed."""
        return fedmed(*arguments, environment=self.environment)

    def pid(self, home: Path, role: str) -> int | None:
        """The process that has the role at a home now."""
        try:
            return int((home / "run" / f"{role}.pid").read_text())
        except (OSError, ValueError):
            return None

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.public_port()), 5).close()
        except OSError:
            return False
        return True

    def _answer(self, name: str) -> Path:
        return self.server.parent / f"{name}.answer.json"

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        log = self.folder / "log" / f"{name}.log"
        self.machines[name] = Machine(command, log=log, environment={**self.environment, **environment})


def write_experiment(experiment: Experiment, federation: Path, file: Path) -> None:
    """Write an experiment whose simulation, where it is simulated, is the very federation."""
    document = experiment.model_dump(mode="json", exclude_none=True)
    document["simulation"] = {"federation": str(federation.absolute())}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, tomli_w.dumps(document).encode())


def _change(file: Path, sections: Mapping[str, Any]) -> None:
    document = _read(file)
    for name, value in sections.items():
        document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
    write_atomically(file, tomli_w.dumps(document).encode())


def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))

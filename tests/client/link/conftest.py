"""A consortium on loopback for the link: the coordinator's SuperLink as a real process, and hospitals that joined it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from PIL import Image

from fedmed_client.site.home import SiteFolder
from fedmed_client.site.joining import join, open_home
from fedmed_common import bundle, identity, params, wire
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_server.deployment.flower_runtime import (
    FlowerControl,
    Task,
    TaskSession,
    TaskSource,
)
from fedmed_server.deployment.grid import GuardedGrid
from fedmed_server.deployment.home import ServerHome
from fedmed_server.deployment.shelf import Shelf
from fedmed_server.deployment.site_states import SiteState, load_site_states
from fedmed_server.provision import certify
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_simulations.rehearsal.machines import Machine, free_ports, wait_for

_LOOK_SECONDS = 0.2
"""To look is work for the server; looking without a pause was most of what it did in these tests."""
SITES = tuple(f"site-{number:02}" for number in range(50))
QUIET = {
    "OMP_NUM_THREADS": "1",
    "FEDMED_FAILPOINTS": "",
    "HTTPS_PROXY": "",
    "https_proxy": "",
    "ALL_PROXY": "",
}


def make_experiment(**changes: Any) -> Experiment:
    """Two steps of a small network; ``changes`` to its top-level keys."""
    document: dict[str, Any] = {
        "name": "discs",
        "rounds": 2,
        "task": {"classes": ["disc"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "model": {"channels": [4, 8], "residual_units": 0},
        "train": {"steps": 2, "batch_size": 2, "threads": 1},
    }
    return Experiment.model_validate(document | changes)


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return make_experiment()


class Run:
    """A Flower run as its ServerApp sees it."""

    def __init__(self, home: ServerHome, experiment: Experiment, content: bytes | None = None) -> None:
        self._home, self.experiment = home, experiment
        self._control, self._source = FlowerControl(home), TaskSource(home)
        content = content or bundle.build(experiment, identity.load_signing_key(home.signing_key))
        self.identifier = self._control.start(content, "run-1")
        self._task: Task | None = None
        wait_for(self._taken, "the run's task", 30)
        assert self._task is not None
        self._session = TaskSession(home, self._task.token)
        _, run, _ = self._session.pull()
        certificates = home.authority.read_bytes()
        self._grid = GuardedGrid(
            home.private_address(),
            Shelf(home.bulk, run.run_id),
            token=self._task.token,
            root_certificates=certificates,
        )
        self._grid.set_run(run)

    def _taken(self) -> bool:
        self._task = self._source.acquire()
        return self._task is not None

    def node(self, site: str) -> int:
        """The site's node, which must be connected."""
        return next(node.node_id for node in self._grid.get_nodes() if node.name == site)

    def activated(self, site: str) -> str:
        return next((node.last_activated_at for node in self._grid.get_nodes() if node.name == site), "")

    def ask(self, site: str, kind: str = "train", **fields: Any) -> str:
        """Send an order; the message's id."""
        return self._grid.push_messages([self._order(site, kind, **fields)])[0]

    def begin_to_ask(self, site: str, kind: str = "train", **fields: Any) -> None:
        """Announce an order, and send none of its parts."""
        message = self._order(site, kind, **fields)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            request = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
            )
        answer = self._grid._runtime_client.PushMessages(request)
        assert answer.message_ids[0]
        assert answer.objects_to_push

    def _order(self, site: str, kind: str, **fields: Any) -> Message:
        order = {
            "run": "run-1",
            "round": 1,
            "attempt": 0,
            "experiment": self.experiment.order_text(),
            **fields,
        }
        if kind != wire.Kind.FACTS:
            order["parameters"] = params.from_model(build_model(self.experiment))
        content = wire.pack_order(wire.Order(kind=wire.Kind(kind), **order))
        return Message(content, self.node(site), kind, ttl=600.0)

    def answer(self, identifier: str, seconds: float = 60.0) -> wire.Reply:
        """The reply to a message."""
        template = params.from_model(build_model(self.experiment))
        self._grid.set_limit(sum(array.nbytes for array in template.values()), len(template))
        found: list[Message] = []

        def answered() -> bool:
            time.sleep(_LOOK_SECONDS)
            found.extend(self._grid.pull_messages([identifier]))
            return bool(found)

        wait_for(answered, "the answer", seconds)
        if found[0].has_error():
            pytest.fail(f"Flower's error {found[0].error.code}")
        return wire.unpack_reply(found[0].content, template)

    def is_answered(self, identifier: str) -> bool:
        return identifier in self._grid.arrived([identifier])

    def end(self) -> None:
        """The ServerApp is gone."""
        self._control.stop(self.identifier)
        for client in (self._control, self._source, self._session, self._grid):
            client.close()


@dataclass(kw_only=True)
class Coordinator:
    """The consortium's folder and its server's process."""

    folder: ConsortiumFolder
    sites: Path
    machine: Machine | None = None
    runs: list[Run] = field(default_factory=list)
    joined: int = 0

    @property
    def home(self) -> ServerHome:
        return self.folder.server

    @property
    def port(self) -> int:
        return self.home.settings().public.port

    def start(self) -> None:
        command = [sys.executable, "-m", "fedmed_server.deployment.superlink", str(self.home.path)]
        self.machine = Machine(command, log=self.folder.path / "superlink.log", environment=QUIET)
        wait_for(self._serves, "the server serves", 90, [self.machine])

    def _serves(self) -> bool:
        assert self.machine is not None
        return (
            "Uvicorn running" in self.machine.tail(200)
            and self.machine.tail(200).count("Uvicorn running") >= 2
        )

    def stop(self, *, hard: bool = False) -> None:
        assert self.machine is not None
        self.machine.log.unlink()
        if hard:
            self.machine.kill()
        else:
            self.machine.stop()

    def join(self, *, certify_it: bool = True, **settings: Any) -> SiteFolder:
        """A hospital that nobody has been before, with its certificate; ``settings`` of its ``site.toml``."""
        name = SITES[self.joined]
        self.joined += 1
        home = SiteFolder(self.sites / name)
        open_home(self.folder.kit(name), home)
        write_site(home, **settings)
        if certify_it:
            join(certify.sign(self.folder, home.request_file).file, home)
        return home

    def revoke(self, home: SiteFolder) -> None:
        certify.revoke(self.folder, home.connection().site)

    def run(self, experiment: Experiment, content: bytes | None = None) -> Run:
        self.runs.append(Run(self.home, experiment, content))
        return self.runs[-1]

    def state(self, home: SiteFolder) -> SiteState:
        return load_site_states(self.home.site_states).get(home.connection().site, SiteState())


def write_site(home: SiteFolder, **settings: Any) -> None:
    """A hospital of ten photographs."""
    root = home.path.parent / "data"
    if not root.exists():
        _make_data(root)
    document = {
        "name": home.connection().site,
        "approve": "consortium-signed",
        "data": {"format": "images", "root": str(root)},
        "labels": {"disc": ["1"]},
        "policy": {"least_patients": 3},
        "device": {"gpu": "none"},
        "limits": {"least_free_gb": 0.0},
    }
    home.site_file.write_text(tomli_w.dumps(document | settings))


def _make_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(10):
        Image.fromarray(rng.integers(0, 200, (24, 24), np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray((rng.random((24, 24)) > 0.5).astype(np.uint8)).save(root / "labels" / f"{number}.png")


def provision(folder: Path) -> Coordinator:
    """A consortium in a folder; its server is not started."""
    public, private, health = free_ports(3)
    file = folder / "consortium.toml"
    document = {
        "name": "test",
        "coordinator": {"address": f"127.0.0.1:{public}"},
        "sites": [{"name": name} for name in SITES],
    }
    file.write_text(tomli_w.dumps(document))
    consortium = ConsortiumFolder(folder / "consortium")
    create(file, consortium)
    settings = {
        "name": "test",
        "public": {"host": "127.0.0.1", "port": public},
        "private": {"port": private},
        "health": {"port": health},
    }
    consortium.server.settings_file.write_text(tomli_w.dumps(settings))
    sites = folder / "sites"
    sites.mkdir()
    return Coordinator(folder=consortium, sites=sites)


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    """A consortium whose server never runs."""
    return provision(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="session")
def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    coordinator = provision(tmp_path_factory.mktemp("coordinator"))
    coordinator.start()
    yield coordinator
    if coordinator.machine is not None:
        coordinator.machine.kill()


@pytest.fixture
def coordinator(_serving: Coordinator) -> Iterator[Coordinator]:
    """One whose server runs, for all tests that leave it running; its runs end with the test."""
    yield _serving
    while _serving.runs:
        _serving.runs.pop().end()


Start = Callable[[SiteFolder], Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a hospital's link; it ends with the test."""
    started: list[Machine] = []

    def link(home: SiteFolder) -> Machine:
        command = [sys.executable, "-m", "fedmed_client.link.link", str(home.path)]
        log = tmp_path / f"{home.path.name}-{len(started)}.log"
        started.append(Machine(command, log=log, environment=QUIET))
        return started[-1]

    yield link
    for machine in started:
        machine.kill()

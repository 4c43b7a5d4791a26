"""A small site in a folder, its orders as Flower's messages, and its worker as a real process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Message, Metadata
from PIL import Image

from fedmed_common import children, params, wire
from fedmed_common.config import Experiment
from fedmed_common.models import build_model

TASK = {"classes": ["disc"], "dimensions": 2}
Worker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def experiment() -> Experiment:
    """Two steps of a small network."""
    return Experiment.model_validate(
        {
            "name": "discs",
            "rounds": 2,
            "task": TASK,
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8], "residual_units": 0},
            "train": {"steps": 2, "batch_size": 2, "threads": 1},
        }
    )


@pytest.fixture
def long_experiment(experiment: Experiment) -> Experiment:
    """So many steps that a fault comes in between."""
    return experiment.model_copy(
        update={"train": experiment.train.model_copy(update={"steps": 100_000, "optimizer": "sgd"})}
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site's folder, with ten photographs beside it."""
    return _make_home(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site's folder whose worker runs, for all tests of a module that leave it running."""
    folder = _make_home(tmp_path_factory.mktemp("site"))
    process = _start(folder)
    yield folder
    process.kill()
    process.wait()


def _make_home(parent: Path) -> Path:
    rng = np.random.default_rng(0)
    root, folder = parent / "data", parent / "a home"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(10):
        Image.fromarray(rng.integers(0, 200, (24, 24), np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray((rng.random((24, 24)) > 0.5).astype(np.uint8)).save(root / "labels" / f"{number}.png")
    site = {
        "name": "alpha",
        "data": {"format": "images", "root": str(root)},
        "labels": {"disc": ["1"]},
        "policy": {"least_patients": 3},
        "device": {"gpu": "none"},
        "limits": {"least_free_gb": 0.0},
    }
    folder.mkdir()
    (folder / "site.toml").write_text(tomli_w.dumps(site))
    return folder


def _start(home: Path, **environment: str) -> subprocess.Popen[bytes]:
    return children.start(
        [sys.executable, "-m", "fedmed_client.work.worker", str(home)],
        environment={"OMP_NUM_THREADS": "1", "FEDMED_FAILPOINTS": "", **environment},
        log=home / "log" / "worker.log",
    )


@pytest.fixture
def ask(experiment: Experiment) -> Callable[..., Message]:
    """A message as the link gets it; ``fields`` replace those of the order."""

    def message(**fields: object) -> Message:
        kind = wire.Kind(str(fields.pop("kind", "train")))
        asked = fields.pop("experiment", experiment)
        assert isinstance(asked, Experiment)
        settings = {"run": "run", "round": 1, "attempt": 0, "experiment": asked.order_text(), **fields}
        if kind is not wire.Kind.FACTS:
            settings["parameters"] = params.from_model(build_model(asked))
        content = wire.pack_order(wire.Order(kind=kind, **settings))  # type: ignore[arg-type]
        return Message(
            content=content,
            metadata=Metadata(  # type: ignore[call-overload]
                run_id=1,
                message_id=f"{kind.value}-{time.monotonic_ns()}",
                src_node_id=1,
                dst_node_id=5,
                reply_to_message_id="",
                group_id="",
                created_at=time.time(),
                ttl=3600.0,
                message_type=kind.value,
            ),
        )

    return message


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Start the worker of a folder; what is started ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(home: Path, **environment: str) -> subprocess.Popen[bytes]:
        started.append(_start(home, **environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()

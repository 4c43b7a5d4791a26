"""Processes that share a site's batch train what one alone does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedmed_client import policy
from fedmed_client.engine import crew, parallel
from fedmed_client.engine.crew import CREWS
from fedmed_client.engine.member import in_step
from fedmed_client.engine.parallel import train_together
from fedmed_client.method import Method, in_full
from fedmed_client.train import Update
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics
from fedmed_common import params, wire
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError, Interrupted, PolicyRefusal, WorkerLost
from fedmed_common.models import build_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module", autouse=True)
def _no_crew_is_left() -> Iterator[None]:
    yield
    CREWS.end()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    folder = tmp_path_factory.mktemp("site")
    rng = np.random.default_rng(0)
    for kind, values in (
        ("images", rng.integers(0, 200, (10, 24, 24))),
        ("labels", rng.random((10, 24, 24)) > 0.5),
    ):
        (folder / "data" / kind).mkdir(parents=True)
        for number, picture in enumerate(values):
            Image.fromarray(picture.astype(np.uint8)).save(folder / "data" / kind / f"{number}.png")
    site = Site.model_validate(
        {
            "name": "alpha",
            "data": {"format": "images", "root": folder / "data"},
            "labels": {"disc": ["1"]},
            "device": {"gpu": "none", "processes": 2},
        }
    )
    return SiteHome(site=site, folder=folder / "home")


def experiment(norm: str = "instance", steps: int = 3, **train: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "discs",
            "rounds": 2,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [16, 16]},
            "model": {"channels": [4, 8, 8], "residual_units": 1, "norm": norm},
            "train": {"steps": steps, "batch_size": 4, "optimizer": "sgd", "threads": 1, **train},
        }
    )


def order(asked: Experiment, number: int = 1) -> wire.Order:
    """A training order; each number begins elsewhere."""
    start = {
        name: array + np.float32(0.01 * number)
        for name, array in params.from_model(build_model(asked)).items()
    }
    return wire.Order(
        kind=wire.Kind.TRAIN,
        run="run",
        round=number,
        attempt=0,
        experiment=asked.order_text(),
        parameters=start,
    )


def alone(home: SiteHome, asked: Experiment, number: int = 1) -> Update:
    bench = bench_for(asked.order_text(), gpu=False)
    cohort, sampler = COHORTS.get(home, asked.order_text())
    assert sampler is not None
    method = Method.of(home, bench, order(asked, number), cohort, sampler)
    with numerics(asked, bench.device):
        return method.train("alpha", in_full(method, lambda _step: None)).update


def together(home: SiteHome, asked: Experiment, on_step: Any = lambda _step: None, number: int = 1) -> Update:
    return train_together(home, order(asked, number), on_step).update


def assert_same(one: Update, other: Update) -> None:
    assert one.loss == other.loss
    assert list(one.delta) == list(other.delta)
    for name, array in one.delta.items():
        assert array.tobytes() == other.delta[name].tobytes(), name


def pids() -> list[int]:
    """The processes that wait for the next order."""
    return [member.process.pid for member in CREWS.kept.members] if CREWS.kept else []


def there(pid: int) -> bool:
    """Whether a process lives; one that has ended and that nobody has asked for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel": "ddp", "prefetch": 2},
        {"parallel": "fsdp", "gradient_norm": 0},
    ],
    ids=["ddp", "fsdp"],
)
def test_two_processes_take_the_steps_of_one(home: SiteHome, settings: dict[str, Any]) -> None:
    """Bit for bit what one does that cuts its batch in two: halves are exact. With fsdp a clipped gradient would differ in its
    last bit, for its length is summed in another order. The same processes do so again in the next order.
    """
    steps: list[int] = []
    shared = together(home, experiment(processes=2, **settings), steps.append)
    first = pids()
    in_parts, plain = (alone(home, experiment(accumulate=parts, **settings)) for parts in (2, 1))
    assert_same(shared, in_parts)
    for name, array in in_parts.delta.items():
        np.testing.assert_allclose(array, plain.delta[name], rtol=1e-4, atol=1e-7, err_msg=name)
    assert steps == [1, 2, 3]
    for number in (2, 1):
        again = together(home, experiment(processes=2, **settings), number=number)
        assert_same(again, alone(home, experiment(accumulate=2, **settings), number))
    assert pids() == first
    assert not list(home.folder.glob(".team-*"))


def test_a_process_that_is_killed_while_it_waits_is_replaced(home: SiteHome) -> None:
    same, idle = together(home, experiment(processes=2)), pids()
    os.kill(idle[0], signal.SIGKILL)
    CREWS.kept.members[0].process.wait()  # type: ignore[union-attr]
    assert_same(together(home, experiment(processes=2)), same)
    assert not set(idle) & set(pids())
    assert not any(there(pid) for pid in idle)


def test_a_process_that_is_killed_while_it_trains_ends_all_with_one_error(home: SiteHome) -> None:
    started: list[int] = []

    def kill_one(_step: int) -> None:
        if not started:
            started.extend(pids())
            os.kill(started[1], signal.SIGKILL)

    with pytest.raises(WorkerLost, match=r"process 2 of 2 that shared the training was ended by SIGKILL$"):
        together(home, experiment(processes=2, steps=100_000), kill_one)
    assert len(started) == 2
    assert not any(there(pid) for pid in started)
    assert not list(home.folder.glob(".team-*"))


_PARENT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_parallel import *
site = SiteHome(site=Site.model_validate_json({site!r}), folder=Path({folder!r}))
together(site, experiment(processes=2))
print(*pids(), flush=True)
together(site, experiment(processes=2, steps=1_000_000), lambda step: step > 1 or print(step, flush=True))
"""


def test_none_outlives_the_process_that_started_them(home: SiteHome) -> None:
    text = _PARENT.format(
        paths=[str(Path(__file__).parent)],
        site=home.site.model_dump_json(exclude={"network"}),
        folder=str(home.folder),
    )
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            members = [int(word) for word in parent.stdout.readline().split()]
            assert len(members) == 2
            assert parent.stdout.readline() == "1\n"
            assert all(there(pid) for pid in members)
        finally:
            parent.kill()
    for _ in range(1000):
        if not any(there(pid) for pid in members):
            break
        time.sleep(0.01)
    assert not any(there(pid) for pid in members)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """In place of the members, processes that run these lines; ``say`` speaks for one, and ``rank`` tells which it is."""
    CREWS.end()

    def script(text: str) -> None:
        head = (
            "import os, socket, sys, time; rank = int(os.environ['RANK']); line = socket.socket(fileno=0); "
            "say = lambda text: line.sendall(text.encode() + b'\\n'); line.recv(1); "
        )
        monkeypatch.setattr(crew, "COMMAND", (sys.executable, "-c", head + text))

    yield script
    CREWS.end()


def test_what_is_raised_at_a_step_ends_all(home: SiteHome, scripted: Callable[..., None]) -> None:
    scripted("say('{\"step\": 7}'); time.sleep(60)")
    started: list[int] = []

    def leave(step: int) -> None:
        started.extend(pids())
        raise Interrupted(f"at step {step}")

    with pytest.raises(Interrupted, match="at step 7"):
        together(home, experiment(processes=2), leave)
    assert len(started) == 2
    assert not any(there(pid) for pid in started)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (
            'say(\'{"error": "no memory", "at": 1}\') if rank else time.sleep(60)',
            r"2 of 2 .* failed: no memory$",
        ),
        (
            "say('{\"error\": \"%s\", \"at\": %d}' % (('no peer', 9), ('no memory', 3))[rank])",
            r"2 of 2 .* failed: no memory$",
        ),
        ("sys.exit(3) if rank else time.sleep(60)", r"2 of 2 .* failed: it left no word \(code 3\)$"),
        (
            'os.kill(os.getpid(), 9) if rank else say(\'{"error": "no peer", "at": 1}\')',
            r"2 of 2 .* was ended by SIGKILL$",
        ),
    ],
    ids=["one", "both", "without a word", "for want of one that was killed"],
)
def test_a_process_that_fails_ends_all_and_says_why(
    home: SiteHome, scripted: Callable[..., None], does: str, says: str
) -> None:
    scripted(f"time.sleep(0.3 * (1 - rank)); {does}")
    with pytest.raises(WorkerLost, match="^process " + says):
        together(home, experiment(processes=2))
    assert CREWS.kept is not None
    assert not CREWS.kept.stands


def test_what_cannot_be_shared_is_said_before_anything_starts(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CREWS", None)
    with pytest.raises(ConfigError, match=r"model\.norm: batch norms"):
        together(home, experiment("batch", processes=2))
    drawn = SiteHome(site=home.site, folder=home.folder, open=home.cohort)
    with pytest.raises(ConfigError, match=r"train\.processes: a drawn partition"):
        together(drawn, experiment(processes=2))
    monkeypatch.setattr(parallel, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="accelerate, which is not installed") as error:
        together(home, experiment(processes=2))
    assert "pip install 'fedmed[multigpu]'" in error.value.fix


def test_the_site_permits_so_many_processes(home: SiteHome) -> None:
    policy.check_device(home.site.device, experiment(processes=2))
    with pytest.raises(PolicyRefusal, match=r"^processes: 4 are asked; device.processes is 2"):
        policy.check_device(home.site.device, experiment(processes=4))


def test_a_frozen_batch_norm_measures_nothing_in_step_either() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    network[1].weight.requires_grad_(False)
    synced = in_step(network)
    assert [type(module) for module in synced] == [nn.Conv2d, nn.SyncBatchNorm, nn.SyncBatchNorm]
    assert (synced[1].weight.requires_grad, synced[2].weight.requires_grad) == (False, True)
    synced.train()
    synced[:2](torch.randn(3, 1, 4, 4) + 5)
    assert not synced[1].running_mean.any()


_LIGHT = """
import sys
import fedmed_client.app
from fedmed_client.data.transforms import build_augmentation
build_augmentation("standard", (16, 16))
assert not {"accelerate", "peft", "transformers"} & sys.modules.keys()
"""


def test_nothing_imports_accelerate_that_does_not_need_it() -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

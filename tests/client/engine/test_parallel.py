"""Processes that share a site's batch train what one alone does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedmed_client import policy
from fedmed_client.engine import parallel
from fedmed_client.engine.member import in_step
from fedmed_client.engine.parallel import train_together
from fedmed_client.train import Course, Update, train
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics, seed_for
from fedmed_common import children, params
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError, Interrupted, PolicyRefusal, WorkerLost
from fedmed_common.models import build_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
SEED = seed_for(0, 1, "alpha")


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


def alone(home: SiteHome, asked: Experiment) -> Update:
    bench = bench_for(asked.order_text(), gpu=False)
    _, sampler = COHORTS.get(home, asked.order_text())
    assert sampler is not None
    with numerics(asked, bench.device):
        return train(
            bench,
            sampler,
            params.from_model(build_model(asked)),
            Course(round=1, seed=SEED),
            lambda _step: None,
        )


def together(home: SiteHome, asked: Experiment, on_step: Any = lambda _step: None) -> Update:
    return train_together(home, asked.order_text(), params.from_model(build_model(asked)), 1, SEED, on_step)


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel": "ddp"},
        {"parallel": "fsdp", "gradient_norm": 0},
    ],
    ids=["ddp", "fsdp"],
)
def test_two_processes_take_the_steps_of_one(home: SiteHome, settings: dict[str, Any]) -> None:
    """Bit for bit what one does that cuts its batch in two: halves are exact. With fsdp a clipped gradient would differ in its
    last bit, for its length is summed in another order.
    """
    steps: list[int] = []
    shared = together(home, experiment(processes=2, **settings), steps.append)
    in_parts, plain = (alone(home, experiment(accumulate=parts, **settings)) for parts in (2, 1))
    assert shared.loss == in_parts.loss
    assert list(shared.delta) == list(in_parts.delta)
    for name, array in in_parts.delta.items():
        assert array.tobytes() == shared.delta[name].tobytes(), name
        np.testing.assert_allclose(shared.delta[name], plain.delta[name], rtol=1e-4, atol=1e-7, err_msg=name)
    assert steps == sorted(set(steps))
    assert set(steps) <= {1, 2, 3}
    assert not list(home.folder.glob(".team-*"))


def folder_processes(home: SiteHome) -> list[int]:
    """Processes of this machine whose command names the home's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(home.folder).encode() in word for word in command):
            found.append(int(entry.parent.name))
    return found


def test_a_process_that_is_killed_ends_all_with_one_error(home: SiteHome) -> None:
    killed: list[int] = []

    def kill_one(_step: int) -> None:
        if not killed:
            assert len(folder_processes(home)) == 2
            killed.append(max(folder_processes(home)))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(WorkerLost, match=r"process [12] of 2 that shared the training was ended by SIGKILL$"):
        together(home, experiment(processes=2, steps=100_000), kill_one)
    assert folder_processes(home) == []
    assert not list(home.folder.glob(".team-*"))


def scripts(*texts: str) -> Any:
    """In place of the members, processes that run these lines; ``folder`` is where the members' files lie."""
    waiting = list(texts)

    def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        head = f"import pathlib, sys, time; folder = pathlib.Path({str(folder)!r}); "
        return children.start([sys.executable, "-c", head + waiting.pop(0)], environment=environment)

    return start


def test_what_is_raised_at_a_step_ends_all(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = "(folder / 'step').write_text('7'); time.sleep(60)"
    monkeypatch.setattr(parallel, "_start", scripts(steps, "time.sleep(60)"))
    started: list[int] = []

    def leave(step: int) -> None:
        started.extend(folder_processes(home))
        raise Interrupted(f"at step {step}")

    with pytest.raises(Interrupted, match="at step 7"):
        together(home, experiment(processes=2), leave)
    assert len(started) == 2
    assert folder_processes(home) == []


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("(folder / 'error-1.txt').write_text('no memory'); sys.exit(1)", r"failed: no memory$"),
        ("sys.exit(3)", r"failed: it left no word \(code 3\)$"),
    ],
)
def test_a_process_that_fails_ends_all_and_says_why(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, fails: str, says: str
) -> None:
    monkeypatch.setattr(parallel, "_start", scripts("time.sleep(60)", fails))
    with pytest.raises(WorkerLost, match=r"^process 2 of 2 that shared the training " + says):
        together(home, experiment(processes=2))
    assert folder_processes(home) == []


def test_what_cannot_be_shared_is_said_before_anything_starts(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_start", lambda *_: pytest.fail("a process was started"))
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

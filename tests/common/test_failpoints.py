"""A fault happens at its point, to its target, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmed_common import failpoints
from fedmed_common.failpoints import VARIABLE, reach


def _plan(folder: Path, **fault: object) -> Path:
    fired = folder / "fired"
    fired.mkdir(exist_ok=True)
    file = folder / "plan.json"
    document = {"faults": [{"id": "one", "signal": "SIGKILL", **fault}], "fired": str(fired)}
    file.write_text(json.dumps(document))
    return file


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (tmp_path / "victim.pid").write_text(str(process.pid))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_nothing_happens_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for point in failpoints.POINTS:
        reach(point)


def test_the_target_ends_once_and_only_where_the_plan_says(
    tmp_path: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "victim.pid")
    plan = _plan(tmp_path, point="aggregating", target=target, round=2, site="alpha")
    monkeypatch.setenv(VARIABLE, str(plan))
    for point, number, site in (
        ("training", 2, "alpha"),
        ("aggregating", 1, "alpha"),
        ("aggregating", 2, "beta"),
    ):
        reach(point, round=number, site=site)
    assert victim.poll() is None
    reach("aggregating", round=2, site="alpha")
    assert victim.wait(10) == -signal.SIGKILL
    (tmp_path / "victim.pid").write_text(str(os.getpid()))
    reach("aggregating", round=2, site="alpha")


def test_a_process_can_end_itself(tmp_path: Path) -> None:
    own = tmp_path / "own.pid"
    plan = _plan(tmp_path, point="after-seal", target=str(own), signal="SIGTERM")
    program = (
        f"import os, pathlib\npathlib.Path({str(own)!r}).write_text(str(os.getpid()))\n"
        "from fedmed_common.failpoints import reach\nreach('after-seal')\nprint('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, VARIABLE: str(plan)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")

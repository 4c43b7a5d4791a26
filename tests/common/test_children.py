"""Children are kept alive, end together, and end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedmed_common.children import Child, Supervisor, pid_file, start, stop, write_pid

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
DEAF = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
)


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def _pid(file: Path) -> int:
    _until(file.exists)
    return int(file.read_text())


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    ends: list[tuple[str, int]] = []
    supervisor = Supervisor(
        tmp_path,
        [Child(role="one", command=SLEEP), Child(role="two", command=SLEEP)],
        first_wait=0.05,
        on_end=lambda role, code: ends.append((role, code)),
    )
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(supervisor.run()))
    thread.start()
    try:
        one, two = (_pid(pid_file(tmp_path, role)) for role in ("one", "two"))
        os.kill(one, signal.SIGKILL)
        file = pid_file(tmp_path, "one")
        _until(lambda: file.exists() and int(file.read_text()) != one)
        assert _pid(pid_file(tmp_path, "two")) == two
        assert ends == [("one", -signal.SIGKILL)]
        again = _pid(file)
    finally:
        supervisor.stop()
        thread.join()
    assert result == [0]
    assert not any(Path(f"/proc/{pid}").exists() for pid in (one, two, again))
    assert not pid_file(tmp_path, "one").exists()


def test_a_final_code_ends_all(tmp_path: Path) -> None:
    children = [
        Child(
            role="final", command=(sys.executable, "-c", "raise SystemExit(15)"), final_codes=frozenset({15})
        ),
        Child(role="other", command=SLEEP),
    ]
    assert Supervisor(tmp_path, children).run() == 15
    assert not pid_file(tmp_path, "other").exists()


def test_a_child_that_cannot_be_started_now_is_started_later(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way of the folder of pid files")
    supervisor = Supervisor(tmp_path, [Child(role="one", command=SLEEP)], first_wait=0.05)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        time.sleep(0.3)
        (tmp_path / "run").unlink()
        assert Path(f"/proc/{_pid(pid_file(tmp_path, 'one'))}").exists()
    finally:
        supervisor.stop()
        thread.join()


def test_a_child_that_does_not_listen_is_ended_hard(tmp_path: Path) -> None:
    process = start(DEAF, log=tmp_path / "log" / "deaf.log")
    try:
        _until(lambda: (tmp_path / "log" / "deaf.log").read_bytes() == b"deaf\n")
        assert stop(process, 0.1) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom fedmed_common.children import Child, Supervisor\n"
        f"Supervisor(pathlib.Path({str(tmp_path)!r}), [Child(role='one', command={SLEEP!r})]).run()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        child = _pid(pid_file(tmp_path, "one"))
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


def test_a_process_names_itself(tmp_path: Path) -> None:
    write_pid(tmp_path, "serverapp")
    assert pid_file(tmp_path, "serverapp").read_text() == str(os.getpid())
    assert pid_file(tmp_path, "serverapp").parent.stat().st_mode & 0o777 == 0o700

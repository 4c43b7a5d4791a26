"""Carries Flower's ServerApp tasks out, each in a process of its own, and ends at Flower what has ended here.

It takes no other kind of task. The task's token goes to the process in its environment, which others on the machine cannot
read, and never on its command line, which they can.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fedmed_common import children
from fedmed_server.deployment.flower_client import SuperLinkAway
from fedmed_server.deployment.flower_runtime import Task, TaskSource
from fedmed_server.deployment.home import ServerHome

TOKEN = "FEDMED_TASK_TOKEN"  # noqa: S105
_LOOP_SECONDS = 0.5
_GRACE_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Child:
    task: Task
    process: subprocess.Popen[bytes]


class Launcher:
    """Starts a process for each task until it is told to stop, and then stops those that it has started."""

    def __init__(self, home: Path) -> None:
        self._home = ServerHome(home)
        self._source: TaskSource | None = None
        self._children: list[_Child] = []
        self._lost: list[Task] = []
        self._away = False
        self._problem = ""

    def run(self, stop: threading.Event) -> None:
        """Look for tasks, and for processes that have ended, twice a second. Whatever goes wrong is tried again."""
        try:
            while not stop.is_set():
                self._step()
                stop.wait(_LOOP_SECONDS)
        finally:
            self._end_children()
            self._step(acquire=False)
            if self._source is not None:
                self._source.close()

    def _step(self, *, acquire: bool = True) -> None:
        try:
            self._reap()
            self._source = self._source or TaskSource(self._home)
            self._end_lost(self._source)
            task = self._source.acquire() if acquire else None
            if task is not None:
                self._start(task)
            self._away, self._problem = False, ""
        except SuperLinkAway as away:
            if not self._away:
                _log.warning("%s; tasks wait", away)
            self._away = True
        except Exception as error:
            if repr(error) != self._problem:
                _log.exception("the launcher met something unknown; it goes on")
            self._problem = repr(error)

    def _start(self, task: Task) -> None:
        environment = {
            TOKEN: task.token,
            "FEDMED_HOME": str(self._home.path.absolute()),
            "FLWR_HOME": str(self._home.flower.absolute()),
        }
        command = (sys.executable, "-m", "fedmed_server.deployment.serverapp")
        log = self._home.log / "serverapp.log"
        try:
            process = children.start(command, environment=environment, log=log, own_group=True)
        except OSError as error:
            _log.error("no ServerApp can be started: %s", error)
            self._lost.append(task)
        else:
            self._children.append(_Child(task, process))

    def _reap(self) -> None:
        """A process that ends well has told Flower so itself; the task of any other is lost."""
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                continue
            self._children.remove(child)
            self._remove_pid(child.process.pid)
            if code:
                _log.warning("a ServerApp ended with code %s", code)
                self._lost.append(child.task)

    def _remove_pid(self, pid: int) -> None:
        file = children.pid_file(self._home.path, "serverapp")
        if file.exists() and file.read_text() == str(pid):
            file.unlink(missing_ok=True)

    def _end_lost(self, source: TaskSource) -> None:
        while self._lost:
            source.fail(self._lost[0])
            del self._lost[0]

    def _end_children(self) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        end = time.monotonic() + _GRACE_SECONDS
        for child in self._children:
            children.stop(child.process, max(end - time.monotonic(), 0.05))

"""Read many headers with several processes, none of which can take the scan down with it.

Each worker is a small child process that is sent lists of paths and answers with one line per file. When one dies or
takes too long, its list is read again file by file by a fresh worker, the file that ends this one as well is refused, and
the scan goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from fedmed_client.data.headers import Header, Refused, from_json, read_header, to_json
from fedmed_common.processes import cores

_FILES_PER_LIST = 32
_SECONDS_PER_LIST = 120.0
_FILES_WORTH_A_WORKER = 256


def read_headers(paths: Sequence[Path], workers: int) -> Iterator[tuple[Path, Header | Refused]]:
    """Each path with its header, in no particular order. ``workers`` 0: by the number of files and cores."""
    workers = workers or min(cores(), 1 + len(paths) // _FILES_WORTH_A_WORKER)
    if workers == 1:
        yield from ((path, read_header(path)) for path in paths)
        return
    lists = [paths[start : start + _FILES_PER_LIST] for start in range(0, len(paths), _FILES_PER_LIST)]
    processes = _Workers()
    try:
        with ThreadPoolExecutor(workers) as pool:
            reading: set[Future[list[tuple[Path, Header | Refused]]]]
            reading = {pool.submit(processes.read, some) for some in lists}
            try:
                for done in as_completed(reading):
                    yield from done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.interrupt()
    finally:
        processes.close()


class _Workers:
    """One child process per thread, started on first use and again after it died."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: list[subprocess.Popen[str]] = []
        self._stopped = False

    def read(self, paths: Sequence[Path]) -> list[tuple[Path, Header | Refused]]:
        """Read one list of files, and each by itself where the worker does not survive the list."""
        lines = self._ask(paths)
        if len(lines) == len(paths):
            return [(path, from_json(line)) for path, line in zip(paths, lines, strict=True)]
        found: list[tuple[Path, Header | Refused]] = []
        for path in paths:
            if self._stopped:
                break
            answer = self._ask([path])
            reason = "reading its header crashed or took too long"
            found.append(
                (path, from_json(answer[0]) if answer else Refused("reader-crashed", reason, lasting=False))
            )
        return found

    def _ask(self, paths: Sequence[Path]) -> list[str]:
        child = self._child()
        assert child.stdin is not None and child.stdout is not None  # noqa: S101
        timer = threading.Timer(_SECONDS_PER_LIST, child.kill)
        timer.start()
        lines = []
        try:
            child.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
            child.stdin.flush()
            for _ in paths:
                line = child.stdout.readline()
                if not line.endswith("\n"):
                    break
                lines.append(line)
        except BrokenPipeError:
            child.kill()
        finally:
            timer.cancel()
        return lines

    def _child(self) -> subprocess.Popen[str]:
        child: subprocess.Popen[str] | None = getattr(self._mine, "child", None)
        if child is None or child.poll() is not None:
            command = [sys.executable, "-P", "-m", "fedmed_client.data.header_pool"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
            self._mine.child = child
            self._all.append(child)
        return child

    def interrupt(self) -> None:
        """Let every `read` in progress return early."""
        self._stopped = True
        for child in self._all:
            child.kill()

    def close(self) -> None:
        """Leave no process and no pipe behind."""
        for child in self._all:
            child.kill()
            child.communicate()


def _work() -> None:
    for line in sys.stdin:
        sys.stdout.write("".join(to_json(read_header(Path(path))) + "\n" for path in json.loads(line)))
        sys.stdout.flush()


if __name__ == "__main__":
    _work()

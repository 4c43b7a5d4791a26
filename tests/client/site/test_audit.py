"""The audit log: any change of it is found, and a killed writer leaves it whole."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmed_client.site.audit import HEAD, LOG, AuditLog
from fedmed_common.errors import FedmedError

Lines = list[bytes]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    audit = AuditLog(tmp_path)
    for number in range(5):
        audit.append("received", run="run", round=number)
    return audit


def _changed(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"round": 2', b'"round": 9'), *lines[3:]]


def test_each_line_holds_the_hash_of_the_line_before(log: AuditLog, tmp_path: Path) -> None:
    lines = (tmp_path / LOG).read_text().splitlines()
    expected = [hashlib.sha256(line.encode()).hexdigest() for line in ("", *lines)]
    assert [json.loads(line)["previous"] for line in lines] == expected[:-1]
    assert (log.verify().lines, log.verify().sha256) == (5, expected[-1])
    assert (tmp_path / LOG).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_changed, "line 3 is not"),
        (
            lambda lines: lines[:1] + lines[2:],
            "line 1 is not as it was written, or a line after it was removed",
        ),
        (lambda lines: lines[1:], "line 1 is not the first"),
        (lambda lines: [*lines[:4], *lines[3:]], "line 4 is not"),
        (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], "line 2 is not"),
        (lambda lines: [*lines[:2], b"nothing\n", *lines[3:]], "line 3 is not"),
        (lambda lines: [*lines[:4], lines[4].replace(b'"round": 4', b'"round": 5')], "line 5 is not"),
        (lambda lines: lines[:3], "3 of 5 lines"),
        (lambda lines: [], "0 of 5 lines"),
        (lambda lines: [*lines, *lines], "line 5 is not|line 6 was put in"),
    ],
)
def test_a_change_is_found_and_the_first_bad_line_named(
    log: AuditLog, tmp_path: Path, change: Callable[[Lines], Lines], found: str
) -> None:
    file = tmp_path / LOG
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(FedmedError, match=found):
        log.verify()


def test_what_is_written_after_a_change_does_not_hide_it(log: AuditLog, tmp_path: Path) -> None:
    file = tmp_path / LOG
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))
    log.append("started")
    with pytest.raises(FedmedError, match="line 3 is not"):
        log.verify()


@pytest.mark.parametrize("written", [0.5, 1.0])
def test_a_writer_that_was_killed_leaves_a_log_that_goes_on(
    log: AuditLog, tmp_path: Path, written: float
) -> None:
    """Killed with a part of its line written, or with all of it and the head of before."""
    head = (tmp_path / HEAD).read_bytes()
    log.append("started")
    (tmp_path / HEAD).write_bytes(head)
    line = (tmp_path / LOG).read_bytes().splitlines(keepends=True)[-1]
    with (tmp_path / LOG).open("r+b") as file:
        file.truncate((tmp_path / LOG).stat().st_size - len(line) + int(len(line) * written))
    log.append("stopped")
    assert log.verify().lines == (7 if written == 1.0 else 6)


def test_writers_killed_at_any_moment_break_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for pause in (0.0, 0.02, 0.05):
        writers = [context.Process(target=_write_for_ever, args=(tmp_path,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        while not (tmp_path / HEAD).exists():
            time.sleep(0.01)
        time.sleep(pause)
        for writer in writers:
            os.kill(writer.pid or 0, signal.SIGKILL)
            writer.join()
    log = AuditLog(tmp_path)
    before = log.verify().lines
    log.append("stopped")
    assert log.verify().lines == before + 1


def test_long_words_of_an_order_are_cut(tmp_path: Path) -> None:
    AuditLog(tmp_path).append("refused", rule="x\n" * 10_000)
    assert len((tmp_path / LOG).read_bytes()) < 1000
    assert AuditLog(tmp_path).verify().lines == 1


def _write_for_ever(folder: Path) -> None:
    while True:
        AuditLog(folder).append("received", run="run")

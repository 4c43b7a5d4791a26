"""A coordinator whose Flower database is PostgreSQL, which is killed on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedmed_server.history import RunStarted
from fedmed_server.state import model_file
from fedmed_simulations.rehearsal.equality import difference

USER = "nobody" if os.geteuid() == 0 else None
"""PostgreSQL does not run as root."""


@dataclass
class Database:
    """A PostgreSQL of this test's own, reached through a socket in its folder."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"postgresql://fedmed@/postgres?host={self.folder}"

    def create(self) -> None:
        if USER is not None:
            shutil.chown(self.folder, USER)
        command = ["initdb", "-D", f"{self.folder}/data", "-A", "trust", "-U", "fedmed"]
        subprocess.run(command, check=True, user=USER, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        command = ["postgres", "-D", f"{self.folder}/data", "-k", str(self.folder), "-c", "listen_addresses="]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, user=USER, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)
        end = time.monotonic() + 30
        ready = ["pg_isready", "-q", "-h", str(self.folder)]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        process = self.processes.pop()
        process.kill()
        process.wait()


@pytest.fixture
def database() -> Iterator[Database]:
    if not all(map(shutil.which, ("initdb", "postgres", "pg_isready"))):
        pytest.skip("PostgreSQL is not installed")
    database = Database(Path(tempfile.mkdtemp(prefix="fedmed-pg-")))
    try:
        database.create()
        database.start()
        yield database
    finally:
        for process in database.processes:
            process.terminate()
            process.wait()
        shutil.rmtree(database.folder)


def test_a_run_over_postgresql_gives_the_same_weights_though_it_is_killed(
    running, database: Database
) -> None:
    consortium = running.consortium
    running.faults.plan(consortium, [])
    consortium.stop("server")
    consortium.set_server(state={"database": database.url})
    try:
        consortium.start_server()
        consortium.wait_connected()
        run = consortium.launch(running.experiment)
        started = lambda: any(isinstance(record, RunStarted) for record in consortium.records(run))  # noqa: E731
        consortium.wait_until(started, "a roll call")
        database.kill()
        database.start()
        assert consortium.wait_ended(run).status == "completed"
        tables = ["psql", "-h", str(database.folder), "-U", "fedmed", "-At", "postgres", "-c"]
        said = subprocess.run([*tables, "select count(*) from node"], check=True, capture_output=True)
        assert int(said.stdout) == len(consortium.names)
    finally:
        consortium.stop("server")
        consortium.set_server(state={"database": ""})
        consortium.start_server()
        consortium.wait_connected()
    assert difference(model_file(consortium.run_folder(run), "last"), model_file(running.whole, "last")) == ""

"""Backup and restore of homes, by the scripts that ship."""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmed_client.site.audit import AuditLog
from fedmed_common.files import write_atomically

from .conftest import DEPLOY, output, tool

BACKUP, RESTORE = DEPLOY / "backup" / "backup.sh", DEPLOY / "backup" / "restore.sh"
SERVER_KEYS = frozenset({"tls/server.key", "signing.key", "secrets/control.token"})
SERVER_ANEW = frozenset({"run/serve.pid", "log/superlink.log"})
SITE_KEYS = frozenset({"site.key"})
SITE_ANEW = frozenset(
    {"instance", "status.json", "cache/huge", "scan.index", "run/link.pid", "secure/run/session.json"}
)


def back_up(home: Path, target: Path, *more: str) -> Path:
    return Path(output("env", f"PYTHON={sys.executable}", BACKUP, home, target, *more).strip())


def write(home: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def make_server(home: Path) -> Path:
    """A server's home. The registry is a link, as in Kubernetes, where it lies in a secret."""
    names = (
        "server.toml", "tls/ca.pem", "tls/server.pem", "state/sites.json", "receipts/north.json",
        "run/serve.pid", "log/superlink.log",
        "runs/one/experiment.toml", "runs/one/launch.json", "runs/one/history.jsonl",
        "runs/one/state.safetensors", "runs/one/models/best.safetensors", "runs/mlartifacts/0/a", *SERVER_KEYS,
    )  # fmt: skip
    write(home, **{name: name for name in names})
    write(home.parent, secret="registry")  # noqa: S106
    (home / "registry.json").symlink_to(home.parent / "secret")
    with sqlite3.connect(home / "state" / "flower.db") as database:
        database.execute("create table node (id integer)")
    return home


def make_site(home: Path) -> Path:
    names = (
        "site.toml", "connection.json", "ca.pem", "site.pem", "request.json", "approvals/a.json", "outbox/run/1",
        "audit.log", "audit.head", "incidents.log", "instance", "status.json", "cache/huge", "scan.index", "run/link.pid",
        "ledger.key", "withdrawn.key", "withdrawn.json", "uses/a.json", "secure/run/session.json", *SITE_KEYS,
    )  # fmt: skip
    write(home, **{name: name for name in names})
    with sqlite3.connect(home / "ledger.db") as database:
        database.execute("create table reservation (sequence integer)")
    return home


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A home, its backup without keys and its backup with them."""

    home: Path
    backup: Path
    with_keys: Path
    keys: frozenset[str]
    made_anew: frozenset[str]


@pytest.fixture(scope="module", params=["server", "site"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp(request.param)
    is_server = request.param == "server"
    home = (make_server if is_server else make_site)(folder / "home")
    return Kept(
        home=home,
        backup=back_up(home, folder / "without"),
        with_keys=back_up(home, folder / "with", "--with-keys"),
        keys=SERVER_KEYS if is_server else SITE_KEYS,
        made_anew=SERVER_ANEW if is_server else SITE_ANEW,
    )


@pytest.mark.parametrize("script", [BACKUP, RESTORE], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    output(tool("shellcheck"), script)


def test_a_backup_has_all_but_keys_and_what_is_made_anew(kept: Kept) -> None:
    home, backup = files(kept.home), files(kept.backup)
    assert backup.keys() - {"SHA256SUMS"} == home.keys() - kept.keys - kept.made_anew
    databases = {name for name in backup if name.endswith(".db")}
    assert [name for name in backup.keys() - databases - {"SHA256SUMS"} if backup[name] != home[name]] == []
    assert not [path for path in kept.backup.rglob("*") if path.is_symlink()]


def test_keys_are_taken_along_when_asked_for(kept: Kept) -> None:
    assert files(kept.with_keys).keys() - files(kept.backup).keys() == kept.keys


def test_only_its_owner_can_read_a_backup(kept: Kept) -> None:
    assert stat.S_IMODE(kept.backup.stat().st_mode) == 0o700
    assert re.fullmatch(r"fedmed-(server|site)-\d{8}T\d{6}Z", kept.backup.name)
    assert [path.name for path in kept.backup.parent.iterdir()] == [kept.backup.name]


def test_what_is_restored_is_what_was_backed_up(kept: Kept, tmp_path: Path) -> None:
    output(RESTORE, kept.with_keys, tmp_path / "home")
    wanted = files(kept.with_keys)
    del wanted["SHA256SUMS"]
    assert files(tmp_path / "home") == wanted
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_who_restores_a_backup_without_keys_is_told_which_are_missing(kept: Kept, tmp_path: Path) -> None:
    done = subprocess.run(
        [RESTORE, kept.backup, tmp_path / "home"], capture_output=True, text=True, check=True
    )
    assert {key for key in kept.keys if key in done.stderr} == kept.keys - {"secrets/control.token"}


def test_a_damaged_backup_is_not_restored(kept: Kept, tmp_path: Path) -> None:
    damaged = shutil.copytree(kept.backup, tmp_path / "damaged")
    next(damaged.glob("*.toml")).write_text("another")
    done = subprocess.run([RESTORE, damaged, tmp_path / "home"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "home").exists()


def test_nothing_is_overwritten(kept: Kept) -> None:
    before = files(kept.home)
    done = subprocess.run([RESTORE, kept.backup, kept.home], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert files(kept.home) == before


def test_a_folder_that_is_no_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    done = subprocess.run(
        [BACKUP, tmp_path / "x", tmp_path / "backups"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "neither" in done.stderr
    assert not (tmp_path / "backups").exists()


@pytest.fixture
def busy() -> Iterator[Callable[[Callable[[int], None]], None]]:
    """Do something again and again, with a rising number, in a thread of its own."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def begin(step: Callable[[int], None]) -> None:
        def run() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                step(number)
                stop.wait(0.005)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    try:
        yield begin
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_database_and_a_run_are_whole_while_they_are_written(
    tmp_path: Path, busy: Callable[[Callable[[int], None]], None]
) -> None:
    server = make_server(tmp_path / "home")
    run = server / "runs" / "one"
    (run / "history.jsonl").unlink()
    database = sqlite3.connect(server / "state" / "flower.db", check_same_thread=False)

    def step(number: int) -> None:
        database.executemany("insert into node values (?)", [(number,)] * 10)
        database.commit()
        if number < 300:
            write_atomically(run / "state.safetensors", str(number).encode())
            with (run / "history.jsonl").open("a") as history:
                history.write(f"{number}\n")

    busy(step)
    backup = back_up(server, tmp_path / "backups")
    with sqlite3.connect(backup / "state" / "flower.db") as copy:
        counts = copy.execute("select count(*) from node group by id").fetchall()
    assert set(counts) == {(10,)}
    state = int((backup / "runs" / "one" / "state.safetensors").read_text())
    rounds = [int(line) for line in (backup / "runs" / "one" / "history.jsonl").read_text().splitlines()]
    assert rounds in (list(range(1, state + 1)), list(range(1, state)))


def test_an_audit_log_is_whole_while_it_is_written(
    tmp_path: Path, busy: Callable[[Callable[[int], None]], None]
) -> None:
    site = make_site(tmp_path / "home")
    for name in ("audit.log", "audit.head"):
        (site / name).unlink()
    log = AuditLog(site)
    busy(lambda number: log.append("received", round=number) if number < 200 else None)
    backup = back_up(site, tmp_path / "backups")
    restored = tmp_path / "restored"
    output(RESTORE, backup, restored)
    assert AuditLog(restored).verify().lines > 0

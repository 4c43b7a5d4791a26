"""Backup and restore of homes, by the scripts that ship."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmed_common.files import write_atomically

from .conftest import DEPLOY, output, tool

BACKUP, RESTORE = DEPLOY / "backup" / "backup.sh", DEPLOY / "backup" / "restore.sh"
SERVER_KEYS = {"tls/server.key", "signing.key", "secrets/control.token"}
SITE_KEYS = {"site.key"}


def back_up(home: Path, target: Path, *more: str) -> Path:
    return Path(output("env", f"PYTHON={sys.executable}", BACKUP, home, target, *more).strip())


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def write(home: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    home = tmp_path / "server"
    write(
        home,
        **{
            name: name
            for name in (
                "server.toml", "registry.json", "tls/ca.pem", "tls/server.pem", "state/sites.json",
                "runs/one/experiment.toml", "runs/one/launch.json", "runs/one/history.jsonl",
                "runs/one/state.safetensors", "runs/one/models/best.safetensors", "runs/mlartifacts/0/a",
                "run/serve.pid", "log/serve.log", *SERVER_KEYS,
            )
        },
    )  # fmt: skip
    with sqlite3.connect(home / "state" / "flower.db") as database:
        database.execute("create table node (id integer)")
    return home


@pytest.fixture
def site(tmp_path: Path) -> Path:
    home = tmp_path / "site"
    names = (
        "site.toml", "connection.json", "ca.pem", "site.pem", "request.json", "approvals/a.json", "outbox/run/1",
        "audit.log", "incidents.log", "instance", "status.json", "cache/huge", "run/link.pid", *SITE_KEYS,
    )  # fmt: skip
    write(home, **{name: name for name in names})
    return home


@pytest.mark.parametrize("script", [BACKUP, RESTORE], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    output(tool("shellcheck"), script)


def test_a_servers_backup_has_all_but_keys_and_what_is_made_anew(server: Path, tmp_path: Path) -> None:
    kept = files(back_up(server, tmp_path / "backups"))
    left_out = SERVER_KEYS | {"run/serve.pid", "log/serve.log"}
    assert kept.keys() - {"SHA256SUMS"} == files(server).keys() - left_out
    assert kept["runs/one/state.safetensors"] == b"runs/one/state.safetensors"


def test_a_sites_backup_has_all_but_keys_and_what_is_made_anew(site: Path, tmp_path: Path) -> None:
    kept = files(back_up(site, tmp_path / "backups"))
    left_out = SITE_KEYS | {"instance", "status.json", "cache/huge", "run/link.pid"}
    assert kept.keys() - {"SHA256SUMS"} == files(site).keys() - left_out


def test_keys_are_taken_along_when_asked_for(server: Path, site: Path, tmp_path: Path) -> None:
    for home, keys in ((server, SERVER_KEYS), (site, SITE_KEYS)):
        assert files(back_up(home, tmp_path / "backups", "--with-keys")).keys() >= keys


def test_only_its_owner_can_read_a_backup(site: Path, tmp_path: Path) -> None:
    backup = back_up(site, tmp_path / "backups")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700


@pytest.mark.parametrize("home", ["server", "site"])
def test_what_is_restored_is_what_was_backed_up(
    home: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    backup = back_up(request.getfixturevalue(home), tmp_path / "backups", "--with-keys")
    restored = tmp_path / "restored"
    output(RESTORE, backup, restored)
    wanted = files(backup)
    del wanted["SHA256SUMS"]
    assert files(restored) == wanted
    assert stat.S_IMODE(restored.stat().st_mode) == 0o700


def test_a_damaged_backup_is_not_restored(site: Path, tmp_path: Path) -> None:
    backup = back_up(site, tmp_path / "backups")
    (backup / "audit.log").write_text("another")
    done = subprocess.run([RESTORE, backup, tmp_path / "new"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(site: Path, tmp_path: Path) -> None:
    before = files(site)
    backup = back_up(site, tmp_path / "backups")
    done = subprocess.run([RESTORE, backup, site], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert files(site) == before


def test_a_folder_that_is_no_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    done = subprocess.run(
        [BACKUP, tmp_path / "x", tmp_path / "backups"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "neither" in done.stderr
    assert not (tmp_path / "backups").exists()


@pytest.fixture
def writing(server: Path) -> Iterator[Path]:
    """A server that commits to its database and ends a round of a run every few milliseconds."""
    stop = threading.Event()

    def write_on() -> None:
        database = sqlite3.connect(server / "state" / "flower.db")
        number = 0
        while not stop.is_set():
            number += 1
            database.executemany("insert into node values (?)", [(number,)] * 10)
            database.commit()
            if number < 300:
                _end_round(server / "runs" / "one", number)
            stop.wait(0.005)
        database.close()

    (server / "runs" / "one" / "history.jsonl").unlink()
    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()


def _end_round(run: Path, number: int) -> None:
    write_atomically(run / "state.safetensors", str(number).encode())
    with (run / "history.jsonl").open("a") as history:
        history.write(f"{number}\n")


def test_a_database_and_a_run_are_whole_while_they_are_written(writing: Path, tmp_path: Path) -> None:
    backup = back_up(writing, tmp_path / "backups")
    with sqlite3.connect(backup / "state" / "flower.db") as database:
        counts = database.execute("select count(*) from node group by id").fetchall()
    assert set(counts) == {(10,)}
    state = int((backup / "runs" / "one" / "state.safetensors").read_text())
    rounds = [int(line) for line in (backup / "runs" / "one" / "history.jsonl").read_text().splitlines()]
    assert rounds in (list(range(1, state + 1)), list(range(1, state)))


def test_links_are_followed(server: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret" / "registry.json"
    elsewhere.parent.mkdir()
    (server / "registry.json").rename(elsewhere)
    (server / "registry.json").symlink_to(elsewhere)
    assert not (back_up(server, tmp_path / "backups") / "registry.json").is_symlink()

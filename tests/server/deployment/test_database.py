"""Flower's database under many threads at once: each gets its turn, and none fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmed_common.errors import ConfigError
from fedmed_server.deployment.home import State, load_server

PROGRAM = """
import sys, threading
from fedmed_server.deployment import flower_superlink
flower_superlink.make_database_patient()
from flwr.common.constant import NOOP_FLWR_AID
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from sqlalchemy import text

_, factory = get_objectstore_linkstate_factories(sys.argv[1], get_federation_manager())
state = factory.state()
inside, most, failed = 0, 0, []

def work(number):
    global inside, most
    try:
        node = state.create_node(NOOP_FLWR_AID, "", f"key {number}".encode(), 30, name=f"site-{number}")
        for _ in range(5):
            with state.session() as session:
                inside += 1
                most = max(most, inside)
                session.execute(text("UPDATE node SET location = 'x' WHERE node_id = 0"))
                state.acknowledge_node_heartbeat(node, 30)
                inside -= 1
    except Exception as error:
        failed.append(error)

threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with state.session() as session:
    timeout = session.execute(text("PRAGMA busy_timeout")).scalar()
print(failed, most, len(state.get_node_info()), timeout)
"""


def test_forty_threads_take_turns(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "flower.db")],
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "[] 1 40 60000"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("sqlite:///flower.db", "it is no address of a PostgreSQL database"),
        ("postgresql://fedmed@db.example.org/", "it is no address of a PostgreSQL database"),
        ("postgresql://fedmed:hush@db.example.org/fedmed", "this file holds no passwords"),
        ("postgresql://fedmed@db.example.org/fedmed?password=hush", "this file holds no passwords"),
    ],
)
def test_an_address_that_will_not_do_is_refused_without_being_repeated(
    address: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'name = "x"\n[state]\ndatabase = "{address}"\n')
    with pytest.raises(ConfigError, match=told) as caught:
        load_server(file)
    assert caught.value.field == "state.database"
    assert "hush" not in str(caught.value)


def test_an_address_of_postgresql_is_taken() -> None:
    address = "postgresql://fedmed@db.example.org:5433/fedmed?sslmode=verify-full"
    assert State(database=address).database == address

"""Numbers beside messages: a site gets and gives what an order names that is out to it, and not a byte more, however it asks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmed_common.errors import WireError
from fedmed_common.signed_requests import REFUSAL_HEADER, sign
from fedmed_common.wire_arrays import packed
from fedmed_common.wire_files import (
    DOWN_BYTES,
    HELD_HEADER,
    PREFIX,
    UP_BYTES,
    Part,
    filed_in,
    parse_path,
)
from fedmed_server.deployment import shelf
from fedmed_server.deployment.shelf import Shelf

_numbers = itertools.count(1)
SIZE = 2 * UP_BYTES + 4000
SENT = np.random.default_rng(0).random(SIZE // 4, np.float32)
REPLY = os.urandom(SIZE)
DIGEST = sha256(REPLY).hexdigest()


@dataclass(kw_only=True)
class Asked:
    """A hospital with an order that is out to it: one array goes down, one of the same size may come up."""

    hospital: Any
    shelf: Shelf
    root: Path
    run: int
    name: str
    down: Part

    @property
    def up(self) -> Part:
        return self.part(DIGEST)

    def part(self, digest: str, size: int = SIZE) -> Part:
        return Part(run=self.run, message=self.name, digest=digest, size=size)

    def ask(self, method: str, path: str, content: bytes | None = None, by: Any = None) -> httpx.Response:
        one = by or self.hospital
        headers = sign(one.key, method, path, b"", one.stamp())
        return one.client.request(method, path, content=content, headers=headers)

    def send(self, begin: int, end: int, part: Part | None = None, by: Any = None) -> httpx.Response:
        return self.ask("PUT", (part or self.up).path(begin, end), REPLY[begin:end], by)

    def send_all(self) -> None:
        for begin in range(0, SIZE, UP_BYTES):
            assert said(self.send(begin, min(begin + UP_BYTES, SIZE))) == (200, "")

    def held(self) -> int:
        return int(self.ask("HEAD", self.up.path(0, SIZE)).headers[HELD_HEADER])


def said(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.headers.get(REFUSAL_HEADER, "")


def connected(server: Any) -> Any:
    one = server.hospital(f"bulky-{next(_numbers)}")
    server.register(one)
    assert one.activate().status_code == 200
    return one


@pytest.fixture(autouse=True)
def _of_a_run() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def asked(server: Any) -> Iterator[Asked]:
    hospital, run = connected(server), next(_numbers)
    own = Shelf(server.home.bulk, run)
    record = own.keep(packed({"x": SENT}))
    content = RecordDict({"parameters": record})
    order = Message(content, hospital.node, "train", ttl=60.0)
    name = sha256(hospital.name.encode()).hexdigest()
    own.ask(name, order, (SIZE, 1))
    (filed,) = filed_in(content).values()
    down = Part(run=run, message=name, digest=filed.digest, size=filed.size)
    yield Asked(hospital=hospital, shelf=own, root=server.home.bulk, run=run, name=name, down=down)
    own.close()


def test_numbers_go_down_and_up_whole(asked: Asked) -> None:
    path = asked.down.path(0, min(DOWN_BYTES, SIZE))
    got = asked.ask("GET", path)
    assert (said(got), got.content) == ((200, ""), SENT.tobytes())
    assert asked.ask("GET", asked.down.path(5, 9)).content == SENT.tobytes()[5:9]
    asked.send_all()
    assert asked.held() == SIZE
    found = asked.shelf.came(asked.name, DIGEST, SIZE)
    assert found.numbers(np.dtype(np.uint8)).tobytes() == REPLY
    asked.shelf.forget(asked.name)
    assert found.is_whole()  # as long as it is held
    assert said(asked.ask("GET", path)) == (404, "not-asked")
    assert said(asked.send(0, 10)) == (404, "not-asked")


def test_a_break_costs_no_more_than_the_piece(asked: Asked) -> None:
    assert asked.held() == 0
    assert said(asked.send(0, UP_BYTES)) == (200, "")
    assert asked.held() == UP_BYTES
    again = asked.send(0, UP_BYTES)
    assert (again.status_code, again.headers[HELD_HEADER]) == (409, str(UP_BYTES))
    path = asked.up.path(UP_BYTES, SIZE - UP_BYTES)
    headers = sign(asked.hospital.key, "PUT", path, b"", asked.hospital.stamp())

    def breaks_off() -> Iterator[bytes]:
        yield REPLY[UP_BYTES : UP_BYTES + 1000]
        raise ConnectionError

    headers["content-length"] = str(SIZE - 2 * UP_BYTES)
    with pytest.raises(ConnectionError):
        asked.hospital.client.put(path, content=breaks_off(), headers=headers)
    for _ in range(200):
        if asked.held() != UP_BYTES:
            break
    begin = asked.held()
    assert begin == UP_BYTES + 1000
    assert said(asked.send(begin, begin + UP_BYTES)) == (200, "")
    assert said(asked.send(begin + UP_BYTES, SIZE)) == (200, "")
    assert asked.shelf.came(asked.name, DIGEST, SIZE).is_whole()


def test_another_site_neither_gets_nor_gives_for_it(server: Any, asked: Asked) -> None:
    other = connected(server)
    assert said(asked.ask("GET", asked.down.path(0, 10), by=other)) == (404, "not-asked")
    assert said(asked.ask("HEAD", asked.up.path(0, 10), by=other)) == (404, "not-asked")
    assert said(asked.send(0, 10, by=other)) == (404, "not-asked")
    server.revoke(asked.hospital.name)
    assert said(asked.ask("GET", asked.down.path(0, 10))) == (403, "revoked")


def test_what_no_order_names_is_not_served(asked: Asked) -> None:
    assert said(asked.ask("GET", asked.part("0" * 64).path(0, 10))) == (404, "not-asked")
    assert said(asked.ask("GET", asked.part(asked.down.digest, SIZE - 4).path(0, 10))) == (404, "not-asked")
    unknown = Part(run=asked.run, message="0" * 64, digest=DIGEST, size=SIZE)
    assert said(asked.send(0, 10, unknown)) == (404, "not-asked")
    nobodys = Part(run=asked.run + 10**9, message=asked.name, digest=DIGEST, size=SIZE)
    assert said(asked.send(0, 10, nobodys)) == (404, "not-asked")


def test_more_than_a_reply_may_hold_is_refused(asked: Asked) -> None:
    assert said(asked.send(0, 10, asked.part(DIGEST, SIZE + 1))) == (413, "too-large")
    assert said(asked.send(0, UP_BYTES + 1)) == (413, "too-large")
    assert said(asked.send(0, 1000)) == (200, "")
    assert said(asked.send(0, 10, asked.part("1" * 64, 100))) == (413, "too-large")  # a second array
    assert said(asked.send(0, 10, asked.part(DIGEST, SIZE - 4))) == (413, "too-large")  # of another size
    path = asked.up.path(1000, 1010)
    headers = sign(asked.hospital.key, "PUT", path, b"", asked.hospital.stamp())
    more = asked.hospital.client.put(path, content=REPLY[:500], headers=headers)
    assert said(more) == (413, "too-large")
    endless = asked.hospital.client.put(
        path,
        content=iter([REPLY]),
        headers=sign(asked.hospital.key, "PUT", path, b"", asked.hospital.stamp()),
    )
    assert said(endless) == (413, "too-large")
    assert asked.held() == 1000
    kept = shelf.order_folder(asked.root, asked.run, asked.name)
    assert sum(file.stat().st_size for file in kept.glob("*.part")) == 1000


@pytest.mark.parametrize(
    "path",
    [
        f"{PREFIX}1/{'0' * 64}/../../../tls/server.key/10/0-10",
        f"{PREFIX}1/{'0' * 64}/{'0' * 63}/10/0-10",
        f"{PREFIX}1/{'0' * 64}/{'0' * 64}/10/0-11",
        f"{PREFIX}1/{'0' * 64}/{'0' * 64}/10/9-8",
        f"{PREFIX}01/{'0' * 64}/{'0' * 64}/10/0-10",
        f"{PREFIX}1/{'A' * 64}/{'0' * 64}/10/0-10",
        f"{PREFIX}1/{'0' * 64}/{'0' * 64}/10/0-10/",
        f"{PREFIX}1/{'0' * 64}/{'0' * 64}/10/0-1\u0660",
    ],
)
def test_a_path_of_another_form_names_nothing(path: str) -> None:
    assert parse_path(path) is None


def test_methods_and_queries_of_others_are_not_served(asked: Asked) -> None:
    path = asked.down.path(0, 10)
    assert said(asked.ask("POST", path, b"")) == (404, "unknown-path")
    headers = sign(asked.hospital.key, "GET", path, b"", asked.hospital.stamp())
    assert said(asked.hospital.client.get(f"{path}?more=1", headers=headers)) == (404, "unknown-path")
    unsigned = {**headers, "fedmed-signature": ""}
    assert said(asked.hospital.client.get(path, headers=unsigned)) == (403, "signature")
    elsewhere = asked.down.path(0, 11)
    assert said(asked.hospital.client.get(elsewhere, headers=headers)) == (403, "signature")


def test_other_numbers_than_were_named_are_not_taken(asked: Asked) -> None:
    for begin in range(0, SIZE, UP_BYTES):
        last = asked.ask(
            "PUT", asked.up.path(begin, min(begin + UP_BYTES, SIZE)), bytes(min(UP_BYTES, SIZE - begin))
        )
    assert said(last) == (422, "digest")
    assert asked.held() == 0
    for digest in (DIGEST, "2" * 64):
        with pytest.raises(WireError, match="not sent"):
            asked.shelf.came(asked.name, digest, SIZE)
    asked.send_all()
    assert asked.shelf.came(asked.name, DIGEST, SIZE).is_whole()


def test_the_shelf_keeps_what_orders_name_and_little_else(tmp_path: Path) -> None:
    own = Shelf(tmp_path, 1)
    models = tmp_path / "1" / "models"

    def kept(value: int) -> ArrayRecord:
        return own.keep(packed({"x": np.full(2**18, value, np.float32)}))

    first = kept(0)
    assert kept(0) == first
    assert len(list(models.iterdir())) == 1
    own.ask("a", Message(RecordDict({"p": first}), 7, "train", ttl=60.0), (4, 1))
    for value in range(1, 9):
        last = kept(value)
    assert len(list(models.iterdir())) == 6  # what the order names, the newest four, and the one before them
    own.ask("b", Message(RecordDict({"p": last}), 7, "train", ttl=60.0), (4, 1))
    assert shelf.asked(tmp_path, 1, "a") is None
    kept(9)
    assert len(list(models.iterdir())) == 5
    own.ask("c", Message(RecordDict({"p": first}), 8, "train", ttl=60.0), (4, 1))
    (name,) = filed_in(RecordDict({"p": first}))
    assert (models / name).read_bytes() == bytes(2**20)
    own.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["turn"]


def test_what_a_killed_server_left_is_swept_away_and_no_other(tmp_path: Path) -> None:
    own = Shelf(tmp_path, 1)
    (tmp_path / "2" / "models").mkdir(parents=True)
    (tmp_path / "2" / "models" / "x").write_bytes(b"left")
    shelf.sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "1.lock", "turn"]
    own.close()

"""The server's receipts of the sites' privacy ledgers: the newest of each stays, and another ledger is found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedmed_common.errors import CheckpointError, RejectedReply
from fedmed_common.receipts import Receipt
from fedmed_server.receipts import Receipts


def _receipt(sequence: int, byte: int = 0) -> Receipt:
    return Receipt(sequence=sequence, mac=f"{byte:02x}" * 32)


@pytest.fixture(params=["run", "server"])
def receipts(request: pytest.FixtureRequest, tmp_path: Path) -> Receipts:
    return Receipts(tmp_path / "receipts" if request.param == "server" else None)


def test_the_newest_of_each_site_is_kept(receipts: Receipts) -> None:
    assert receipts.of("north") is None
    for sequence in (1, 4, 2):
        receipts.keep("north", _receipt(sequence))
    receipts.keep("south", _receipt(2, 9))
    assert receipts.of("north") == _receipt(4)
    assert receipts.of("south") == _receipt(2, 9)
    assert receipts.of("west") is None


def test_another_ledger_with_as_many_rows_is_refused(receipts: Receipts) -> None:
    receipts.keep("north", _receipt(3))
    receipts.keep("north", _receipt(3))
    with pytest.raises(RejectedReply, match="another ledger"):
        receipts.keep("north", _receipt(3, 1))
    assert receipts.of("north") == _receipt(3)


def test_they_outlive_the_process_and_are_shared_between_runs(tmp_path: Path) -> None:
    Receipts(tmp_path).keep("north", _receipt(7))
    assert Receipts(tmp_path).of("north") == _receipt(7)


def test_of_many_at_once_the_newest_stays(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Receipts(tmp_path).keep("north", _receipt(number)), range(1, 65)))
    assert Receipts(tmp_path).of("north") == _receipt(64)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sequence": 1'])
def test_a_damaged_file_is_named_not_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "north.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"north\.json: is damaged"):
        Receipts(tmp_path).of("north")
    with pytest.raises(CheckpointError):
        Receipts(tmp_path).keep("north", _receipt(1))

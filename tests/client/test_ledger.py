"""The privacy ledger: what was reserved stays, nothing is spent twice over, and a change is found."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmed_client.ledger import KEY, LEDGER, Budget, Ledger, Reservation
from fedmed_common.errors import PolicyRefusal
from fedmed_common.privacy import Spent, epsilon
from fedmed_common.receipts import Receipt

ONE = Reservation(run="r", round=1, attempt=0, noise_multiplier=1.0, sampling_rate=0.05, steps=50)


def _change(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / LEDGER) as database:
        database.execute(statement)
    database.close()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for number in range(1, 5):
        Ledger(tmp_path).reserve(replace(ONE, round=number))
    return tmp_path


def test_what_was_reserved_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = Ledger(tmp_path).reserve(ONE)
    other = Ledger(tmp_path).reserve(replace(ONE, run="other"))
    again = Ledger(tmp_path).reserve(replace(ONE, attempt=1))
    assert [len(reserved.rows) for reserved in (first, other, again)] == [1, 1, 2]
    assert [reserved.receipt.sequence for reserved in (first, other, again)] == [1, 2, 3]
    rows = Ledger(tmp_path).read()
    assert [(row.run, row.attempt) for row in rows] == [("r", 0), ("other", 0), ("r", 1)]
    assert all(row.time for row in rows)
    assert replace(rows[0], time="") == ONE
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (LEDGER, KEY)] == [0o600, 0o600]
    assert Ledger(tmp_path / "nowhere").read() == ()


def test_the_budget_is_over_all_runs_and_kept_to_the_last_step(tmp_path: Path) -> None:
    budget = Budget(epsilon=epsilon([replace(ONE, steps=150).spent], 1e-5), delta=1e-5)
    for run in "abc":
        Ledger(tmp_path).reserve(replace(ONE, run=run), budget)
    with pytest.raises(PolicyRefusal) as refused:
        Ledger(tmp_path).reserve(replace(ONE, run="d", steps=1), budget)
    assert refused.value.rule == "privacy_budget"
    assert "maximum_epsilon" in str(refused.value)
    assert len(Ledger(tmp_path).read()) == 3


def test_a_run_spends_no_more_than_it_promised_whoever_asks_again(tmp_path: Path) -> None:
    """Other runs do not count in it; the site's own budget, beside it, is over all."""
    cost = epsilon([replace(ONE, steps=100).spent], 1e-5)
    promised = Budget(epsilon=cost, delta=1e-5, source="privacy.epsilon", run="r")
    ledger = Ledger(tmp_path)
    ledger.reserve(replace(ONE, run="other", steps=1000))
    for attempt in range(2):
        ledger.reserve(replace(ONE, attempt=attempt), promised)
    for again in (replace(ONE, attempt=1), replace(ONE, round=2, steps=1)):
        with pytest.raises(PolicyRefusal, match=r"the run r would stand at.*privacy\.epsilon is") as refused:
            ledger.reserve(again, promised)
        assert refused.value.rule == "privacy_budget"
    with pytest.raises(PolicyRefusal, match="maximum_epsilon"):
        ledger.reserve(
            replace(ONE, run="new"), replace(promised, run="new"), Budget(epsilon=cost, delta=1e-5)
        )
    assert [row.run for row in ledger.read()] == ["other", "r", "r"]


def test_of_eight_at_once_with_budget_for_one_exactly_one_wins(tmp_path: Path) -> None:
    cost = epsilon([ONE.spent], 1e-5)
    budget = Budget(epsilon=cost, delta=1e-5)
    start, outcomes = threading.Barrier(8), []

    def reserve(number: int) -> None:
        start.wait()
        try:
            Ledger(tmp_path).reserve(replace(ONE, run=f"run {number}"), budget)
            outcomes.append("won")
        except PolicyRefusal as refusal:
            outcomes.append(refusal.rule)

    threads = [threading.Thread(target=reserve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["privacy_budget"] * 7 + ["won"]
    assert len(Ledger(tmp_path).read()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE reservation SET body = replace(body, '\"steps\": 50', '\"steps\": 5') WHERE sequence = 2",
        "UPDATE reservation SET mac = (SELECT mac FROM reservation WHERE sequence = 1) WHERE sequence = 2",
        "UPDATE reservation SET body = (SELECT body FROM reservation WHERE sequence = 1) WHERE sequence = 2",
        "DELETE FROM reservation WHERE sequence = 2",
        "DELETE FROM reservation WHERE sequence = 1",
        "INSERT INTO reservation SELECT 5, body, mac FROM reservation WHERE sequence = 4",
        "UPDATE reservation SET mac = x'00' WHERE sequence = 4",
    ],
)
def test_a_changed_row_is_found_and_nothing_more_is_spent(written: Path, statement: str) -> None:
    _change(written, statement)
    for use in (Ledger(written).read, lambda: Ledger(written).reserve(ONE)):
        with pytest.raises(PolicyRefusal) as refused:
            use()
        assert refused.value.rule == "privacy_ledger"


def _no_key(folder: Path) -> None:
    (folder / KEY).unlink()


def _other_key(folder: Path) -> None:
    (folder / KEY).write_bytes(bytes(32))


def _no_database(folder: Path) -> None:
    (folder / LEDGER).write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 8)


@pytest.mark.parametrize("spoil", [_no_key, _other_key, _no_database])
def test_without_its_key_or_its_form_it_is_refused(written: Path, spoil: Callable[[Path], None]) -> None:
    spoil(written)
    with pytest.raises(PolicyRefusal) as refused:
        Ledger(written).reserve(ONE)
    assert refused.value.rule == "privacy_ledger"


def test_where_the_accountant_knows_no_number_nothing_is_spent(tmp_path: Path) -> None:
    def lost(_spent: Iterable[Spent], _delta: float) -> float:
        return float("nan")

    with pytest.raises(PolicyRefusal, match="privacy_budget"):
        Ledger(tmp_path, lost).reserve(ONE, Budget(epsilon=1e9, delta=1e-5))
    assert Ledger(tmp_path).read() == ()


def test_a_ledger_that_cannot_be_written_is_an_error_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(OSError, match=LEDGER):
        Ledger(tmp_path).reserve(ONE)


def _receipt(folder: Path) -> Receipt:
    """Of a further row, as the coordinator has it then."""
    return Ledger(folder).reserve(replace(ONE, round=9)).receipt


def _lost_its_end(folder: Path) -> None:
    _change(folder, "DELETE FROM reservation WHERE sequence >= 4")


def _lost_it_and_went_on(folder: Path) -> None:
    _change(folder, "DELETE FROM reservation WHERE sequence >= 5")
    Ledger(folder).reserve(replace(ONE, run="again"))


def _is_gone(folder: Path) -> None:
    for name in (LEDGER, KEY):
        (folder / name).unlink()


def _began_anew(folder: Path) -> None:
    _is_gone(folder)
    for _ in range(6):
        Ledger(folder).reserve(ONE)


@pytest.mark.parametrize("spoil", [_lost_its_end, _lost_it_and_went_on, _is_gone, _began_anew])
def test_what_the_chain_cannot_show_the_coordinators_receipt_does(
    written: Path, spoil: Callable[[Path], None]
) -> None:
    receipt = _receipt(written)
    assert len(Ledger(written).read(receipt)) == 5
    spoil(written)
    before = Ledger(written).read()
    for use in (
        lambda: Ledger(written).read(receipt),
        lambda: Ledger(written).reserve(ONE, receipt=receipt),
    ):
        with pytest.raises(PolicyRefusal, match="the coordinator has heard of") as refused:
            use()
        assert refused.value.rule == "privacy_ledger"
    assert Ledger(written).read() == before


def test_a_backup_that_was_put_back_is_found(written: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(written, backup, ignore=shutil.ignore_patterns("backup"))
    receipt = _receipt(written)
    with pytest.raises(PolicyRefusal, match="an old copy was put back"):
        Ledger(backup).reserve(ONE, receipt=receipt)


def test_of_a_site_and_its_clone_one_goes_on(written: Path, tmp_path: Path) -> None:
    """Both spend; the coordinator has heard of one, and shows its receipt to whoever asks next."""
    clone = tmp_path / "clone"
    shutil.copytree(written, clone, ignore=shutil.ignore_patterns("clone"))
    receipt = _receipt(written)
    _receipt(clone)
    with pytest.raises(PolicyRefusal, match="a copy of this site"):
        Ledger(clone).reserve(ONE, receipt=receipt)
    assert Ledger(written).reserve(ONE, receipt=receipt).receipt.sequence == 6


def test_a_ledger_that_is_ahead_of_the_receipt_goes_on(written: Path) -> None:
    """As after a crash between the reservation and the reply."""
    receipt = _receipt(written)
    Ledger(written).reserve(ONE)
    assert Ledger(written).reserve(ONE, receipt=receipt).receipt.sequence == 7

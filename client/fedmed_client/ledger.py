"""``ledger.db``: what this site has spent under differential privacy, one row for each piece of work, written before it begins.

The order is: reserve here, durably; train; add the noise; seal the reply; send. Asked again, a site sends the sealed one.
So nothing that was released is missing here; work that a crash ended counts as spent, although nothing of it left. The ledger is
over all runs, for the patients are the same.

Each row holds an HMAC over itself and the row before it, under a key in ``ledger.key``: a row that was changed, removed or put in
is found. That the newest rows were removed, or an old copy of the file put back, or that a copy of the site writes another one,
is seen by the :class:`Receipt` that the coordinator was given last and shows with its orders. Who can read the key can write any
ledger, and who also has the coordinator's ear, any receipt.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from fedmed_client.data.splits import Split
from fedmed_common import privacy
from fedmed_common.errors import PolicyRefusal
from fedmed_common.files import write_atomically
from fedmed_common.privacy import Spent
from fedmed_common.receipts import Receipt

LEDGER, KEY = "ledger.db", "ledger.key"
_FIRST = "first"
_PATIENCE_SECONDS = 300.0
Accounting: TypeAlias = Callable[[Iterable[Spent], float], float]
"""The epsilon of what was spent, at a delta."""
_TABLE = "CREATE TABLE IF NOT EXISTS reservation(sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, mac TEXT NOT NULL)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one order's work spends of the patients of a ``split``. ``experiment``: its name. ``time``: ISO 8601 in UTC; empty
    until then. ``sharing``: so many sites at least add a part of the noise each, to a secure sum for which the spend holds."""

    run: str
    round: int
    attempt: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    experiment: str = ""
    time: str = ""
    split: Split = "train"
    sharing: int = 1

    @property
    def spent(self) -> Spent:
        """What an accountant needs to know of it."""
        return Spent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=self.steps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that a ledger's rows together may cost, or those of a ``run``, or of a ``split`` of its patients: an epsilon at a
    delta. ``source``: who says so."""

    epsilon: float
    delta: float
    source: str = "maximum_epsilon"
    run: str | None = None
    split: Split | None = None

    def cost(self, rows: Iterable[Reservation], accountant: Accounting) -> float:
        """What the rows that it is about cost."""
        own = [row for row in rows if self.run in (None, row.run) and self.split in (None, row.split)]
        return accountant([row.spent for row in own], self.delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """What a reservation left: all rows of its run, itself the last, and the ledger's receipt."""

    rows: tuple[Reservation, ...]
    receipt: Receipt


class Ledger:
    """The privacy ledger of a site's folder. Any of the site's processes may write."""

    def __init__(self, folder: Path, accountant: Accounting = privacy.epsilon) -> None:
        self._file, self._key, self._accountant = folder / LEDGER, folder / KEY, accountant

    def reserve(self, reservation: Reservation, *budgets: Budget, receipt: Receipt | None = None) -> Reserved:
        """Write the reservation down; it is on disk when this returns.

        Of several at once with budget for one, one succeeds. ``receipt``: the newest that the coordinator has.

        Raises:
            PolicyRefusal: ``privacy_budget``, where the rows with this one would cost more than a budget; ``privacy_ledger``,
                where the ledger is not as it was written, or not what the receipt is of.
            OSError: it cannot be written.
        """
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
        with self._transaction() as database:
            database.execute(_TABLE)
            rows, macs = self._verified(database, receipt)
            self._check(budgets, [*rows, reservation])
            written = asdict(reservation) | {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
            body = json.dumps(written, sort_keys=True)
            sequence = len(rows) + 1
            last = macs[-1] if macs else _FIRST
            mac = _mac(self._secret(new=not rows), last, sequence, body)
            database.execute("INSERT INTO reservation VALUES(?, ?, ?)", (sequence, body, mac))
        own = tuple(row for row in (*rows, Reservation(**written)) if row.run == reservation.run)
        return Reserved(rows=own, receipt=Receipt(sequence=sequence, mac=mac))

    def read(self, receipt: Receipt | None = None) -> tuple[Reservation, ...]:
        """All rows, once they are known to be as they were written.

        Raises:
            PolicyRefusal: ``privacy_ledger``, where they are not, or not what the receipt is of.
        """
        if not self._file.exists():
            self._compare((), receipt)
            return ()
        with self._transaction() as database:
            database.execute(_TABLE)
            return tuple(self._verified(database, receipt)[0])

    def _check(self, budgets: Iterable[Budget], rows: Sequence[Reservation]) -> None:
        for budget in budgets:
            cost = budget.cost(rows, self._accountant)
            if not cost <= budget.epsilon:
                what = "the ledger" if budget.run is None else f"the run {budget.run}"
                raise PolicyRefusal(
                    "privacy_budget",
                    f"with it {what} would stand at an epsilon of {cost:.3f} at delta {budget.delta:g}; "
                    f"{budget.source} is {budget.epsilon:g}",
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Alone with the ledger; what was written is durable at the end, also the folder's entries."""
        try:
            with closing(
                sqlite3.connect(self._file, timeout=_PATIENCE_SECONDS, isolation_level=None)
            ) as database:
                database.execute("PRAGMA journal_mode=DELETE")
                database.execute("PRAGMA synchronous=EXTRA")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, f"{self._file}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise PolicyRefusal("privacy_ledger", f"{self._file} is damaged: {error}") from error

    def _verified(
        self, database: sqlite3.Connection, receipt: Receipt | None
    ) -> tuple[list[Reservation], list[str]]:
        """All rows, and their codes."""
        found = database.execute("SELECT sequence, body, mac FROM reservation ORDER BY sequence").fetchall()
        rows, macs = list[Reservation](), list[str]()
        last = _FIRST
        for expected, (sequence, body, mac) in enumerate(found, start=1):
            whole = sequence == expected and isinstance(body, str) and isinstance(mac, str)
            if not whole or not hmac.compare_digest(mac, _mac(self._secret(), last, sequence, body)):
                raise PolicyRefusal(
                    "privacy_ledger",
                    f"{self._file} was changed: row {expected} is not as it was written, or one was removed or put in",
                )
            rows.append(Reservation(**json.loads(body)))
            macs.append(mac)
            last = mac
        self._compare(macs, receipt)
        return rows, macs

    def _compare(self, macs: Sequence[str], receipt: Receipt | None) -> None:
        """Whether these rows are those that the coordinator has heard of, and perhaps more."""
        if receipt is None:
            return
        if len(macs) < receipt.sequence:
            raise PolicyRefusal(
                "privacy_ledger",
                f"{self._file} holds {len(macs)} rows, and the coordinator has heard of {receipt.sequence}: its end was removed, "
                "or an old copy was put back",
            )
        if not hmac.compare_digest(macs[receipt.sequence - 1], receipt.mac):
            raise PolicyRefusal(
                "privacy_ledger",
                f"row {receipt.sequence} of {self._file} is not the one that the coordinator has heard of: an old copy was put "
                "back and went on, or a copy of this site spends beside it",
            )

    def _secret(self, *, new: bool = False) -> bytes:
        """The key; with ``new``, one is made where there is none, which is right before the first row only."""
        if not self._key.exists():
            if not new:
                raise PolicyRefusal(
                    "privacy_ledger", f"{self._key}, under which the rows were written, is gone"
                )
            write_atomically(self._key, secrets.token_bytes(32), mode=0o600)
        return self._key.read_bytes()


def _mac(key: bytes, last: str, sequence: int, body: str) -> str:
    return hmac.new(key, f"{last}|{sequence}|{body}".encode(), hashlib.sha256).hexdigest()

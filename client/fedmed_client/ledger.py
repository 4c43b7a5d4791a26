"""``ledger.db``: what this site's private training has spent, one row for each piece of work, written before it begins.

The order is: reserve here, durably; train; add the noise; seal the reply; send. Asked again, a site sends the sealed one.
So nothing that was released is missing here; work that a crash ended counts as spent, although nothing of it left. The ledger is
over all runs, for the patients are the same.

Each row holds an HMAC over itself and the row before it, under a key in ``ledger.key``: a row that was changed, removed or put in
is found. That the newest rows were removed, or an old copy of the file put back, cannot be seen here. Who can read the key can
write any ledger.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedmed_common import privacy
from fedmed_common.errors import PolicyRefusal
from fedmed_common.files import write_atomically
from fedmed_common.privacy import Spent

LEDGER, KEY = "ledger.db", "ledger.key"
_FIRST = "first"
_PATIENCE_SECONDS = 300.0
_TABLE = "CREATE TABLE IF NOT EXISTS reservation(sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, mac TEXT NOT NULL)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one order's training spends. ``time``: ISO 8601 in UTC; empty until it is written."""

    run: str
    round: int
    attempt: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    time: str = ""

    @property
    def spent(self) -> Spent:
        """What an accountant needs to know of it."""
        return Spent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=self.steps
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that a ledger's rows together may cost: an epsilon at a delta; None: no limit."""

    epsilon: float | None
    delta: float


class Ledger:
    """The privacy ledger of a site's folder. Any of the site's processes may write.

    ``cost(spent, delta)`` is the accountant.
    """

    def __init__(
        self, folder: Path, cost: Callable[[Iterable[Spent], float], float] = privacy.epsilon
    ) -> None:
        self._file, self._key, self._cost = folder / LEDGER, folder / KEY, cost

    def reserve(self, reservation: Reservation, budget: Budget) -> tuple[Reservation, ...]:
        """Write the reservation down; it is on disk when this returns. All rows of its run, itself the last.

        Of several at once with budget for one, one succeeds.

        Raises:
            PolicyRefusal: ``privacy_budget``, where all rows with this one would cost more than the budget; ``privacy_ledger``,
                where the ledger is not as it was written.
            OSError: it cannot be written.
        """
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
        with self._transaction() as database:
            database.execute(_TABLE)
            rows, last = self._verified(database)
            self._check(budget, [*rows, reservation])
            written = asdict(reservation) | {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
            body = json.dumps(written, sort_keys=True)
            sequence = len(rows) + 1
            row = sequence, body, _mac(self._secret(new=not rows), last, sequence, body)
            database.execute("INSERT INTO reservation VALUES(?, ?, ?)", row)
        return tuple(row for row in (*rows, Reservation(**written)) if row.run == reservation.run)

    def read(self) -> tuple[Reservation, ...]:
        """All rows, once they are known to be as they were written.

        Raises:
            PolicyRefusal: ``privacy_ledger``, where they are not.
        """
        if not self._file.exists():
            return ()
        with self._transaction() as database:
            database.execute(_TABLE)
            return tuple(self._verified(database)[0])

    def _check(self, budget: Budget, rows: Iterable[Reservation]) -> None:
        if budget.epsilon is None:
            return
        cost = self._cost([row.spent for row in rows], budget.delta)
        if not cost <= budget.epsilon:
            raise PolicyRefusal(
                "privacy_budget",
                f"with it the ledger would stand at an epsilon of {cost:.3f} at delta {budget.delta:g}; "
                f"maximum_epsilon is {budget.epsilon:g}",
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
            raise OSError(f"{self._file}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise PolicyRefusal("privacy_ledger", f"{self._file} is damaged: {error}") from error

    def _verified(self, database: sqlite3.Connection) -> tuple[list[Reservation], str]:
        """All rows, and the MAC of the last."""
        found = database.execute("SELECT sequence, body, mac FROM reservation ORDER BY sequence").fetchall()
        rows: list[Reservation] = []
        last = _FIRST
        for expected, (sequence, body, mac) in enumerate(found, start=1):
            whole = sequence == expected and isinstance(body, str) and isinstance(mac, str)
            if not whole or not hmac.compare_digest(mac, _mac(self._secret(), last, sequence, body)):
                raise PolicyRefusal(
                    "privacy_ledger",
                    f"{self._file} was changed: row {expected} is not as it was written, or one was removed or put in",
                )
            rows.append(Reservation(**json.loads(body)))
            last = mac
        return rows, last

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

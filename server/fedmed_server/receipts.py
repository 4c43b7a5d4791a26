"""Receipts of the sites' privacy ledgers: the newest of each site, over all runs, so that a ledger that lost rows is found.

A file for each site, which is on disk before its update is used. Whoever runs this server cannot make a receipt, only forget one.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from fedmed_common.errors import CheckpointError, RejectedReply
from fedmed_common.files import write_atomically
from fedmed_common.receipts import Receipt


class Receipts:
    """Those in ``folder``, which several runs share; without one, of this run alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._known = folder, dict[str, Receipt]()

    def of(self, site: str) -> Receipt | None:
        """The site's newest.

        Raises:
            CheckpointError: its file is damaged.
        """
        if self._folder is None:
            return self._known.get(site)
        path = self._path(self._folder, site)
        try:
            return Receipt(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{path}: is damaged\n  fix: put it back from a backup; without it a ledger that lost rows is not found"
            ) from None

    def keep(self, site: str, receipt: Receipt) -> None:
        """Keep it where it is newer; it is on disk when this returns.

        Raises:
            RejectedReply: it is of another ledger than the newest.
        """
        with self._alone():
            known = self.of(site)
            if known is not None and known.sequence == receipt.sequence and known.mac != receipt.mac:
                raise RejectedReply("another ledger than the site's")
            if known is not None and known.sequence >= receipt.sequence:
                return
            if self._folder is None:
                self._known[site] = receipt
            else:
                write_atomically(self._path(self._folder, site), json.dumps(asdict(receipt)).encode())

    @staticmethod
    def _path(folder: Path, site: str) -> Path:
        return folder / f"{site}.json"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with nullcontext() if self._folder is None else _lock(self._folder):
            yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""``status.json``: how the link stands, for the people at this site and for the link that is started after this one."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fedmed_client.site.home import SiteFolder
from fedmed_common.errors import FedmedError
from fedmed_common.files import write_atomically

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the connection is. ``problem`` and ``fix`` are for people, ``code`` names the kind of problem."""

    state: Literal["connecting", "connected", "waiting", "refused", "stopped"]
    code: str = ""
    problem: str = ""
    fix: str = ""

    @classmethod
    def of(cls, error: FedmedError, state: Literal["waiting", "refused"]) -> Standing:
        """An error's."""
        problem, _, fix = str(error).partition("\n  fix: ")
        return cls(state=state, code=error.code, problem=problem, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The order that is at work."""

    run: str
    kind: str
    round: int
    step: int = 0


class Status:
    """Writes the file whenever something changes; may be told from any thread."""

    def __init__(self, home: SiteFolder, address: str) -> None:
        self._file, self._address, self._turn = home.status_file, address, threading.Lock()
        self._connected_at = _connected_before(home, address)
        self._standing, self._since = Standing(state="connecting"), _now()
        self._work: Work | None = None

    @property
    def was_connected(self) -> bool:
        """Whether this site has been connected to this address, now or before."""
        return bool(self._connected_at)

    def say(self, standing: Standing) -> None:
        """The connection is so now; what changed is logged in one line."""
        with self._turn:
            if standing == self._standing:
                return
            self._standing, self._since = standing, _now()
            if standing.state == "connected":
                self._connected_at = self._since
            self._write()
        if standing.problem:
            _log.warning("%s: %s", standing.state, standing.problem)
        else:
            _log.info("%s", standing.state)

    def work(self, work: Work | None) -> None:
        """This order is at work, or none."""
        with self._turn:
            self._work = work
            self._write()

    def _write(self) -> None:
        document: dict[str, Any] = {
            "address": self._address,
            "standing": asdict(self._standing),
            "since": self._since,
            "connected_at": self._connected_at,
            "order": asdict(self._work) if self._work else None,
        }
        try:
            write_atomically(self._file, (json.dumps(document, indent=1) + "\n").encode())
        except OSError as error:  # a full disk must not cut the connection over which it is told
            _log.warning("the status cannot be written: %s", error.strerror)


def _connected_before(home: SiteFolder, address: str) -> str:
    try:
        document = json.loads(home.status_file.read_bytes())
        return str(document["connected_at"]) if document["address"] == address else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What a run is doing at this moment, in one small file that ``fedmed status`` reads.

It is a hint for people and nothing more: written often, never synced, and wrong only until it is written again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedmed_server.deployment.site_states import moment
from fedmed_server.history import RoundDone

FILE = "now.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """One site's part in what is going on: asked, awaited, or how it answered, and since when."""

    phase: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """``round``: the one that is under way; one more than the last where the final models are tested."""

    time: str
    round: int
    sites: dict[str, Doing] = field(default_factory=dict)


class Live:
    """Takes what the run tells, and writes it down when :meth:`flush` is called."""

    def __init__(self, folder: Path, round_number: int) -> None:
        self._folder, self._lock, self._dirty = folder, threading.Lock(), True
        self._now = Now(time=moment(time.time()), round=round_number)

    def watch(self, site: str, phase: str) -> None:
        """A site was asked, or has answered."""
        with self._lock:
            before = self._now.sites.get(site)
            since = (
                before.since
                if before and (before.phase, phase) == ("asked", "awaited")
                else moment(time.time())
            )
            self._now.sites[site] = Doing(phase=phase, since=since)
            self._dirty = True

    def on_round(self, record: RoundDone) -> None:
        """A round is done."""
        with self._lock:
            self._now = replace(self._now, round=record.round + 1)
            self._dirty = True

    def flush(self) -> None:
        """Write the file, where there is something new."""
        with self._lock:
            if not self._dirty:
                return
            text = json.dumps(asdict(replace(self._now, time=moment(time.time()))))
            self._dirty = False
        temporary = self._folder / f".{FILE}.tmp"
        temporary.write_text(text)
        os.replace(temporary, self._folder / FILE)  # noqa: PTH105


def read(folder: Path) -> Now | None:
    """What was written last; None where there is nothing that can be read."""
    try:
        fields = json.loads((folder / FILE).read_text())
        sites = {name: Doing(**doing) for name, doing in fields["sites"].items()}
        return Now(time=fields["time"], round=fields["round"], sites=sites)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None

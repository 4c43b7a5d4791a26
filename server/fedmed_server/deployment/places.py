"""How many requests are at work at the same time. Whoever comes when all places are taken is told at once to come later: what
waits inside longer than its sender does would be done for nobody, and asked once more."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 48
"""Half a second's work. More at a time are not done sooner, and what the run itself asks waits behind them."""

BEGINNINGS = frozenset({"/v1/fleet/activate-node", "/v1/fleet/pull-messages"})
"""What makes more work. It gets half of the places, so that heartbeats and replies find one."""

_log = logging.getLogger(__name__)


class Busy(Exception):
    """The request was not taken up. It may be sent again."""


class Places:
    """The places of all sites. Used in one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._taken, self._is_told = most, 0, False

    @contextmanager
    def take(self, path: str) -> Iterator[None]:
        """A place for a request of the path, for as long as the context lasts.

        Raises:
            Busy: there is none.
        """
        if self._taken >= (self._most // 2 if path in BEGINNINGS else self._most):
            if not self._is_told:
                _log.warning("%d requests are at work: sites are told to ask later", self._taken)
            self._is_told = True
            raise Busy("too many requests are at work")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._is_told &= self._taken > self._most // 4

"""How many requests are at work at the same time, and how often a site is to ask.

Whoever comes when all places are taken is told at once to come later: what waits inside longer than its sender does would be
done for nobody, and asked once more. To say so is work too: so that it is the exception, many sites ask less often than few.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 48
"""Half a second's work. More at a time are not done sooner, and what the run itself asks waits behind them."""

BEGINNINGS = frozenset({"/v1/fleet/activate-node", "/v1/fleet/pull-messages"})
"""What makes more work. It gets half of the places, so that heartbeats and replies find one."""

QUESTIONS_A_SECOND = 20.0
"""Of all sites that wait for orders. It leaves the server most of its time, for what the orders themselves take."""

_log = logging.getLogger(__name__)


class Busy(Exception):
    """The request was not taken up. It may be sent again."""


def interval_seconds(sites: int) -> float:
    """What a site leaves between two questions, where so many are connected."""
    return sites / QUESTIONS_A_SECOND


class Places:
    """The places of all sites. Used in one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._taken, self._is_told = most, 0, False

    def check(self, path: str) -> None:
        """Whether there is a place for a request of the path.

        Raises:
            Busy: there is none.
        """
        if self._taken < (self._most // 2 if path in BEGINNINGS else self._most):
            return
        if not self._is_told:
            _log.warning("%d requests are at work: sites are told to ask later", self._taken)
        self._is_told = True
        raise Busy("too many requests are at work")

    @contextmanager
    def take(self, path: str) -> Iterator[None]:
        """A place for a request of the path, for as long as the context lasts.

        Raises:
            Busy: there is none.
        """
        self.check(path)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._is_told &= self._taken > self._most // 4

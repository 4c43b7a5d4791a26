"""When a site asks again: as the server says, and later where it is slow, so that any number of sites leaves it its time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TIMES, PROMPT_SECONDS, LONGEST_SLOW_SECONDS = 10.0, 0.2, 10.0
PUT_OFF_SECONDS = 30.0
RETURN = 0.9
LONGEST_INTERVAL_SECONDS = 60.0
LEASE_SECONDS, BEAT_SHARES, LEASE_INTERVALS = 15.0, (2 / 3, 14 / 15), 3.0
AGAIN_SHARE = 0.25
"""Of the time until the next beat, when one has failed: two leases without any, and the site counts as gone."""


class Pace:
    """The pauses between questions asked again and again: ten times as long as an answer took beyond a prompt one's time.

    However many sites there are, what else is asked at the server does not wait behind hundreds of questions. What was slow is
    trusted again by and by, and no two sites wait alike: else all would come back at the same moment.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._took_seconds, self._put_off_seconds = chance, 0.0, 0.0
        self._interval_seconds = 0.0

    def timed(self, call: Callable[[], T]) -> T:
        """What the call gives. How long an answer took counts; how long it took to learn that there is none does not."""
        began = time.monotonic()
        given = call()
        took = min(time.monotonic() - began, PROMPT_SECONDS + LONGEST_SLOW_SECONDS / TIMES)
        self._took_seconds = max(took, self._took_seconds / 2)
        self._put_off_seconds *= RETURN
        return given

    def put_off(self) -> None:
        """The server answered that it has too much to do: the next pauses are the longest, then slowly shorter.

        To say so is work for the server too: many that come back soon would keep it from all else.
        """
        self._put_off_seconds = PUT_OFF_SECONDS

    def told(self, interval_seconds: float) -> None:
        """The server said what to leave between two questions; more than a minute is not left, whatever it said."""
        self._interval_seconds = min(max(interval_seconds, 0.0), LONGEST_INTERVAL_SECONDS)

    def lease_seconds(self) -> float:
        """How long the link counts as there after a beat; longer where there are many sites."""
        return max(LEASE_SECONDS, LEASE_INTERVALS * self._interval_seconds)

    def until_beat(self, lease_seconds: float) -> float:
        """The seconds until the beat that follows one with the lease."""
        return lease_seconds * self._chance.uniform(*BEAT_SHARES)

    def pause(self, usual_seconds: float) -> float:
        """The seconds until the next question: the usual ones, while the server is fast."""
        slow = TIMES * max(self._took_seconds - PROMPT_SECONDS, 0.0)
        slow = max(slow, self._put_off_seconds, self._interval_seconds)
        return max(usual_seconds, self._chance.uniform(slow / 2, slow))


def waits(first_seconds: float, longest_seconds: float, chance: random.Random) -> Iterator[float]:
    """The seconds between attempts that fail: about twice as long each time.

    Sites that lost the server at the same moment do not come back at the same moment.
    """
    most = first_seconds
    while True:
        yield chance.uniform(most / 2, most)
        most = min(2 * most, longest_seconds)

"""The beat of long work: once a piece, heard by one watcher, who can stop it there."""

from __future__ import annotations

import pytest

from fedmed_client import pulse
from fedmed_client.data.workers import in_order
from fedmed_common.errors import Interrupted


def _double(number: int) -> int:
    return 2 * number


def test_work_on_many_items_beats_once_an_item() -> None:
    beats: list[int] = []
    with pulse.watched(lambda: beats.append(1)):
        assert in_order(_double, [1, 2, 3], _double, title="", progress=False) == [2, 4, 6]
    pulse.beat()
    assert len(beats) == 3


def test_a_watcher_stops_the_work_between_two_pieces() -> None:
    done: list[int] = []

    def stop_after_two() -> None:
        if len(done) == 2:
            raise Interrupted("enough")

    with pulse.watched(stop_after_two), pytest.raises(Interrupted):
        in_order(done.append, [1, 2, 3], done.append, title="", progress=False)
    assert done == [1, 2]
    pulse.beat()

"""What a server that was started anew takes as repeated; what it notes of many sites at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fedmed_common.errors import RequestRefused
from fedmed_common.signed_requests import Stamp
from fedmed_server.deployment.admission import Admission, Nonces
from fedmed_server.deployment.site_states import Refusal, SiteState, load_site_states, save_site_states


def test_what_was_signed_before_the_restart_is_taken_once() -> None:
    stamp = Stamp.new(site="alpha", instance="a1", boot="b1")
    nonces = Nonces({"alpha": SiteState(signed_seconds=stamp.time, clock_skew_seconds=3600.0)}, 60)
    later = replace(stamp, time=stamp.time + 0.001)
    nonces.use(later)
    for repeated in (stamp, later):
        with pytest.raises(RequestRefused, match="replayed"):
            nonces.use(repeated)


def test_clocks_that_stepped_back_shut_a_site_out_for_as_long_as_they_may_differ() -> None:
    nonces = Nonces({"alpha": SiteState(signed_seconds=time.time() + 86_400)}, 60)
    nonces.use(replace(Stamp.new(site="alpha", instance="a1", boot="b1"), time=time.time() + 61))


class CountedNodes:
    """No site is a node, and how often that was asked."""

    def __init__(self) -> None:
        self.looks = 0

    def register(self, keys: Any) -> dict[str, int]:
        return {}

    def online(self) -> frozenset[int]:
        self.looks += 1
        return frozenset()


def test_links_that_begin_together_share_a_look(own_server: Any) -> None:
    async def play() -> int:
        nodes = CountedNodes()
        admission = Admission(own_server.home, cast(Any, nodes))
        own_server.home.prepare()
        await admission.look()
        await asyncio.gather(*(admission.look() for _ in range(50)))
        return nodes.looks

    assert asyncio.run(play()) == 3


def test_states_are_read_as_they_were_written(tmp_path: Path) -> None:
    refusal = Refusal(code="clock", time="2026-01-01")
    states = {"beta": SiteState(), "alpha": SiteState(state="refused", refusal=refusal, signed_seconds=1.5)}
    save_site_states(tmp_path / "sites.json", states)
    assert load_site_states(tmp_path / "sites.json") == states

"""What a server that was started anew takes as repeated."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from fedmed_common.errors import RequestRefused
from fedmed_common.signed_requests import Stamp
from fedmed_server.deployment.admission import Nonces
from fedmed_server.deployment.site_states import SiteState


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

"""What a simulation says at its end."""

from __future__ import annotations

from fedmed_common.site_config import HeldOut
from fedmed_server.history import RunStarted, SiteFacts
from fedmed_simulations.display import held_out_sentence


def _started(**ways: HeldOut) -> RunStarted:
    facts = tuple(
        SiteFacts(name=name, patients={}, presence={}, version="1", held_out=way)
        for name, way in ways.items()
    )
    return RunStarted(time="", run_id="run", sites=facts, command="test", environment={}, parameters=1)


def test_scores_with_noise_and_those_that_stayed_are_named() -> None:
    assert held_out_sentence([_started(east="measured")]) == ""
    said = held_out_sentence([_started(east="kept"), _started(east="noised", north="noised", south="kept")])
    assert said == (
        "scores with noise on them, which at few patients say little: east, north; scores that stayed at the site: south"
    )

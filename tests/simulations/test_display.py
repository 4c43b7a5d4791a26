"""What a simulation says at its end."""

from __future__ import annotations

from scripted import experiment

from fedmed_common.site_config import HeldOut
from fedmed_server.history import RunEnded, RunStarted, SiteFacts, SiteResult
from fedmed_simulations.display import held_out_sentence, outcome_table


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


def test_many_sites_are_told_by_the_lowest_the_median_and_the_highest() -> None:
    def table(sites: int) -> list[tuple[str, str]]:
        results = tuple(
            SiteResult(site=f"site-{number}", metrics={"dice/disc": (number / 100, 1.0)})
            for number in range(sites)
        )
        ended = RunEnded(time="", status="completed", best_round=1, test={"best": results})
        return [(str(c.header), next(iter(c.cells))) for c in outcome_table(ended, experiment()).columns]  # type: ignore[misc]

    assert [heading for heading, _ in table(12)][1:13] == [f"site-{number}" for number in range(12)]
    assert table(101)[1:6] == [
        ("lowest\nsite", "0.000"),
        ("median\nsite", "0.500"),
        ("highest\nsite", "1.000"),
        ("sites", "101"),
        ("all sites", "0.500 (101)"),
    ]
    many = held_out_sentence([_started(**dict.fromkeys((f"site_{n}" for n in range(1000)), "kept"))])
    assert many.endswith("site_10, site_11 and 988 more")

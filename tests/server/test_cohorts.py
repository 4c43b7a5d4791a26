"""A cohort out of many registered sites: who trains, who measures, and that a round leaves behind what its cohort does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from scripted import Sites, experiment, make_request

from fedmed_common.config import Experiment
from fedmed_server import history
from fedmed_server.app import run_federation
from fedmed_server.channel import Member
from fedmed_server.cohort import draw, evaluators
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteFacts, SiteResult
from fedmed_server.report.page import render
from fedmed_server.report.sites import sites_table
from fedmed_server.report.source import RunHistory
from fedmed_server.report.tables import MOST_SITES, scores, shown
from fedmed_server.state import CHECKPOINT


def roster(sites: int) -> tuple[Member, ...]:
    return Sites({f"site-{number:04d}": 9 for number in range(sites)}).roster()


def test_so_many_sites_are_drawn_as_the_experiment_says_each_about_as_often() -> None:
    asked, members = experiment(sites_per_round=20), roster(1000)
    counts = dict.fromkeys((member.name for member in members), 0)
    for number in range(1, 501):
        drawn = draw(members, asked, number)
        assert len(drawn) == 20
        assert [member.name for member in drawn] == sorted(member.name for member in drawn)
        assert drawn == draw(members, asked, number)
        for member in drawn:
            counts[member.name] += 1
    assert max(counts.values()) < 30  # ten each on average: more than six deviations
    assert draw(members[:7], asked, 1) == members[:7]


def test_those_who_measure_are_the_same_in_each_round_and_of_another_draw_than_those_who_train() -> None:
    asked, members = experiment(sites_per_round=20, evaluation_sites=20), roster(1000)
    chosen = evaluators(members, asked)
    assert len(chosen) == 20
    assert chosen == evaluators(members, asked)
    assert all(chosen != draw(members, asked, number) for number in range(1, 100))
    assert evaluators(members, experiment()) == members
    none = SiteFacts(name="none", patients={"train": 3, "validation": 0, "test": 0}, presence={}, version="0")
    assert evaluators((Member(node=1, facts=none),), asked) == ()


@pytest.mark.parametrize(
    ("federation", "told"),
    [
        ({"fraction": 0.5, "sites_per_round": 3}, "two ways to say the same"),
        (
            {"sites_per_round": 3, "minimum_sites": 4},
            r"sites_per_round \(3\) is less than minimum_sites \(4\)",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(federation: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        experiment(**federation)


def _run(folder: Path, sites: int) -> tuple[Sites, list[RoundDone], RunEnded]:
    many = Sites({f"site-{number:04d}": 9 for number in range(sites)})
    request = make_request(folder, many, rounds=3, sites_per_round=10, evaluation_sites=6)
    ended = run_federation(many.grid(), request)
    return many, [r for r in history.read(folder / history.FILE) if isinstance(r, RoundDone)], ended


def test_a_round_asks_and_leaves_as_much_as_its_cohort_whatever_the_roster(tmp_path: Path) -> None:
    sizes = {}
    for count in (20, 300):
        sites, done, ended = _run(tmp_path / str(count), count)
        assert ended.status == "completed"
        for record in done:
            assert (len(record.train), len(record.evaluation)) == (10, 6)
            assert len({result.site for result in record.evaluation}) == 6
        kinds = [kind for _, kind, number, _ in sites.asked if kind == "train"]
        assert len(kinds) == 3 * 10
        assert {len(results) for results in ended.test.values()} == {count}
        lines = (tmp_path / str(count) / history.FILE).read_bytes().splitlines()[1:-1]
        sizes[count] = (
            [len(line) // 200 for line in lines],
            (tmp_path / str(count) / CHECKPOINT).stat().st_size,
        )
    assert sizes[20][0] == sizes[300][0]
    assert abs(sizes[20][1] - sizes[300][1]) < 200


def _history(values: dict[str, float], asked: Experiment) -> RunHistory:
    facts = tuple(
        SiteFacts(
            name=name, patients={"train": 3, "validation": 1, "test": 9}, presence={"disc": 3}, version="0.1"
        )
        for name in values
    )
    started = RunStarted(
        time="2026-01-01T00:00:00+00:00", run_id="run", sites=facts, command="", environment={}, parameters=1
    )
    test = tuple(
        SiteResult(site=name, patients=9, metrics={"dice/disc": (9 * value, 9.0)})
        for name, value in values.items()
    )
    trained = SiteResult(
        site="site-0007", patients=3, staleness=2, seconds={"train": 1.25, "site": 1.5}, bytes_up=10
    )
    done = RoundDone(
        time=started.time,
        round=1,
        attempt=0,
        train=(trained,),
        seconds={"total": 1.0},
        is_best=True,
        clock=12.0,
    )
    ended = RunEnded(time=started.time, status="completed", best_round=1, test={"best": test})
    return RunHistory(
        name="run",
        experiment=asked,
        experiment_text="",
        starts=(started,),
        rounds=(done,),
        ended=ended,
        comparison={},
    )


def test_of_many_sites_the_lowest_the_middle_and_the_highest_are_shown_and_all_are_in_the_table() -> None:
    values = {f"site-{number:04d}": (number * 7 % 1000) / 1000 for number in range(1000)}
    run = _history(values, experiment())
    names = shown(run, scores(run))
    assert len(names) == len(set(names)) == MOST_SITES
    ranks = [round(1000 * values[name]) for name in names]
    assert ranks == [*range(13), *range(493, 507), *range(987, 1000)]
    few = _history(dict(list(values.items())[:40]), experiment())
    assert shown(few, scores(few)) == few.sites
    head, *lines = sites_table(run).decode().splitlines()
    assert head.split(",")[:7] == [
        "site", "patients_train", "patients_validation", "patients_test", "answered", "asked", "staleness",
    ]  # fmt: skip
    assert len(lines) == 1000
    assert lines[7] == "site-0007,3,1,9,2,2,2,1.5,,,0,10,,0.049,9"


def test_the_report_says_how_old_updates_were_and_when_it_would_have_ended() -> None:
    page = render(_history({"site-0007": 0.5, "site-0008": 0.6}, experiment()), [], shareable=True)
    assert "For the rounds, which would take as long as 12 steps of a site of median speed" in page
    assert "Staleness</th>" in page
    assert '<td class="num">2.0</td></tr>' in page


def test_a_status_with_many_sentences_has_an_end(tmp_path: Path) -> None:
    sites = Sites({f"site-{number:03d}": 9 for number in range(40)})
    gone = replace(sites, dice=lambda site, _round: None if site != "site-000" else 0.5)
    ended = run_federation(gone.grid(), make_request(tmp_path / "run", gone, rounds=2, quorum=0.01))
    assert ended.status.startswith("degraded: site-001 missed the evaluation of round 1 (failed: internal); ")
    assert ended.status.endswith("; and 56 more, which the report counts")

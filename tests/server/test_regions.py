"""Regions between the sites and the centre: the same model, nobody missing unseen, and no more believed than they may say."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file
from scripted import Sites, experiment, make_request

from fedmed_common import wire
from fedmed_common.errors import QuorumError, RejectedReply
from fedmed_server import gate, history
from fedmed_server.app import run_federation
from fedmed_server.history import RoundDone, RunEnded, RunStarted
from fedmed_server.region import Region, app_of_regions
from fedmed_simulations.grid import LocalGrid

NAMES = ("a", "b", "c", "d", "e", "f")
PATIENTS = dict(zip(NAMES, (9, 7, 8, 30, 1, 12), strict=True))


def regional(groups: list[Sites], folder: Path, **federation: object) -> RunEnded:
    """A run whose sites are regions of these."""
    regions = [
        Region(name=f"region-{number}", grid=group.grid(), sites=len(group.patients))
        for number, group in enumerate(groups, 1)
    ]
    request = make_request(folder, groups[0], **federation)
    request = replace(request, sites=len(regions), regional=True)
    return run_federation(LocalGrid(app_of_regions(regions), len(regions)), request)


def dealt(sizes: tuple[int, ...], **settings: object) -> list[Sites]:
    names = iter(NAMES)
    return [Sites({name: PATIENTS[name] for name in islice(names, size)}, **settings) for size in sizes]  # type: ignore[arg-type]


def rounds_of(folder: Path) -> list[RoundDone]:
    return [line for line in history.read(folder / history.FILE) if isinstance(line, RoundDone)]


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (2, 2, 2)])
@pytest.mark.parametrize(
    "recipe", [{}, {"name": "fedadam"}, {"name": "fedprox"}], ids=["avg", "adam", "prox"]
)
def test_the_model_is_that_of_the_sites_without_regions(
    sizes: tuple[int, ...], recipe: dict[str, object], tmp_path: Path
) -> None:
    flat = Sites(PATIENTS)
    told = run_federation(flat.grid(), make_request(tmp_path / "flat", flat, recipe=recipe))
    ended = regional(dealt(sizes), tmp_path / "regions", recipe=recipe)
    assert (told.status, ended.status) == ("completed", "completed")
    wanted, found = (load_file(tmp_path / name / "models/last.safetensors") for name in ("flat", "regions"))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6 * max(1.0, float(abs(array).max())))
    for one, other in zip(rounds_of(tmp_path / "flat"), rounds_of(tmp_path / "regions"), strict=True):
        assert one.criterion == pytest.approx(other.criterion, abs=1e-12)


def test_of_a_region_the_centre_knows_sums(tmp_path: Path) -> None:
    regional(dealt((2, 4)), tmp_path / "run")
    started = next(
        line for line in history.read(tmp_path / "run" / history.FILE) if isinstance(line, RunStarted)
    )
    assert [(site.name, site.sites, site.patients["train"]) for site in started.sites] == [
        ("region-1", 2, 16),
        ("region-2", 4, 51),
    ]
    first = rounds_of(tmp_path / "run")[0]
    assert [(one.site, one.asked, one.missed, one.patients) for one in first.train] == [
        ("region-1", 2, 0, 16),
        ("region-2", 4, 0, 51),
    ]
    assert not any(
        name in line for name in PATIENTS for line in [f'"{first.model_dump_json()}"'] if f'"{name}"' in line
    )


def test_a_site_that_a_region_lost_is_said_and_weighs_nothing(tmp_path: Path) -> None:
    def trains(site: str, number: int) -> float | None:
        return None if (site, number) == ("d", 2) else 1.0

    flat = Sites(PATIENTS, trains=trains)
    run_federation(flat.grid(), make_request(tmp_path / "flat", flat, quorum=0.5))
    ended = regional(dealt((3, 3), trains=trains), tmp_path / "regions", quorum=0.5)
    assert ended.status == "degraded: 1 of the 3 sites of region-2 missed the training of round 2"
    assert [one.patients for one in rounds_of(tmp_path / "regions")[1].train] == [24, 13]
    wanted, found = (load_file(tmp_path / name / "models/last.safetensors") for name in ("flat", "regions"))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6 * max(1.0, float(abs(array).max())))


def test_a_round_without_its_hard_site_is_not_compared(tmp_path: Path) -> None:
    """That a hard site was away from its region is no merit of the model."""

    def dice(site: str, number: int) -> float | None:
        if site == "d":
            return None if number == 2 else 0.1
        return 0.5 - 0.01 * number

    flat = Sites(PATIENTS, dice=dice)
    wanted = run_federation(flat.grid(), make_request(tmp_path / "flat", flat, quorum=0.5))
    ended = regional(dealt((3, 3), dice=dice), tmp_path / "regions", quorum=0.5)
    assert (wanted.best_round, ended.best_round) == (1, 1)
    assert "1 of the 3 sites of region-2 missed the evaluation of round 2" in ended.status


def test_how_far_apart_a_regions_sites_are_is_no_length_of_its_update() -> None:
    """Its running variance is that of all of its sites' values together."""
    mean, variance = (np.zeros(64, np.float32) for _ in range(2))
    template = {"norm.running_mean": mean, "norm.running_var": variance}
    expected = replace(EXPECTED, kind=wire.Kind.TRAIN, template=template, norm_limit=1e4)

    def admit(spread: float, sites: int) -> wire.Reply:
        delta = {"norm.running_mean": mean, "norm.running_var": variance + np.float32(spread**2)}
        region = wire.Region(asked=2, missed=0, patients=20) if sites else None
        reply = wire.pack_reply(replace(REPLY, delta=delta, region=region))
        return gate.admit(reply, replace(expected, sites=sites))

    admit(40.0, 4)
    for spread, sites in ((40.0, 0), (4000.0, 4)):
        with pytest.raises(RejectedReply, match="update too large"):
            admit(spread, sites)


def test_a_region_below_the_quorum_has_failed(tmp_path: Path) -> None:
    def trains(site: str, number: int) -> float | None:
        return None if site in {"d", "e"} and number == 2 else 1.0

    with pytest.raises(
        QuorumError,
        match=r"round 2: 1 of 2 sites gave .* region-2: failed \(quorum\)",
    ):
        regional(dealt((3, 3), trains=trains), tmp_path / "run", quorum=0.6)


def test_a_region_is_asked_its_part_again_where_it_begins_anew(tmp_path: Path) -> None:
    """Its process may be another than the one that called the roll."""
    groups = dealt((3, 3))
    first = [Region(name=f"region-{n}", grid=group.grid(), sites=3) for n, group in enumerate(groups)]
    other = [Region(name=f"region-{n}", grid=group.grid(), sites=3) for n, group in enumerate(groups)]
    asked = experiment()
    order = wire.Order(kind=wire.Kind.EVALUATE, run="r", round=1, attempt=1, experiment=asked.order_text())
    facts = replace(order, kind=wire.Kind.FACTS, round=0)
    assert first[0].answer(facts) == other[0].answer(facts)
    new = Region(name="region-0", grid=groups[0].grid(), sites=3)
    assert new.answer(order) == first[0].answer(order)


EXPECTED = gate.Expected(
    site="north",
    run="r",
    round=1,
    attempt=1,
    kind=wire.Kind.EVALUATE,
    classes=("disc",),
    patients=20,
    sites=4,
)
REPLY = wire.Reply(site="north", run="r", round=1, attempt=1)


@pytest.mark.parametrize(
    ("region", "sites", "reason"),
    [
        (None, 4, "no word on the region's sites"),
        (wire.Region(asked=5, missed=0, patients=20), 4, "the region's sites"),
        (wire.Region(asked=4, missed=4, patients=0), 4, "the region's sites"),
        (wire.Region(asked=0, missed=0, patients=0), 4, "the region's sites"),
        (wire.Region(asked=4, missed=0, patients=21), 4, "the region's sites"),
        (wire.Region(asked=1, missed=0, patients=1), 0, "a site that says it is a region"),
        (wire.Region(asked=2**40, missed=0, patients=1), None, "the region's sites"),
    ],
)
def test_more_than_a_region_may_say_is_not_believed(
    region: wire.Region | None, sites: int | None, reason: str
) -> None:
    reply = wire.pack_reply(replace(REPLY, region=region))
    with pytest.raises(RejectedReply, match=f"^{reason}$"):
        gate.admit(reply, replace(EXPECTED, sites=sites))


def test_what_a_region_may_say_comes_through() -> None:
    region = wire.Region(asked=4, missed=3, patients=5)
    assert gate.admit(wire.pack_reply(replace(REPLY, region=region)), EXPECTED).region == region
    refusal = replace(REPLY, code="quorum")
    assert gate.admit(wire.pack_reply(refusal), EXPECTED).code == "quorum"
    with pytest.raises(RejectedReply, match="a refusal that carries results"):
        gate.admit(wire.pack_reply(replace(refusal, region=region)), EXPECTED)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"compression": {"up": "int8"}}, "compression is about each site"),
        ({"secure_aggregation": {}}, "secure_aggregation is about each site"),
        ({"federation": {"fraction": 0.5}}, "federation.fraction is about each site"),
        ({"federation": {"sites_per_round": 2}}, "federation.sites_per_round is about each site"),
        ({"federation": {"evaluation_sites": 2}}, "federation.evaluation_sites is about each site"),
        ({"federation": {"minimum_sites": 3}}, "2 are too few for the centre"),
    ],
)
def test_settings_about_each_site_are_refused(changed: dict[str, object], told: str, tmp_path: Path) -> None:
    simulation = {"federation": str(tmp_path), "regions": 2}
    values = experiment().model_dump(mode="json") | {"federation": {}, "simulation": simulation} | changed
    with pytest.raises(ValidationError, match=told):
        type(experiment()).model_validate(values)

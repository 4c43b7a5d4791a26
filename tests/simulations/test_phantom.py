"""The plan of a synthetic federation, its anatomy, and its scanners: before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from fedmed_common.errors import ConfigError
from fedmed_simulations.phantom.anatomy import CLASS_OF, HOSTS, STRUCTURES, TISSUES, draw_anatomy
from fedmed_simulations.phantom.patient import draw_scan
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.scanner import SCANNERS, acquire
from fedmed_simulations.phantom.settings import LESIONS, ORGANS, PhantomSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sites", 0), ("patients", 0), ("shape", (96, 96)), ("shape", (8, 96, 48)), ("seed", -1), ("imbalance", 0.5),
        ("imbalance", float("nan")), ("alpha", 0.0), ("head_share", 1.5), ("vacant", 6), ("unannotated", 5),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PhantomSettings(**{field: value})
    assert caught.value.field == field
    assert caught.value.fix


def test_every_structure_belongs_to_a_class_and_every_lesion_to_a_host() -> None:
    assert set(CLASS_OF.values()) == {*ORGANS, *LESIONS}
    assert set(HOSTS) == set(LESIONS)
    assert all(set(scanner.contrast) == set(TISSUES) for scanner in SCANNERS)


@pytest.mark.parametrize("imbalance", [1.0, 10.0, 48.0])
def test_lesions_have_the_long_tail_that_was_asked_for(imbalance: float) -> None:
    settings = PhantomSettings(imbalance=imbalance, vacant=0, unannotated=0)
    plans = plan_federation(settings)
    totals = [sum(site.positives(lesion) for site in plans) for lesion in LESIONS]
    assert totals[0] == settings.head_share * settings.sites * settings.patients
    assert totals[-1] == max(1, round(totals[0] / imbalance))
    assert totals == sorted(totals, reverse=True)


def test_smaller_alpha_is_more_uneven() -> None:
    def unevenness(alpha: float) -> float:
        settings = PhantomSettings(sites=8, patients=100, alpha=alpha, vacant=0, unannotated=0, imbalance=4.0)
        plans = plan_federation(settings)
        return float(np.mean([np.std([site.positives(lesion) for site in plans]) for lesion in LESIONS]))

    assert unevenness(0.1) > 2 * unevenness(100.0)


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_as_declared_and_each_class_is_labelled_somewhere(seed: int) -> None:
    settings = PhantomSettings(seed=seed)
    plans = plan_federation(settings)
    for site in plans:
        assert len(site.annotated) == len(LESIONS) - settings.unannotated
        assert sum(site.positives(lesion) == 0 for lesion in site.annotated) >= settings.vacant
        assert set(site.label_map()) == {*ORGANS, *site.annotated}
    for lesion in LESIONS:
        assert any(lesion in site.annotated and site.positives(lesion) for site in plans)


def test_one_site_keeps_every_class() -> None:
    (site,) = plan_federation(PhantomSettings(sites=1, vacant=2, unannotated=2))
    assert site.annotated == LESIONS


def test_further_sites_differ_in_name_scanner_and_format() -> None:
    plans = plan_federation(PhantomSettings(sites=12, patients=2))
    assert len({site.name for site in plans}) == 12
    assert len({(site.scanner.model, site.label_format) for site in plans}) == 12
    assert len({site.scanner.field_mm for site in plans}) == 12
    assert {site.label_format for site in plans if site.scanner.modality == "CT"} == {
        site.label_format for site in plans
    }


def test_two_grids_see_the_same_patient() -> None:
    anatomy = draw_anatomy(np.random.default_rng(5), ["liver_lesion"])
    points = np.random.default_rng(6).uniform(-90, 90, size=(3, 2000)).astype(np.float32)
    together, apart = (
        anatomy.tissues(points),
        [anatomy.tissues(points[:, :700]), anatomy.tissues(points[:, 700:])],
    )
    for layer in range(2):
        assert np.array_equal(together[layer], np.concatenate([part[layer] for part in apart]))


@pytest.mark.parametrize("patient", range(4))
def test_all_organs_and_exactly_the_planned_lesions_are_there(patient: int) -> None:
    settings = PhantomSettings(seed=11)
    site = plan_federation(settings)[patient]
    scan = draw_scan(settings, site, site.patients[patient])
    millilitres = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    for structure in STRUCTURES:
        size = scan.mask(structure).sum() * millilitres
        if structure in LESIONS:
            assert (size > 0) == (structure in site.patients[patient].lesions)
        else:
            assert size > 30
    assert {lesion for lesion in LESIONS if np.any(scan.lesions == TISSUES.index(lesion))} == set(
        site.patients[patient].lesions
    )


@pytest.mark.parametrize("lesion", LESIONS)
def test_a_lesion_lies_in_its_organ_and_shows_on_the_coarsest_grid(lesion: str) -> None:
    for seed in range(5):
        anatomy = draw_anatomy(np.random.default_rng(seed), [lesion])
        for shape in ((16, 16, 8), (48, 48, 32)):
            scan = acquire(anatomy, SCANNERS[seed % len(SCANNERS)], shape, np.random.default_rng(seed))
            where = scan.lesions > 0
            assert where.any()
            assert set(np.unique(scan.organs[where])) <= {TISSUES.index(host) for host in HOSTS[lesion]}


@pytest.mark.parametrize("index", range(len(SCANNERS)))
def test_every_structure_stands_out_from_its_surroundings(index: int) -> None:
    """By more than the noise of one voxel, so that it can be learnt."""
    scanner = SCANNERS[index]
    scan = acquire(
        draw_anatomy(np.random.default_rng(3), LESIONS), scanner, (96, 96, 48), np.random.default_rng(4)
    )
    values = scan.stored * scanner.slope
    for structure in STRUCTURES:
        mask = scan.mask(structure)
        ring = binary_dilation(mask, iterations=2) & ~mask
        difference = abs(np.median(values[mask]) - values[ring])
        assert np.median(difference) > scanner.noise, structure


def test_held_out_patients_are_others_on_the_same_scanners_and_nothing_is_rare_among_them() -> None:
    settings = PhantomSettings(sites=3, patients=10, seed=5, imbalance=50.0, head_share=0.4)
    federation, held_out = (plan_federation(replace(settings, held_out=held)) for held in (False, True))
    for site, other in zip(federation, held_out, strict=True):
        assert (site.name, site.scanner) == (other.name, other.scanner)
        assert other.annotated == LESIONS
        assert [other.positives(lesion) for lesion in LESIONS] == [4] * len(LESIONS)
        assert not {patient.index for patient in site.patients} & {p.index for p in other.patients}
        assert not {patient.id for patient in site.patients} & {patient.id for patient in other.patients}
    assert "held_out" not in settings.text()

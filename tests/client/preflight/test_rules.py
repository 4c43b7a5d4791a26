"""Ordinary data of other kinds than organs in CT: what is no fault raises no alarm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmed_client.preflight.machine import machine
from fedmed_client.preflight.measures import CaseFacts, ClassFacts
from fedmed_client.preflight.page import histogram, html
from fedmed_client.preflight.rules import look
from fedmed_client.preflight.run import preflight
from fedmed_common.config import Experiment, Site

CLASSES = ("lesion", "organ")


def _site(**data: object) -> Site:
    labels = {"lesion": ["1"], "organ": ["2"]}
    return Site.model_validate(
        {"name": "north", "data": {"format": "nifti", "root": "/x", **data}, "labels": labels}
    )


def _case(number: int, *classes: ClassFacts, **changes: object) -> CaseFacts:
    rng = np.random.default_rng(number)
    picture = rng.normal(0, 1, 1728)
    case = CaseFacts(
        patient=f"p{number}",
        path=Path(f"/x/{number}"),
        shape=(64, 64, 32),
        spacing_mm=(1.0, 1.0, 2.0),
        axes="RAS",
        shows=frozenset(one.name for one in classes),
        body_mm=(60.0, 60.0, 60.0),
        levels=(0.0, 100.0, 900.0),
        digest=str(number),
        picture=tuple(picture / np.linalg.norm(picture)),
        labelled=sum(one.voxels for one in classes),
        classes=classes,
        shift_mm=(20.0, 3.0, 4.0),
        gain=float(rng.uniform(0.1, 9.0)),
    )
    return replace(case, **changes)  # type: ignore[arg-type]


def _lesion(seed: int) -> ClassFacts:
    rng = np.random.default_rng(seed)
    ml = float(10 ** rng.uniform(-1, 2))
    x, y, z = (float(part) for part in rng.uniform(0.2, 0.8, 3))
    return ClassFacts(
        name="lesion",
        voxels=int(1000 * ml),
        ml=ml,
        centre=(x, y, z),
        specks=int(rng.integers(0, 30)),
        outside=0.0,
    )


def test_lesions_of_any_size_place_side_number_and_contrast_are_no_faults() -> None:
    cases = [_case(number, _lesion(100 + number)) if number % 3 else _case(number) for number in range(40)]
    assert [one.code for one in look(cases, [], _site(), CLASSES) if one.case is not None] == []


def test_an_image_under_two_patients_is_named_at_both() -> None:
    cases = [_case(number) for number in range(8)]
    cases[5] = replace(cases[5], digest=cases[2].digest)
    found = [one for one in look(cases, [], _site(), CLASSES) if one.code == "copy"]
    assert {one.case for one in found} == {cases[2].path, cases[5].path} and {one.level for one in found} == {
        "fail"
    }


def test_no_label_at_all_is_a_fault_of_the_site() -> None:
    assert "no-labels" in [
        one.code for one in look([_case(number) for number in range(3)], [], _site(), CLASSES)
    ]


def test_a_class_that_the_site_lists_and_nobody_shows_is_told() -> None:
    cases = [_case(number, _lesion(number)) for number in range(8)]
    (found,) = [one for one in look(cases, [], _site(), CLASSES) if one.code == "class-without-cases"]
    assert "'organ'" in found.what
    others = look(cases, [], _site(), ("lesion",))
    assert "class-without-cases" not in [one.code for one in others]


def test_a_histogram_of_values_that_are_equal_but_for_rounding_can_be_drawn() -> None:
    assert "<rect" in histogram([0.9765625, 0.9765624999999999, 0.9765625])


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Nuclei in many pieces, of different sizes, with labels as a mask; one label has another size."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(9):
        rows, columns = np.mgrid[: 80 + number, :96]
        mask = np.zeros(rows.shape, bool)
        for _ in range(6):
            y, x = rng.uniform(10, 70), rng.uniform(10, 86)
            mask |= (rows - y) ** 2 + (columns - x) ** 2 < 25
        image = rng.normal(20, 3, mask.shape) + 150 * mask
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
            tmp_path / "data" / "images" / f"{number}.png"
        )
        label = mask[:-4] if number == 4 else mask
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / "data" / "labels" / f"{number}.png")
    return tmp_path


def test_photographs_are_looked_at_and_a_mask_of_another_size_is_named(photographs: Path) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "nuclei",
            "rounds": 1,
            "task": {"classes": ["nucleus"], "dimensions": 2},
            "data": {"patch": [32, 32], "intensity": {"kind": "scale"}},
        }
    )
    site = Site.model_validate(
        {
            "name": "lab",
            "data": {"format": "images", "root": str(photographs / "data")},
            "labels": {"nucleus": ["1"]},
        }
    )
    found = preflight(site, experiment, photographs)
    assert [finding.case.stem for finding in found.findings if finding.case is not None] == ["4"]
    assert len(found.cases) == 8 and sum(found.splits.values()) == 8
    assert "data:image/png" in html(found, photographs)


def test_a_table_says_what_is_shown(photographs: Path) -> None:
    lines = ["file,round,none", *(f"{number},{number % 2},0" for number in range(9))]
    (photographs / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    experiment = Experiment.model_validate(
        {
            "name": "shapes",
            "rounds": 1,
            "task": {
                "name": "classification",
                "classes": ["round", "none"],
                "dimensions": 2,
                "labels": "multi",
            },
            "data": {"patch": [32, 32], "intensity": {"kind": "scale"}},
            "model": {"name": "resnet"},
        }
    )
    site = Site.model_validate(
        {
            "name": "lab",
            "data": {"format": "images", "root": str(photographs / "data"), "labels_from": "table"},
            "labels": {"round": ["round"], "none": ["none"]},
        }
    )
    found = preflight(site, experiment, photographs)
    assert found.presence == {"round": 4, "none": 0}
    assert [finding.code for finding in found.findings if finding.case is not None] == []


def test_what_a_case_needs_and_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "mr",
            "rounds": 1,
            "task": {"classes": CLASSES},
            "data": {
                "patch": [16, 16, 16],
                "modalities": ["t1", "t2"],
                "fusion": {"kind": "wavelet"},
                "bias_correction": True,
            },
        }
    )
    site = _site(registration="rigid")
    told = [one for one in machine(tmp_path, site, experiment, []) if one.code == "packages"]
    assert told == []
    monkeypatch.setattr("fedmed_client.preflight.machine.find_spec", lambda _name: None)
    told = [one for one in machine(tmp_path, site, experiment, []) if one.code == "packages"]
    assert [one.level for one in told] == ["fail"] * 3
    assert all("fedmed[harmonise]" in one.fix for one in told)

"""From a data sheet to an experiment: what nnU-Net itself planned for public data sets, and what cannot be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import validate
from fedmed_server.survey.planning import plan
from fedmed_server.survey.sheet import FILE, ClassVolumes, Histogram, Sheet, read_sheet, write_sheet
from fedmed_strategies.statistics.survey import EXTENTS, SPACINGS, VOLUMES

Row = tuple[float, ...]


def histogram(centres: np.ndarray, value: float, patients: float) -> Histogram:
    """All patients at the value itself, in the place of the bin next to it."""
    near = int(np.abs(centres - value).argmin())
    exact = [*centres.tolist()[:near], value, *centres.tolist()[near + 1 :]]
    return Histogram(centres=tuple(exact), counts=tuple(patients * (k == near) for k in range(len(centres))))


def sheet_with(
    spacing: Row, shape: Row, patients: int, classes: int, *, low: float = 0.0, **changes: Any
) -> Sheet:
    dimensions = 2 if shape[2] == 1 else 3
    experiment = {
        "name": "asked",
        "seed": 1,
        "task": {"classes": [f"class-{k}" for k in range(classes)], "dimensions": dimensions},
        "data": {
            "channels": 1,
            "patch": [32] * dimensions,
            "intensity": {"kind": "window", "low": low, "high": 3071.0},
        },
    }
    levels = np.linspace(low, 3071.0, 257)
    flat = Histogram(centres=tuple(levels.tolist()), counts=(patients / 257,) * 257)
    shown = histogram(VOLUMES.centres, 1000.0, patients)
    fields = {
        "run": "run",
        "experiment": experiment,
        "sites": 3,
        "patients": patients,
        "spacing_mm": tuple(histogram(SPACINGS.centres, value, patients) for value in spacing),
        "extent": tuple(histogram(EXTENTS.centres, value, patients) for value in shape),
        "image": (flat,),
        "foreground": (flat,),
        "volumes": {
            name: ClassVolumes(annotated=patients, shown=shown) for name in experiment["task"]["classes"]
        },
        "landmarks": (tuple(k / 10 for k in range(1, 10)),),
        "deviation": {},
        "epsilon": None,
    }
    return Sheet(**{**fields, **changes})


@pytest.mark.parametrize(
    ("spacing", "shape", "patients", "classes", "patch", "batch"),
    [
        # As nnU-Net itself planned them, by its users: issues 148, 856 and 2251 of MIC-DKFZ/nnUNet.
        ((1.0, 1.0, 1.0), (36, 50, 35), 260, 2, [40, 56, 40], 9),
        ((0.76757812, 0.76757812, 1.0), (512, 512, 482), 131, 2, [128, 128, 128], 2),
        ((1.0, 1.0, 1.0), (2848, 4288, 1), 100, 1, [1024, 1536], 2),
    ],
    ids=["hippocampus", "liver", "microaneurysms"],
)
def test_patch_and_batch_are_nnu_nets(
    spacing: Row, shape: Row, patients: int, classes: int, patch: list[int], batch: int
) -> None:
    tables = plan(sheet_with(spacing, shape, patients, classes)).tables
    assert tables["data"]["patch"] == patch
    assert tables["train"]["batch_size"] == batch


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((1.5, 1.5, 5.0), (230, 230, 20)), ((0.7, 0.7, 1.2), (512, 512, 90)), ((1.0, 1.0, 1.0), (300, 400, 1))],
)
@pytest.mark.parametrize("memory_gb", [4.0, 8.0, 24.0])
def test_what_is_planned_is_an_experiment(spacing: Row, shape: Row, memory_gb: float) -> None:
    planned = plan(sheet_with(spacing, shape, 40, 3), memory_gb=memory_gb)
    experiment = validate(Experiment, {**planned.tables, "rounds": 5}, "planned.toml")
    assert experiment.train.batch_size >= 2
    assert {field for field, *_ in planned.reasons} >= {"data.spacing_mm", "data.patch", "train.batch_size"}


def test_more_memory_never_means_a_smaller_patch() -> None:
    sheet = sheet_with((0.8, 0.8, 2.5), (512, 512, 130), 60, 4)
    sizes = [np.prod(plan(sheet, memory_gb=gb).tables["data"]["patch"]) for gb in (4, 8, 16, 32)]
    assert sizes == sorted(sizes)


def test_along_a_far_coarser_axis_finer_images_are_taken_for_the_voxel_size() -> None:
    place = int(np.abs(SPACINGS.centres - 5.0).argmin())
    counts = [0.0] * SPACINGS.count
    counts[place], counts[place - 8] = 80.0, 20.0
    sheet = sheet_with((1.0, 1.0, 5.0), (230, 230, 12), 100, 1)
    mixed = Histogram(centres=tuple(SPACINGS.centres.tolist()), counts=tuple(counts))
    sheet = sheet.model_copy(update={"spacing_mm": (*sheet.spacing_mm[:2], mixed)})
    assert plan(sheet).tables["data"]["spacing_mm"][2] == pytest.approx(SPACINGS.centres[place - 8], rel=0.01)


def test_ct_is_told_by_what_was_asked_for() -> None:
    ct = plan(sheet_with((1.0, 1.0, 1.0), (200, 200, 200), 40, 1, low=-1024.0)).tables["data"]["intensity"]
    assert ct["kind"] == "window" and -1024 < ct["low"] < ct["high"] < 3071
    mr = plan(sheet_with((1.0, 1.0, 1.0), (200, 200, 200), 40, 1)).tables["data"]["intensity"]
    assert mr == {"kind": "zscore"}


def test_one_scale_of_intensities_is_the_mean_of_all_patients() -> None:
    sheet = sheet_with((1.0, 1.0, 1.0), (200, 200, 200), 40, 1)
    tables = plan(sheet, landmarks=True).tables
    experiment = validate(Experiment, {**tables, "rounds": 5}, "planned.toml")
    assert experiment.data.intensity.landmarks == sheet.landmarks
    for rows in ((), ((0.5,) * 9,)):
        with pytest.raises(ConfigError, match="no scale"):
            plan(sheet.model_copy(update={"landmarks": rows}), landmarks=True)


@pytest.mark.parametrize(
    ("shape", "memory_gb", "sentence"),
    [((12, 12, 12), 8.0, "too small"), ((512, 512, 300), 0.001, "no patch fits"), ((9, 9, 9), -1.0, "hold")],
)
def test_what_cannot_be_planned_is_said(shape: Row, memory_gb: float, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        plan(sheet_with((1.0, 1.0, 1.0), shape, 30, 1), memory_gb=memory_gb)


def test_a_sheet_that_may_not_tell_plans_nothing() -> None:
    empty = Histogram(centres=(1.0, 2.0), counts=(0.0, -0.5))
    sheet = sheet_with((1.0, 1.0, 1.0), (64, 64, 64), 30, 1, spacing_mm=(empty, empty, empty))
    with pytest.raises(ConfigError, match="voxels along right"):
        plan(sheet)


def test_a_sheet_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    sheet = sheet_with((1.0, 1.0, 1.0), (64, 64, 64), 30, 1)
    write_sheet(tmp_path, sheet)
    assert read_sheet(tmp_path) == read_sheet(tmp_path / FILE) == sheet
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ConfigError, match="run"):
        read_sheet(tmp_path)
    with pytest.raises(ConfigError, match="no data sheet"):
        read_sheet(tmp_path / "elsewhere")


def test_a_quantile_is_the_first_centre_that_reaches_it() -> None:
    counts = Histogram(centres=(1.0, 2.0, 3.0, 4.0), counts=(2.0, -1.0, 3.0, 5.0))
    assert [counts.quantile(share) for share in (0.0, 0.2, 0.4, 0.9, 1.0)] == [1.0, 1.0, 3.0, 4.0, 4.0]

"""What a classifier gets of a case: the image at the size of its input, and what it shows, to the last voxel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmed_client.data.cohort import open_cohort
from fedmed_client.data.volume import Volume
from fedmed_client.data.whole import prepare_whole, resize
from fedmed_common.config import Data, Experiment, Task
from fedmed_common.errors import DataError

Make = Callable[..., Any]
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def task(dimensions: int = 3, **more: Any) -> Task:
    return Task.model_validate(
        {"name": "classification", "classes": ("a", "b"), "dimensions": dimensions, **more}
    )


def data(*patch: int, **more: Any) -> Data:
    return Data.model_validate({"patch": patch, "intensity": {"kind": "scale"}, **more})


def volume(*shape: int) -> Volume:
    voxels = np.random.default_rng(0).uniform(10, 250, (1, *shape)).astype(np.float32)
    return Volume(voxels=voxels, affine=AFFINE)


def test_a_linear_ramp_stays_one_at_any_size() -> None:
    ramp = np.arange(12, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 5, 3), np.float32)
    for size in (4, 12, 5, 30):
        places = (np.arange(size) + 0.5) * 12 / size - 0.5
        found = resize(ramp, (size, 5, 3))
        inner = (places >= 6 / size) & (places <= 11 - 6 / size)
        assert found.shape == (1, size, 5, 3)
        assert found[0, inner, 0, 0] == pytest.approx(places[inner], abs=1e-5)
    assert np.array_equal(resize(ramp, (12, 5, 3)), ramp)


@pytest.mark.parametrize("shape", [(6, 4, 1), (2, 2, 2)])
def test_where_an_image_shrinks_its_mean_stays_and_no_voxel_is_passed_over(
    shape: tuple[int, int, int],
) -> None:
    image = np.zeros((1, 12, 8, 4), np.float32)
    image[0, 7, 5, 2] = 96.0
    found = resize(image, shape)
    assert found.sum() * image.size / found.size == pytest.approx(96.0)


def test_a_single_slice_fills_a_volume() -> None:
    flat = np.random.default_rng(0).random((1, 4, 4, 1)).astype(np.float32)
    assert np.array_equal(resize(flat, (4, 4, 3)), np.repeat(flat, 3, axis=3))


def test_a_case_shows_what_any_voxel_shows_also_one_that_is_cropped_away() -> None:
    image = volume(20, 20, 10)
    image.voxels[:, :4] = 0.0
    label = np.zeros((20, 20, 10), np.uint8)
    label[0, 0, 0] = 2
    prepared, shows = prepare_whole(image, label, None, data(8, 8, 8, crop_to_foreground=True), task())
    empty, nothing = prepare_whole(
        image, np.zeros_like(label), None, data(8, 8, 8, crop_to_foreground=True), task()
    )
    assert prepared.image.shape == (1, 8, 8, 8)
    assert (shows, nothing) == ((False, True), (False, False))
    assert np.array_equal(prepared.image, empty.image)  # the label says nothing of where to look
    assert prepared.label.tolist() == [[[0]], [[1]]]
    assert prepared.spacing_mm == pytest.approx((2.0 * 16 / 8, 2.0 * 20 / 8, 5.0 * 10 / 8))


def test_a_2d_network_gets_every_slice_with_what_it_shows() -> None:
    label = np.zeros((20, 30, 6), np.uint8)
    label[3, 4, 1] = 1
    label[5:9, 5:9, 3:5] = 2
    prepared, shows = prepare_whole(volume(20, 30, 6), label, None, data(8, 12), task(2))
    assert prepared.image.shape == (1, 8, 12, 6)
    assert prepared.label[:, 0].tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert shows == (True, True)
    thick, _ = prepare_whole(volume(20, 30, 6), label, None, data(8, 12, spacing_mm=(2, 2, 10)), task(2))
    assert thick.image.shape == (1, 8, 12, 3)
    assert thick.label.shape == (2, 1, 3)


def test_a_table_decides_where_there_is_one() -> None:
    nothing = np.zeros((9, 9, 1), np.uint8)
    prepared, shows = prepare_whole(volume(9, 9, 1), nothing, (True, False), data(8, 8), task(2))
    assert (shows, prepared.label.tolist()) == ((True, False), [[[1]], [[0]]])


@pytest.mark.parametrize(
    ("shows", "named"), [((False, False), "none of the classes"), ((True, True), "a, b")]
)
def test_single_labels_are_exactly_one(shows: tuple[bool, bool], named: str) -> None:
    image, nothing = volume(9, 9, 1), np.zeros((9, 9, 1), np.uint8)
    with pytest.raises(DataError, match=f"shows {named}; task.labels = 'single' needs exactly one"):
        prepare_whole(image, nothing, shows, data(8, 8), task(2, labels="single"))
    prepare_whole(image, nothing, (False, True), data(8, 8), task(2, labels="single"))


@pytest.mark.parametrize(
    ("shows", "labels", "fix"),
    [((True, False), "multi", "does not say which of them"), (None, "single", "exactly one class")],
)
def test_slices_that_nothing_is_known_of_are_no_samples(
    shows: tuple[bool, bool] | None, labels: str, fix: str
) -> None:
    with pytest.raises(DataError, match=fix):
        prepare_whole(
            volume(9, 9, 4), np.ones((9, 9, 4), np.uint8), shows, data(8, 8), task(2, labels=labels)
        )


def _classifier(make_experiment: Make, labels: str = "multi", **settings: Any) -> Experiment:
    experiment: Experiment = make_experiment(
        patch=(8, 8),
        data=settings,
        task={"name": "classification", "classes": ("sick", "well"), "dimensions": 2, "labels": labels},
        model={"name": "resnet", "width": 0.25},
    )
    return experiment


def _pictures(root: Path, count: int) -> Path:
    (root / "images").mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"p{number}.png")
    return root


@pytest.mark.parametrize("by_column", [True, False])
def test_a_site_with_a_table_needs_no_masks(
    tmp_path: Path, make_experiment: Make, make_site: Make, by_column: bool
) -> None:
    root = _pictures(tmp_path / "root", 6)
    if by_column:
        rows = ["file,Healthy,Ill,age", *(f"p{n}.PNG,{int(n % 2 == 0)},{n % 2},4{n}" for n in range(5))]
    else:
        rows = ["age,file,label", *(f"4{n},images/p{n},{'ILL' if n % 2 else 'healthy'}" for n in range(5))]
    (root / "labels.csv").write_text("\n".join([*rows, rows[1].replace("p0", "p9")]))
    site = make_site(
        root, {"sick": ("ill",), "well": ("healthy",)}, ("age",), format="images", labels_from="table"
    )
    experiment = _classifier(make_experiment, "single")
    cohort = open_cohort(site, experiment, tmp_path / "work")
    assert sorted(case.present for case in cohort.cases) == [(False, True)] * 3 + [(True, False)] * 2
    assert {case.image.shape for case in cohort.cases} == {(1, 8, 8, 1)}
    assert sorted(item.path.name for item in cohort.skipped) == ["labels.csv", "p5.png"]
    assert "row 7" in next(item.reason for item in cohort.skipped if item.path.suffix == ".csv")

    before = cohort.manifest_hash
    (root / "labels.csv").write_text("\n".join(rows).replace("p0", "p5"))
    changed = open_cohort(site, experiment, tmp_path / "work")
    assert changed.manifest_hash != before
    larger = open_cohort(site, _classifier(make_experiment, "single", patch=(12, 8)), tmp_path / "work")
    assert {case.image.shape for case in larger.cases} == {(1, 12, 8, 1)}


def test_a_case_that_shows_none_or_several_is_named_and_left_out(
    tmp_path: Path, make_experiment: Make, make_site: Make
) -> None:
    root = _pictures(tmp_path / "root", 4)
    (root / "labels.csv").write_text("file,label\np0,ill\np1,\np2,ill;healthy\np3,healthy\n")
    site = make_site(root, {"sick": ("ill",), "well": ("healthy",)}, format="images", labels_from="table")
    cohort = open_cohort(site, _classifier(make_experiment, "single"), tmp_path / "work")
    assert len(cohort.cases) == 2
    assert [item.path.name for item in cohort.skipped] == ["p1.png", "p2.png"]
    several = open_cohort(site, _classifier(make_experiment), tmp_path / "work")
    assert sorted(case.present for case in several.cases) == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip


def test_masks_say_it_too(tmp_path: Path, photographs: Make, make_experiment: Make, make_site: Make) -> None:
    root = photographs(tmp_path / "root", ("p0", "p1", "p2"))
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "labels" / "p1.png")
    site = make_site(root, {"sick": ("1",)}, format="images")
    cohort = open_cohort(site, _classifier(make_experiment), tmp_path / "work")
    assert [case.present for case in cohort.cases] == [(True, False), (False, False), (True, False)]
    assert [case.annotated for case in cohort.cases] == [(True, False)] * 3
    assert cohort.presence("train") == {"sick": sum(c.present[0] for c in cohort.of("train"))}

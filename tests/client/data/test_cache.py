"""Prepared once, whole or not at all, and found again without opening a source."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedmed_client.data.cache import POINTS_PER_CLASS, class_points, ready_cache
from fedmed_client.data.cases import find_cases
from fedmed_client.data.cohort import open_cohort
from fedmed_client.data.preprocess import prepare
from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_client.data.workers import in_order
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError, LabelError

MakeExperiment = Callable[..., Experiment]
MakeSite = Callable[..., Site]
NUCLEUS = {"nucleus": ("1",)}


@pytest.fixture
def site(tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite) -> Site:
    root = photographs(tmp_path / "data", tuple(f"p{number}" for number in range(6)))
    return make_site(root, NUCLEUS, format="images")


def test_a_cache_holds_what_preparation_makes(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment()
    cohort = open_cohort(site, experiment, tmp_path / "work")
    for case, raw in zip(cohort.cases, find_cases(site, experiment).cases, strict=True):
        expected = prepare(*raw.load(), experiment.data)
        assert np.array_equal(case.image, expected.image)
        assert np.array_equal(case.label, expected.label)
        assert case.image.dtype == np.float32
        assert case.label.dtype == np.uint8


def test_the_second_opening_reads_no_source(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    first = open_cohort(site, make_experiment(), tmp_path / "work")
    for path in site.data.root.rglob("*.png"):
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = open_cohort(site, make_experiment(), tmp_path / "work")
    assert second.manifest_hash == first.manifest_hash
    assert [case.id for case in second.cases] == [case.id for case in first.cases]


def test_ids_are_random_and_change_nothing(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    first = open_cohort(site, make_experiment(), tmp_path / "one")
    second = open_cohort(site, make_experiment(), tmp_path / "two")
    assert not {case.id for case in first.cases} & {case.id for case in second.cases}
    assert first.manifest_hash == second.manifest_hash
    for one, two in zip(first.cases, second.cases, strict=True):
        assert np.array_equal(one.image, two.image)
        assert (one.patient, one.split) == (two.patient, two.split)


def test_what_makes_a_new_cache_and_what_does_not(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    work = tmp_path / "work"
    cache, _ = ready_cache(site, make_experiment(), work)
    same = [
        make_experiment(seed=5),
        make_experiment(patch=(16, 16)),
        make_experiment(data={"augmentation": "light", "splits": {"validation": 0.4}}),
    ]
    assert {ready_cache(site, experiment, work)[0] for experiment in same} == {cache}
    other = [
        make_experiment(("nucleus", "more")),
        make_experiment(data={"intensity": {"kind": "zscore"}}),
        make_experiment(data={"spacing_mm": (2, 2, 1)}),
    ]
    assert len({cache, *(ready_cache(site, experiment, work)[0] for experiment in other)}) == 4
    mapped = site.model_copy(update={"labels": {"nucleus": ("1", "2")}})
    assert ready_cache(mapped, make_experiment(), work)[0] != cache
    os.utime(site.data.root / "images/p0.png", ns=(1, 1))
    assert ready_cache(site, make_experiment(), work)[0] != cache


def test_one_unreadable_case_is_skipped_with_its_reason(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    damaged = site.data.root / "images/p2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    for _ in range(2):
        cohort = open_cohort(site, make_experiment(), tmp_path / "work")
        assert len(cohort.cases) == 5
        assert [(item.path, item.code) for item in cohort.skipped] == [(damaged, "unreadable-file")]


def test_no_usable_case_is_an_error_that_leaves_nothing(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    for path in site.data.root.rglob("labels/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"data: site 'hospital' has no usable case(.|\n)*p0(.|\n)*fix:"):
        open_cohort(site, make_experiment(), tmp_path / "work")
    assert [path.name for path in (tmp_path / "work/cache").iterdir()] == ["lock"]


def test_an_unmapped_name_stops_the_site(tmp_path: Path, site: Site, make_experiment: MakeExperiment) -> None:
    unmapped = site.model_copy(update={"labels": {"nucleus": ("cell",)}})
    with pytest.raises(LabelError, match="'1'"):
        open_cohort(unmapped, make_experiment(), tmp_path / "work")
    assert [path.name for path in (tmp_path / "work/cache").iterdir()] == ["lock"]


def test_a_damaged_cache_names_its_folder(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment
) -> None:
    cache, manifest = ready_cache(site, make_experiment(), tmp_path / "work")
    (cache / f"{manifest.cases[0].id}.image.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"delete this folder"):
        open_cohort(site, make_experiment(), tmp_path / "work")
    (cache / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=cache.name):
        open_cohort(site, make_experiment(), tmp_path / "work")


KILLED = """
import os, signal, sys
from pathlib import Path
from fedmed_client.data import cohort
from fedmed_common.config import Experiment, Site
written, real = 0, os.fsync
def fsync(descriptor):
    global written
    written += 1
    if written == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
site, experiment = Site.model_validate_json(sys.argv[1]), Experiment.model_validate_json(sys.argv[2])
cohort.open_cohort(site, experiment, Path(sys.argv[3]))
"""


@pytest.mark.parametrize("write", [1, 8, 15])
def test_a_kill_leaves_no_half_cache(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment, write: int
) -> None:
    experiment, work = make_experiment(), tmp_path / "work"
    arguments = [site.model_dump_json(), experiment.model_dump_json(), str(work), str(write)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -9
    assert {path.name[:9] for path in (work / "cache").iterdir()} == {"lock", ".building"}
    cohort = open_cohort(site, experiment, work)
    assert len(cohort.cases) == 6
    assert sorted(path.name[:9] for path in (work / "cache").iterdir()) == sorted(
        ["lock", ready_cache(site, experiment, work)[0].name[:9]]
    )


WORK = """
import multiprocessing, os, signal
from fedmed_common.errors import DataError
def square(number):
    if number == 7:
        raise DataError("seven")
    if number == 9 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number
def where(_):
    return os.getpid()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Functions in a module that a fresh process can import."""
    (tmp_path / "work_for_workers.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "work_for_workers", raising=False)
    return importlib.import_module("work_for_workers")


def _in_workers(work: Callable[[int], int], items: list[int]) -> list[int]:
    return in_order(work, items, lambda item: -item, title="", progress=False, worthwhile_seconds=-1.0)


def test_workers_give_the_same_results_in_order(work: ModuleType) -> None:
    items = [3, 1, 2, 5, 4]
    assert _in_workers(work.square, items) == in_order(work.square, items, abs, title="", progress=True)
    places = _in_workers(work.where, items)
    assert places[0] == os.getpid() not in places[1:]
    with pytest.raises(DataError, match="seven"):
        _in_workers(work.square, [1, 7, 2])


def test_an_item_that_no_worker_survives_costs_only_itself(work: ModuleType) -> None:
    assert _in_workers(work.square, [1, 2, 9, 3, 4]) == [1, 4, -9, 9, 16]


UNGUARDED = """
from fedmed_client.data.workers import in_order
print(in_order(str, [1, 2, 3], repr, title="", progress=False, worthwhile_seconds=-1.0))
"""


def test_where_no_worker_can_start_all_is_done_here(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout == "['1', '2', '3']\n"


def test_a_site_prepared_by_workers_is_the_same_site(
    tmp_path: Path, site: Site, make_experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_cohort(site, make_experiment(), tmp_path / "here")
    monkeypatch.setattr(in_order, "__kwdefaults__", {"worthwhile_seconds": -1.0})
    there = open_cohort(site, make_experiment(), tmp_path / "there")
    assert here.manifest_hash == there.manifest_hash


def test_points_show_their_class_and_are_bounded() -> None:
    label = np.zeros((40, 30, 20), np.uint8)
    label[:20] = 1
    label[30, 4, 5] = 3
    points = class_points(label, 3)
    assert [len(part) for part in points] == [POINTS_PER_CLASS, 0, 1]
    assert (label[tuple(points[0].T)] == 1).all()
    assert len(np.unique(points[0], axis=0)) == POINTS_PER_CLASS
    assert points[2].tolist() == [[30, 4, 5]]
    assert np.array_equal(points[0], class_points(label, 3)[0])


def test_slices_of_volumes_lie_together_for_2d(
    tmp_path: Path, write_volume: Callable[..., None], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    voxels = np.random.default_rng(0).random((6, 5, 4), np.float32) * 255
    write_volume(tmp_path / "data", "a", voxels, (voxels > 200).astype(np.uint8), np.diag([-1, -1, 2, 1.0]))
    site = make_site(tmp_path / "data", NUCLEUS, format="nifti")
    flat = open_cohort(site, make_experiment(), tmp_path / "work").cases[0]
    deep = open_cohort(site, make_experiment(patch=(8, 8, 8)), tmp_path / "work").cases[0]
    assert np.array_equal(flat.image, deep.image)
    assert flat.image[..., 0].flags.f_contiguous
    assert deep.image.flags.c_contiguous
    assert deep.oriented
    assert deep.spacing_mm == (1.0, 1.0, 2.0)


def test_a_decoder_installed_later_is_used(
    tmp_path: Path,
    write_slice: Callable[..., Path],
    make_site: MakeSite,
    make_experiment: MakeExperiment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nibabel

    root = tmp_path / "data"
    root.mkdir()
    for number in range(3):
        stored = np.arange(64, dtype=np.uint16).reshape(8, 8)
        write_slice(root / f"{number}.dcm", stored, ImagePositionPatient=[0.0, 0.0, float(number)])
    volume = load_series(scan(root).series[0])
    nibabel.save(nibabel.Nifti1Image(np.ones(volume.shape, np.uint8), volume.affine), root / "labels.nii.gz")
    site = make_site(root, NUCLEUS, format="dicom")
    with_all, _ = ready_cache(site, make_experiment(), tmp_path / "work")
    monkeypatch.setitem(sys.modules, "gdcm", None)
    without, _ = ready_cache(site, make_experiment(), tmp_path / "work")
    assert without != with_all

"""Which image belongs to which label and patient, and what is left out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmed_client.data.cases import find_cases, source_files
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError, LabelError

MakeExperiment = Callable[..., Experiment]
MakeSite = Callable[..., Site]
NUCLEUS = {"nucleus": ("1",)}


def test_pairs_by_stem_whatever_the_suffix(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    root = photographs(tmp_path, ("b", "a"))
    (root / "labels").rename(root / "masks")
    (root / "images/a.png").rename(root / "images/a.JPG")
    site = make_site(root, NUCLEUS, format="images", labels="masks")
    found = find_cases(site, make_experiment())
    assert [(case.patient, case.path.name) for case in found.cases] == [("a", "a.JPG"), ("b", "b.png")]
    assert found.skipped == ()
    volume, label = found.cases[1].load()
    assert volume.voxels.shape == (1, 16, 16, 1)
    assert np.array_equal(label, (volume.voxels[0] > 200).astype(np.uint8))


def test_what_has_no_partner_is_listed(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    root = photographs(tmp_path, ("a", "b", "c", "d"))
    (root / "labels/a.png").unlink()
    (root / "images/b.png").unlink()
    (root / "images/c.tif").write_bytes(b"")
    (root / "images/notes.txt").write_text("x")
    (root / "images/.hidden").write_text("x")
    found = find_cases(make_site(root, NUCLEUS, format="images"), make_experiment())
    assert [case.patient for case in found.cases] == ["d"]
    reasons = {(item.path.parent.name, item.path.name): item.reason for item in found.skipped}
    assert set(reasons) == {
        ("images", "a.png"),
        ("labels", "b.png"),
        ("images", "c.png"),
        ("images", "c.tif"),
        ("labels", "c.png"),
        ("images", "notes.txt"),
    }
    assert "without a label" in reasons["images", "a.png"]
    assert "without an image" in reasons["labels", "b.png"]
    assert "share" in reasons["images", "c.png"]


def test_the_pattern_names_the_patient(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    root = photographs(tmp_path, ("Image_02L", "Image_01R", "Image_01L", "other"))
    site = make_site(root, NUCLEUS, format="images", patient_pattern=r"^Image_(\d+)")
    found = find_cases(site, make_experiment())
    assert [(case.patient, case.path.stem) for case in found.cases] == [
        ("01", "Image_01L"),
        ("01", "Image_01R"),
        ("02", "Image_02L"),
    ]
    assert [item.path.stem for item in found.skipped] == ["other"]
    fewer = make_site(root, NUCLEUS, format="images", patient_pattern=r"^Image_(\d+)", maximum_cases=2)
    assert [case.patient for case in find_cases(fewer, make_experiment()).cases] == ["01", "01"]


def test_stored_type_divides_a_folder(
    tmp_path: Path, write_volume: Callable[..., None], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    write_volume(tmp_path, "a", np.ones((4, 4, 4), np.uint8), label, np.eye(4))
    write_volume(tmp_path, "b", np.ones((4, 4, 4), np.float32), label, np.eye(4))
    (tmp_path / "images/c.nii.gz").write_bytes(b"not a volume")
    (tmp_path / "labels/c.nii.gz").write_bytes(b"not a volume")
    site = make_site(tmp_path, NUCLEUS, format="nifti", stored_type="float32")
    found = find_cases(site, make_experiment())
    assert [case.patient for case in found.cases] == ["b"]
    assert [(item.path.name, item.code) for item in found.skipped] == [("c.nii.gz", "unreadable-file")]


@pytest.mark.parametrize(
    ("kind", "classes"), [("mask", {0, 1}), ("instances", {0, 1}), ("values", {0, 1, 2})]
)
def test_masks_instances_and_values(
    tmp_path: Path,
    photographs: Callable[..., Path],
    make_site: MakeSite,
    make_experiment: MakeExperiment,
    kind: str,
    classes: set[int],
) -> None:
    from PIL import Image

    root = photographs(tmp_path, ("a",))
    values = np.zeros((16, 16), np.uint8)
    values[2], values[3], values[4] = 1, 77, 255
    Image.fromarray(values).save(root / "labels/a.png")
    labels = {"nucleus": ("1", "255"), "other": ("77",)}
    site = make_site(root, labels, format="images", image_labels=kind)
    _, label = find_cases(site, make_experiment(("nucleus", "other"))).cases[0].load()
    assert set(np.unique(label).tolist()) == classes


def test_an_unmapped_name_is_an_error_that_lists_it(
    tmp_path: Path, write_volume: Callable[..., None], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[0, 0, 0], label[1, 1, 1] = 1, 9
    write_volume(tmp_path, "a", np.ones((4, 4, 4), np.float32), label, np.eye(4))
    case = find_cases(make_site(tmp_path, NUCLEUS, format="nifti"), make_experiment()).cases[0]
    with pytest.raises(LabelError, match="9"):
        case.load()
    ignoring = make_site(tmp_path, NUCLEUS, ("9",), format="nifti")
    _, mapped = find_cases(ignoring, make_experiment()).cases[0].load()
    assert mapped.sum() == 1


def test_missing_folders_are_named(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_cases(make_site(tmp_path / "nowhere", NUCLEUS, format="nifti"), make_experiment())
    root = photographs(tmp_path, ("a",))
    with pytest.raises(DataError, match="masks is not a folder"):
        find_cases(make_site(root, NUCLEUS, format="images", labels="masks"), make_experiment())


def test_a_case_can_be_sent_to_a_worker_and_shows_no_patient(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    root = photographs(tmp_path, ("Smith_John",))
    case = find_cases(make_site(root, NUCLEUS, format="images"), make_experiment()).cases[0]
    sent = pickle.loads(pickle.dumps(case))  # noqa: S301
    assert np.array_equal(sent.load()[1], case.load()[1])
    assert "Smith" not in repr(case)


def test_source_files_leave_out_the_working_folder(
    tmp_path: Path, photographs: Callable[..., Path], make_site: MakeSite
) -> None:
    root = photographs(tmp_path, ("a",))
    site = make_site(root, NUCLEUS, format="dicom")
    work = root / "work"
    before = source_files(site, excluding=work)
    work.mkdir()
    (work / "scan.index").write_text("x")
    assert source_files(site, excluding=work) == before
    assert [name for name, _, _ in before] == ["images/a.png", "labels/a.png"]

"""Splits by patient, cohorts of real sites, pooling and regrouping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmed_client.data.cohort import Case, Cohort, open_cohort, pool, regroup
from fedmed_client.data.samplers import build_sampler
from fedmed_client.data.splits import SPLITS, split_patients
from fedmed_common.config import Experiment, Site, Splits
from fedmed_common.errors import DataError
from fedmed_common.site_config import UNLABELLED
from fedmed_common.tasks import build_task
from fedmed_common.tasks.segmentation import Segmentation

MakeExperiment = Callable[..., Experiment]
MakeSite = Callable[..., Site]

PATIENTS = st.dictionaries(
    st.text(min_size=1, max_size=5), st.frozensets(st.integers(0, 3), max_size=4), max_size=40
)
SHARES = st.sampled_from([(0.2, 0.2), (0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.1, 0.8), (0.45, 0.45)])


@given(shows=PATIENTS, shares=SHARES, seed=st.integers(0, 2**63 - 1))
def test_splits_are_complete_deterministic_and_near_their_shares(
    shows: dict[str, frozenset[int]], shares: tuple[float, float], seed: int
) -> None:
    splits = Splits(validation=shares[0], test=shares[1])
    chosen = split_patients(shows, splits, seed)
    backwards = split_patients(dict(reversed(shows.items())), splits, seed)
    assert chosen == backwards
    assert chosen.keys() == shows.keys()
    counts = {split: list(chosen.values()).count(split) for split in SPLITS}
    wanted = dict(zip(SPLITS, (1 - sum(shares), *shares), strict=True))
    if len(shows) < 3:
        assert counts["train"] == len(shows)
        return
    for split in SPLITS:
        assert (counts[split] > 0) == (wanted[split] > 0)
    if all(share * len(shows) >= 1 for share in wanted.values() if share):
        for split in SPLITS:
            assert abs(counts[split] - wanted[split] * len(shows)) < 1 + 1e-9


@given(seed=st.integers(0, 1000), rare=st.integers(1, 12))
def test_a_rare_class_is_spread_and_trains_first(seed: int, rare: int) -> None:
    shows = {f"p{number:02}": {0, 1} if number < rare else {0} for number in range(40)}
    chosen = split_patients(shows, Splits(validation=0.25, test=0.25), seed)
    held = {
        split: sum(chosen[key] == split for key, classes in shows.items() if 1 in classes) for split in SPLITS
    }
    assert held["train"] >= 1
    assert abs(held["validation"] - rare / 4) <= 1
    assert abs(held["test"] - rare / 4) <= 1
    if rare >= 4:
        assert held["validation"] >= 1
        assert held["test"] >= 1


def test_the_seed_decides() -> None:
    shows: dict[str, set[int]] = {f"p{number}": set() for number in range(30)}
    assert split_patients(shows, Splits(), 1) != split_patients(shows, Splits(), 2)


def test_both_eyes_of_a_child_are_on_one_side(
    fedmed_data: Path, tmp_path: Path, make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    site = make_site(
        fedmed_data / "retina/small/site_kingston",
        {"vessel": ("1",)},
        format="images",
        labels="masks",
        patient_pattern=r"^Image_(\d+)",
        maximum_cases=12,
    )
    experiment = make_experiment(("vessel",), (16, 16), data={"channels": 3})
    cohort = open_cohort(site, experiment, tmp_path)
    assert len(cohort.cases) == 12
    assert {split: cohort.patients(split) for split in SPLITS} == {"train": 4, "validation": 1, "test": 1}
    assert cohort.presence() == {"vessel": 4}
    for patient in range(6):
        eyes = [case for case in cohort.cases if case.patient == patient]
        assert len(eyes) == 2
        assert eyes[0].split == eyes[1].split
    case = cohort.cases[0]
    assert case.image.shape == (3, *case.label.shape)
    assert 0 <= case.image.min() < case.image.max() <= 1
    assert not case.image.flags.writeable


def test_hippocampus_by_stored_type(
    fedmed_data: Path, tmp_path: Path, make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    labels = {"anterior": ("1",), "posterior": ("2",)}
    root = fedmed_data / "volumes/hippocampus"
    site = make_site(root, labels, format="nifti", stored_type="uint8", maximum_cases=6)
    experiment = make_experiment(
        ("anterior", "posterior"), (16, 16, 16), data={"intensity": {"kind": "zscore"}}
    )
    cohort = open_cohort(site, experiment, tmp_path)
    assert cohort.skipped == ()
    assert cohort.presence("train") == {"anterior": 4, "posterior": 4}
    for case in cohort.cases:
        for klass in (1, 2):
            assert (case.label[tuple(case.points[klass - 1].T)] == klass).all()
        assert abs(case.image.mean()) < 1


def test_every_series_with_its_rtstruct(
    fedmed_data: Path, tmp_path: Path, make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    import nibabel

    root = fedmed_data / "dicom/rtstruct/STS_025"
    names = ("GTV_Mass_MR_T1", "GTV_Mass_CT", "GTV_Mass_PET")
    cohort = open_cohort(
        make_site(root, {"mass": names}, format="dicom"), make_experiment(("mass",), (8, 8, 8)), tmp_path
    )
    expected = sorted(
        int(np.asarray(nibabel.load(path).dataobj).astype(bool).sum())
        for path in root.glob("*/expected_mask.nii.gz")
    )
    assert sorted(int((case.label > 0).sum()) for case in cohort.cases) == expected
    assert {case.patient for case in cohort.cases} == {0}
    assert {item.path.name for item in cohort.skipped} == {"expected_mask.nii.gz"}
    only_ct = make_site(root, {"mass": names}, format="dicom", modality="CT")
    assert len(open_cohort(only_ct, make_experiment(("mass",), (8, 8, 8)), tmp_path).cases) == 1


def test_a_nifti_label_in_a_series_folder(
    fedmed_data: Path, tmp_path: Path, make_site: MakeSite, make_experiment: MakeExperiment
) -> None:
    folder = tmp_path / "data/series"
    folder.mkdir(parents=True)
    for path in (fedmed_data / "dicom/rtstruct/STS_008/MR_T1").iterdir():
        target = "labels.nii.gz" if path.name == "expected_mask.nii.gz" else path.name
        if path.name != "RS.dcm":
            (folder / target).write_bytes(path.read_bytes())
    experiment = make_experiment(("mass",), (8, 8, 8))
    site = make_site(tmp_path / "data", {"mass": ("1",)}, format="dicom")
    cohort = open_cohort(site, experiment, tmp_path / "work")
    assert cohort.skipped == ()
    drawn = make_site(fedmed_data / "dicom/rtstruct/STS_008", {"mass": ("GTV_Mass_MR_T1",)}, format="dicom")
    other = open_cohort(drawn, experiment, tmp_path / "other")
    assert cohort.manifest_hash == other.manifest_hash


def _cohort(
    name: str, make_case: Callable[..., Case], patients: int, classes: tuple[str, ...] = ("a",)
) -> Cohort:
    label = np.ones((4, 4, 1))
    cases = tuple(
        make_case(np.zeros((1, 4, 4, 1)), label, patient=number, split=SPLITS[number % 3])
        for number in range(patients)
        for _ in range(2)
    )
    return Cohort(site=name, classes=classes, cases=cases, manifest_hash=name, skipped=())


def test_pooling_keeps_patients_apart_and_splits(make_case: Callable[..., Case]) -> None:
    first, second = _cohort("x", make_case, 3), _cohort("y", make_case, 5)
    both = pool([first, second], "all")
    assert len({case.patient for case in both.cases}) == 8
    assert [case.split for case in both.cases] == [case.split for case in first.cases + second.cases]
    for split in SPLITS:
        assert both.patients(split) == first.patients(split) + second.patients(split)
    assert both.manifest_hash == pool([first, second], "other").manifest_hash
    assert both.manifest_hash != pool([second, first], "all").manifest_hash
    with pytest.raises(DataError, match="same classes"):
        pool([first, _cohort("z", make_case, 2, ("b",))], "all")


def test_regrouping_takes_whole_patients(make_case: Callable[..., Case]) -> None:
    cohort = _cohort("x", make_case, 5)
    part = regroup(cohort, "part", [3, 1])
    assert [case.patient for case in part.cases] == [1, 1, 3, 3]
    assert part.site == "part"
    assert part.manifest_hash == regroup(cohort, "part", {1, 3}).manifest_hash != cohort.manifest_hash
    assert regroup(cohort, "nobody", []).cases == ()
    with pytest.raises(DataError, match=r"\[9\]"):
        regroup(cohort, "part", [1, 9])


def test_presence_counts_patients_of_annotated_classes(make_case: Callable[..., Case]) -> None:
    label = np.zeros((4, 4, 1))
    label[0, 0, 0] = 1
    cases = [
        make_case(np.zeros((1, 4, 4, 1)), label, patient=0, classes=3, annotated=(True, True, False)),
        make_case(np.zeros((1, 4, 4, 1)), label, patient=0, classes=3, annotated=(True, True, False)),
        make_case(np.zeros((1, 4, 4, 1)), label * 0, patient=1, classes=3, annotated=(True, True, False)),
    ]
    cohort = Cohort(site="x", classes=("a", "b", "c"), cases=tuple(cases), manifest_hash="", skipped=())
    assert cohort.presence() == {"a": 1, "b": 0}
    assert cohort.patients("train") == 2


def test_what_nobody_looked_at_trains_nothing_and_scores_nothing(
    tmp_path: Path, make_experiment: MakeExperiment, make_site: MakeSite, photographs: Callable[..., Path]
) -> None:
    """Sparse annotation from files to loss and score: 0 in the pictures was not looked at, 1 is background, 2 the class."""
    root = photographs(tmp_path / "data", ("a", "b", "c"))
    for number in range(3):
        values = np.zeros((16, 16), np.uint8)
        values[4:9], values[6:9, 2 * number : 10] = 1, 2
        Image.fromarray(values).save(root / "labels" / f"{'abc'[number]}.png")
    asked = make_experiment(patch=(16, 16), data={"splits": {"validation": 0.0, "test": 0.0}})
    site = make_site(
        root, {"nucleus": ("2",), "unlabelled": ("0",)}, ("1",), format="images", image_labels="values"
    )
    cohort = open_cohort(site, asked, tmp_path / "home")
    cases = cohort.of("train")
    assert [sorted(np.unique(case.label).tolist()) for case in cases] == [[0, 1, UNLABELLED]] * 3
    assert cohort.presence("train") == {"nucleus": 3}
    image, target, annotated = build_sampler(cases, asked).batch(np.random.default_rng(0))
    hidden = target == UNLABELLED
    assert hidden.float().mean() > 0.5
    task = build_task(asked)
    assert isinstance(task, Segmentation)
    logits = torch.randn(len(image), 2, 16, 16, requires_grad=True)
    task.loss(logits, target, annotated).backward()
    assert logits.grad is not None
    assert not logits.grad[hidden[:, None].expand_as(logits)].any()
    everywhere = np.ones(cases[0].label.shape, np.uint8)
    looked_at = np.where(cases[0].label == UNLABELLED, 0, everywhere)
    scores = [task.score(one, cases[0].label, (True,), (1.0, 1.0, 1.0)) for one in (everywhere, looked_at)]
    assert scores[0] == scores[1]

"""A site's table of labels: what is wrong with it is said by file, row and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmed_client.data.dicom_cases import dicom_cases
from fedmed_client.data.index import Skipped
from fedmed_client.data.label_table import read_table
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError, LabelError

Make = Callable[..., Any]
LABELS = {"sick": ("ill",), "well": ("healthy",)}


@pytest.fixture
def experiment(make_experiment: Make) -> Experiment:
    made: Experiment = make_experiment(
        task={"name": "classification", "classes": ("sick", "well"), "dimensions": 2},
        model={"name": "resnet", "width": 0.25},
    )
    return made


def _read(root: Path, text: str, experiment: Experiment, make_site: Make, **more: Any) -> dict[str, Any]:
    (root / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    site = make_site(root, LABELS, ("age",), **{"format": "images", "labels_from": "table", **more})
    return dict(read_table(site, experiment, lambda _key, cell: cell.casefold()).shows)


def test_both_forms_say_the_same(tmp_path: Path, experiment: Experiment, make_site: Make) -> None:
    columns = "file,ill,Healthy\na,1,0\nb,false,TRUE\n\nc,yes,1\nd,0,no\n"
    names = 'file,label\nA,ILL\nb,healthy\nc,"ill; healthy"\nd,\n'
    expected = {"a": (True, False), "b": (False, True), "c": (True, True), "d": (False, False)}
    assert _read(tmp_path, columns, experiment, make_site) == expected
    assert _read(tmp_path, names, experiment, make_site) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ("labels.csv", "is empty")),
        ("name,label\na,ill\n", ("labels.csv", "'name', 'label'", "one column file")),
        ("file,file,ill\n", ("labels.csv, row 1", "'file' is there twice")),
        ("file\na\n", ("labels.csv", "no column of labels")),
        ("file,ill\na,1\n", ("labels.csv", "no column stands for the class 'well'")),
        ("file,ill,healthy,odd\na,1,0,1\n", ("labels.csv", "lists no class for the label 'odd'")),
        ("file,ill,healthy\na,1,0\nb,1\n", ("labels.csv, row 3", "has 2 cells; the header has 3")),
        ("file,ill,healthy\na,1,\n", ("row 2, column 'healthy'", "neither 1 nor 0")),
        ("file,ill,healthy\na,1,2\n", ("row 2, column 'healthy'", "'2' is neither 1 nor 0")),
        ("file,label\n,ill\n", ("row 2, column 'file'", "is empty")),
        ("file,label\na,ill\n\nA,healthy\n", ("row 4, column 'file'", "'a' stands in row 2 too")),
        ("file,label\na,flu\n", ("row 2, column 'label'", "lists no class for the label 'flu'")),
        ('file,label\na,"ill\n', ("not readable as CSV",)),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, experiment: Experiment, make_site: Make, text: str, said: tuple[str, ...]
) -> None:
    with pytest.raises((LabelError, DataError)) as error:
        _read(tmp_path, text, experiment, make_site)
    assert [part for part in said if part not in str(error.value)] == []


def test_a_missing_table_and_a_task_that_needs_masks(
    tmp_path: Path, experiment: Experiment, make_site: Make, make_experiment: Make
) -> None:
    site = make_site(tmp_path, LABELS, format="images", labels_from="table")
    with pytest.raises(DataError, match=r"labels\.csv is not there"):
        read_table(site, experiment, lambda _key, cell: cell)
    with pytest.raises(DataError, match=r"fix: data\.labels_from = 'masks'"):
        read_table(site, make_experiment(), lambda _key, cell: cell)


@pytest.mark.parametrize("column", ["PatientID", "SeriesInstanceUID"])
def test_dicom_is_found_by_patient_or_series(
    tmp_path: Path, experiment: Experiment, make_site: Make, write_slice: Make, column: str
) -> None:
    import numpy as np

    for number, patient in enumerate(("P|1", "P2", "P3")):
        write_slice(
            tmp_path / f"{number}.dcm",
            np.full((4, 4), number, np.int16),
            PatientID=patient,
            SeriesInstanceUID=f"2.25.1{number}",
            StudyInstanceUID=f"2.25.2{number}",
            IssuerOfPatientID="north" if number else None,
        )
    keys = {"PatientID": (" p|1", "P3", "P9"), "SeriesInstanceUID": ("2.25.10", "2.25.12", "2.25.99")}[column]
    lines = [f"{column},label", f"{keys[0]},ill", f"{keys[1]},healthy", f"{keys[2]},ill"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    site = make_site(tmp_path, LABELS, format="dicom", labels_from="table")
    skipped: list[Skipped] = []
    cases = list(dicom_cases(site, experiment, skipped, index_file=None, progress=False))
    assert {case.path.name: case.shows for case in cases} == {"0.dcm": (True, False), "2.dcm": (False, True)}
    assert not cases[0].load()[1].any()
    reasons = {item.path.name: item.reason for item in skipped if item.code != "not-dicom"}
    assert reasons["1.dcm"].startswith(f"its {column} has no row")
    assert "row 4" in reasons["labels.csv"]
    assert "P9" not in reasons["labels.csv"]

"""DICOM by vendor: out of the headers, or out of an index file by PatientID."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmed_client.data.columns import values_by_patient
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_site
from fedmed_simulations.federation import make_homes
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import LESIONS, PhantomSettings
from fedmed_simulations.phantom.write import write_federation

SETTINGS = PhantomSettings(sites=2, patients=2, shape=(32, 32, 16), seed=7)
PLANS = plan_federation(SETTINGS)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    """Two small hospitals with scanners of two vendors."""
    folder = tmp_path_factory.mktemp("federation")
    assert write_federation(folder, SETTINGS, workers=1)
    return [load_site(folder / plan.name / "site.toml") for plan in PLANS]


def _experiment(partition: dict[str, object]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "rounds": 1,
            "task": {"classes": ("liver", *LESIONS), "dimensions": 3},
            "data": {"patch": (16, 16, 16)},
            "model": {"channels": (4, 8)},
            "simulation": {"federation": "somewhere", "partition": partition},
        }
    )


def test_headers_say_the_vendor(sites: list[Site], tmp_path: Path) -> None:
    experiment = _experiment({"kind": "column", "column": "Manufacturer"})
    homes = make_homes(experiment, sites, tmp_path)
    names = sorted({plan.scanner.manufacturer.casefold().replace(" ", "-") for plan in PLANS})
    assert [home.site.name for home in homes] == names
    assert len(names) == 2
    assert [home.cohort(experiment).patients("train") for home in homes] == [2, 2]


def test_an_index_goes_by_patient(sites: list[Site], tmp_path: Path) -> None:
    rows = [f"{patient.id.upper()} ,{patient.index}\n" for patient in PLANS[0].patients]
    index = tmp_path / "index.csv"
    index.write_text("PatientID,dose\n" + "".join(rows))
    experiment = _experiment({"kind": "even", "sites": 2})
    assert values_by_patient(sites[0], experiment, tmp_path / "home", "dose", index) == {0: "0", 1: "1"}
    index.write_text("file,dose\na,1\n")
    with pytest.raises(ConfigError, match="format dicom needs a column PatientID"):
        values_by_patient(sites[0], experiment, tmp_path / "home", "dose", index)

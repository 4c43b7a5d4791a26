"""A receiver that looks at what is pushed to it, as the process that a hospital runs; structure sets, and looks with dropout."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pynetdicom import AE

from fedmed_client.data.rtstruct import read_rtstruct, region_names
from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_client.predict.apply import predict
from fedmed_client.predict.arriving import Arriving
from fedmed_client.predict.page import PAGE
from fedmed_client.predict.study import Wish, predict_study
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_site
from fedmed_simulations.rehearsal.machines import FEDMED, free_ports

from .test_predict import CLASSES, experiment_of, hospital, released

__all__ = ["hospital"]

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def pushed(files: list[Path], port: int) -> None:
    """As an archive pushes."""
    entity, datasets = AE(ae_title="ARCHIVE"), [pydicom.dcmread(file) for file in files]
    for dataset in datasets:
        if len(entity.requested_contexts) == 0:
            entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    entity.connection_timeout = entity.acse_timeout = 60.0
    association = entity.associate("127.0.0.1", port, ae_title="FEDMED")
    assert association.is_established
    assert {association.send_c_store(dataset).Status for dataset in datasets} == {0}
    association.release()


def test_every_study_that_arrives_is_looked_at_once_it_is_complete(hospital: Path, tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path / "model")
    (port,) = free_ports(1)
    home, results = tmp_path / "home", tmp_path / "results"
    home.mkdir()
    text = re.sub(r"root = .*", 'root = "."', (hospital / "site.toml").read_text())
    pacs = f'\n[pacs]\nhost = "127.0.0.1"\nown_port = {port}\n[limits]\nleast_free_gb = 0.0\n'
    (home / "site.toml").write_text(text + pacs)
    command = [
        *FEDMED,
        "site",
        "receive",
        str(home / "in"),
        "--home",
        str(home),
        "--predict",
        str(model.file),
    ]
    process = subprocess.Popen(
        [*command, "--to", str(results), "--quiet", "1"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert "listens at" in process.stdout.readline()
        series = scan(hospital / "dicom").series
        pushed([file for one in series for file in one.files], port)
        end = time.monotonic() + 120
        while len(list(results.glob(f"*/{PAGE}"))) < len(series):
            assert time.monotonic() < end, "it was not looked at"
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=150)
    assert process.returncode == 0 and said.count(" ml") >= len(series)
    for one in series:
        volume = load_series(one)
        (study,) = {pydicom.dcmread(file).StudyInstanceUID for file in one.files}
        (made,) = (results / study).glob("*.dcm")
        label = predict([model], volume).label
        assert len(pydicom.dcmread(made).SegmentSequence) == len(np.unique(label[label > 0]))


def test_what_was_not_looked_at_before_an_end_is_looked_at_after_it(hospital: Path, tmp_path: Path) -> None:
    models = [released(experiment_of(), tmp_path / "model")]
    site = load_site(hospital / "site.toml")
    stored: list[Path] = []
    arriving = Arriving(
        folder=hospital,
        results=tmp_path / "results",
        models=models,
        wanted=site.data,
        wish=Wish(),
        quiet_seconds=0.0,
        store=stored.extend,
    )
    arriving.open()
    assert arriving.next() == "dicom"
    assert arriving.next() is None
    assert len(arriving.look("dicom")) == len(stored) == 2
    assert all(file.is_file() for file in stored)
    arriving.open()
    assert arriving.next() is None
    arriving.note("dicom")
    assert arriving.next() == "dicom"


def test_a_structure_set_is_read_as_the_very_mask(hospital: Path, tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path)
    site = load_site(hospital / "site.toml")
    wish = Wish(structures=True)
    series = {one.uid: one for one in scan(hospital / "dicom").series}
    for outcome in predict_study(hospital / "dicom", [model], tmp_path / "out", site.data, wish):
        structures, _ = outcome.files
        volume = load_series(series[outcome.series])
        label = predict([model], volume).label
        names = [known[0] for known in region_names(structures)]
        for name, mask in zip(names, read_rtstruct(structures, volume), strict=True):
            assert np.array_equal(mask, label == CLASSES.index(name) + 1)
        header = pydicom.dcmread(structures)
        assert model.digest in header.StructureSetDescription
        assert {roi.ROIGenerationAlgorithm for roi in header.StructureSetROISequence} == {"AUTOMATIC"}


def test_with_dropout_at_work_looks_differ_and_each_time_alike(hospital: Path, tmp_path: Path) -> None:
    site = load_site(hospital / "site.toml")
    plain = released(experiment_of(), tmp_path / "plain")
    dropping = experiment_of(model={"name": "unet", "channels": [4, 8], "dropout": 0.3})
    model = released(dropping, tmp_path / "dropping")
    (one, _) = scan(hospital / "dicom").series
    volume = load_series(one)
    looks = [predict([model], volume, dropouts=3) for _ in range(2)]
    assert looks[0].looks == 3 and looks[0].doubt is not None and looks[0].doubt.max() > 0
    assert np.array_equal(looks[0].label, looks[1].label)
    assert np.array_equal(looks[0].doubt, looks[1].doubt)
    assert predict([model], volume).doubt is None
    with pytest.raises(ConfigError, match="without dropout"):
        list(predict_study(hospital / "dicom", [plain], tmp_path / "out", site.data, Wish(dropouts=2)))

"""A receiver that looks at what is pushed to it, as the process that a hospital runs; structure sets, and looks with dropout."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pynetdicom import AE

from fedmed_client.data.rtstruct import read_rtstruct, region_names
from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_client.data.volume import Volume
from fedmed_client.pacs.keeping import Incoming
from fedmed_client.predict.apply import predict
from fedmed_client.predict.arriving import Arriving
from fedmed_client.predict.page import PAGE
from fedmed_client.predict.segmentation import Provenance
from fedmed_client.predict.structures import write_structures
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


def test_what_was_not_looked_at_or_not_stored_before_an_end_is_after_it(
    hospital: Path, tmp_path: Path
) -> None:
    shutil.copytree(hospital, tmp_path / "in")
    stored: list[Path] = []

    def away(_files: Sequence[Path]) -> None:
        raise OSError("the archive is away")

    fields: dict[str, Any] = {
        "folder": tmp_path / "in",
        "results": tmp_path / "results",
        "models": [released(experiment_of(), tmp_path / "model")],
        "wanted": load_site(hospital / "site.toml").data,
        "wish": Wish(),
        "quiet_seconds": 0.0,
    }
    first = Arriving(**fields, store=away)
    first.open()
    assert first.next() == "dicom"
    assert first.next() is None
    with pytest.raises(OSError, match="away"):
        first.look("dicom")
    second = Arriving(**fields, store=stored.extend)
    second.open()
    assert second.next() == "dicom"
    assert second.look("dicom") == []
    assert len(stored) == 2 and all(file.is_file() for file in stored)
    second.open()
    assert second.next() is None
    added = next((tmp_path / "in" / "dicom").rglob("*.dcm"))
    shutil.copy(added, added.with_name("more.dcm"))
    third = Arriving(**fields, store=stored.extend)
    third.open()
    assert third.next() == "dicom"
    assert len(third.look("dicom")) == 2 and len(stored) == 4


def test_a_study_that_cannot_be_looked_at_is_not_tried_for_ever(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arriving = Arriving(
        folder=hospital,
        results=tmp_path / "results",
        models=[released(experiment_of(), tmp_path / "model")],
        wanted=load_site(hospital / "site.toml").data,
        wish=Wish(),
        quiet_seconds=0.0,
    )
    monkeypatch.setattr("fedmed_client.predict.arriving.predict_study", lambda *_: 1 / 0)
    arriving.open()
    with pytest.raises(ZeroDivisionError):
        arriving.look(str(arriving.next()))
    arriving.open()
    assert arriving.next() is None


def test_a_segmentation_that_comes_back_is_no_new_study(hospital: Path, tmp_path: Path) -> None:
    noted: list[str] = []
    incoming = Incoming(tmp_path / "in", least_free_gb=0.0, on_kept=noted.append)
    incoming.open()
    for file in sorted(hospital.rglob("*.dcm")):
        incoming.keep(file.read_bytes())
    images = [one for one in hospital.rglob("*.dcm") if pydicom.dcmread(one).Modality in ("CT", "MR")]
    assert len(noted) == len(images) < len(list(hospital.rglob("*.dcm")))


def test_a_structure_set_is_read_as_the_very_mask(hospital: Path, tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path)
    site = load_site(hospital / "site.toml")
    wish = Wish(structures=True)
    series = {one.uid: one for one in scan(hospital / "dicom").series}
    for outcome in predict_study(hospital / "dicom", [model], tmp_path / "out", site.data, wish):
        _, structures = outcome.files
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


def test_long_contours_are_numbers_to_every_reader(hospital: Path, tmp_path: Path) -> None:
    model = released(experiment_of(), tmp_path)
    (series, _) = scan(hospital / "dicom").series
    volume = load_series(series)
    ragged = np.zeros(volume.shape, np.uint8)
    ragged[1:-1:2, 1:-1] = 1
    ragged[1:-1, 1] = 1
    wide = Volume(voxels=np.repeat(np.repeat(volume.voxels, 4, 1), 4, 2), affine=volume.affine)
    label = np.repeat(np.repeat(ragged, 4, 0), 4, 1)
    made = write_structures(label, wide, series, Provenance(models=[model], looks=1), tmp_path / "out")
    assert made is not None
    contours = pydicom.dcmread(made).ROIContourSequence[0].ContourSequence
    longest = max(contours, key=lambda one: one.NumberOfContourPoints)
    assert longest.NumberOfContourPoints > 2_500
    assert len(longest.ContourData) == 3 * longest.NumberOfContourPoints
    assert isinstance(float(longest.ContourData[0]), float)

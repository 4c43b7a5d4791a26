"""A picture archive on loopback (Orthanc), and small series to put into it."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fedmed_common.site_config import Pacs
from fedmed_simulations.rehearsal.machines import free_ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Orthanc:
    """A running one: its ports, and the port at which it expects us."""

    http: int
    dicom: int
    ours: int

    def pacs(self, kind: str) -> Pacs:
        """How a site's file names it."""
        if kind == "dicomweb":
            url = f"http://127.0.0.1:{self.http}/dicom-web"
            return Pacs(url=url, user="it", password_variable="PACS_PASSWORD")  # noqa: S106
        return Pacs(
            host="127.0.0.1", port=self.dicom, title="ORTHANC", move=kind == "move", own_port=self.ours
        )


@pytest.fixture(autouse=True)
def _sockets_that_pynetdicom_leaves_open() -> Iterator[None]:
    """After a connection that was refused: collected here, where it warns nobody, and not during another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Ended by its own handle."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("no picture archive: apt-get install orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom, ours = free_ports(3)
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"it": "word"},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomModalities": {"ours": ["FEDMED", "127.0.0.1", ours]},
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait_for(http)
        yield Orthanc(http=http, dicom=dicom, ours=ours)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/system", auth=("it", "word")).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("Orthanc does not answer")


def write_series(
    folder: Path,
    images: int = 3,
    *,
    patient: str = "N-1",
    modality: str = "CT",
    description: str = "Abdomen venous",
    day: str = "20240131",
    accession: str = "A1",
) -> list[Path]:
    """A small series in a study of its own: its files."""
    folder.mkdir(parents=True, exist_ok=True)
    study, one = generate_uid(), generate_uid()
    return [
        _image(folder / f"{number}.dcm", number, study, one, patient, modality, description, day, accession)
        for number in range(images)
    ]


def _image(path: Path, number: int, study: str, series: str, *texts: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, series
    (
        dataset.PatientID,
        dataset.Modality,
        dataset.SeriesDescription,
        dataset.StudyDate,
        dataset.AccessionNumber,
    ) = texts
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "Miller^Ada", "19500102", "F"
    dataset.StudyTime, dataset.StudyID, dataset.ReferringPhysicianName = "101112", "7", "House^Greg"
    dataset.InstanceNumber, dataset.Rows, dataset.Columns = number + 1, 16, 16
    dataset.ImagePositionPatient = [0, 0, 2 * number]
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    pixels = np.random.default_rng(number).integers(0, 1000, (16, 16)).astype(np.int16)
    dataset.set_pixel_data(pixels, "MONOCHROME2", 16, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path

"""DICOM files made for one test, and a site of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedmed_client.workbench import SiteHome
from fedmed_common.config import Site


class WriteSlice(Protocol):
    """Writes one MR slice; ``tags`` replace or add elements by keyword, None removes one. Returns its path."""

    def __call__(self, path: Path, stored: NDArray[Any], **tags: Any) -> Path: ...


@pytest.fixture
def write_slice() -> WriteSlice:
    return _write_slice


def _write_slice(path: Path, stored: NDArray[Any], **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    bits = stored.dtype.itemsize * 8
    elements = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": f"2.25.{int.from_bytes(path.name.encode()[:15]) + 1}",
        "StudyInstanceUID": "2.25.1",
        "SeriesInstanceUID": "2.25.2",
        "FrameOfReferenceUID": "2.25.3",
        "PatientID": "P1",
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [2.0, 3.0],
        "SliceThickness": 9.0,
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": np.ascontiguousarray(stored).tobytes(),
    }
    dataset = Dataset()
    for keyword, value in {**elements, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """Ten photographs, each of a patient."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        Image.fromarray(rng.integers(0, 200, (24, 24), np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray((rng.random((24, 24)) > 0.5).astype(np.uint8)).save(root / "labels" / f"{number}.png")
    site = Site.model_validate(
        {
            "name": "alpha",
            "data": {"format": "images", "root": root},
            "labels": {"disc": ["1"]},
            "policy": {"least_patients": 3},
        }
    )
    return SiteHome(site=site, folder=tmp_path / "home")

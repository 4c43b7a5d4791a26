"""A label map as RTSTRUCT (PS3.3 A.19): closed planar contours on the slices.

A contour runs halfway between the voxel centres inside and those outside, so filling all contours of a slice by the
even-odd rule at voxel centres gives the mask back exactly; holes and separate parts are contours of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours

from fedmed_client.data.grid import LPS_TO_RAS
from fedmed_client.data.index import Series
from fedmed_client.data.series import depths_of
from fedmed_client.data.volume import Volume
from fedmed_client.predict.coding import coded
from fedmed_client.predict.segmentation import MAY_BE_EMPTY, Provenance
from fedmed_client.preflight.thumbnails import colour_of
from fedmed_common.errors import DataError

DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_SERIES_NUMBER = 9_002
_LONGEST, _LONGEST_SHORT = 64, 16


def trace(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed contours of a slice ``(X, Y)``, each ``(N, 2)`` in voxel indices, its first point not repeated."""
    occupied = np.argwhere(mask)
    if not len(occupied):
        return
    low, high = occupied.min(axis=0), occupied.max(axis=0) + 1
    cropped = np.pad(mask[low[0] : high[0], low[1] : high[1]], 1).astype(np.float64)
    for contour in find_contours(cropped, 0.5):
        yield contour[:-1] + (low - 1)


def roi_contours(
    number: int,
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    images: Sequence[Dataset],
    colour: Sequence[int],
) -> Dataset:
    """An item of the ROI Contour Sequence. ``mask``: ``(X, Y, Z)``; ``affine``: voxel index to LPS; ``images``: of each slice."""
    items = []
    for k, image in enumerate(images):
        for points in trace(mask[:, :, k]):
            places = points @ affine[:3, :2].T + (affine[:3, 2] * k + affine[:3, 3])
            item = Dataset()
            item.ContourImageSequence = DicomSequence([_reference(image)])
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [f"{value:.4f}" for value in places.ravel().tolist()]
            items.append(item)
    roi = Dataset()
    roi.ROIDisplayColor = list(colour)
    roi.ContourSequence = DicomSequence(items)
    roi.ReferencedROINumber = number
    return roi


def referenced_frame(images: Sequence[Dataset]) -> Dataset:
    """An item of the Referenced Frame of Reference Sequence: the images that contours lie on."""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = DicomSequence([_reference(image) for image in images])
    study.ReferencedSOPClassUID = DETACHED_STUDY
    study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = DicomSequence([series])
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = DicomSequence([study])
    return frame


def write_structures(
    label: NDArray[np.uint8], volume: Volume, series: Series, provenance: Provenance, folder: Path
) -> Path | None:
    """Write the structure set of a series into the folder, as ``<instance>.dcm``. None: no class is in it.

    ``label``: ``(X, Y, Z)`` on the voxels of the volume, which is that of ``load_series``.

    Raises:
        DataError: the series is no stack of single images in space, on which alone contours can lie.
    """
    classes = provenance.models[0].experiment.task.classes
    shown = [number for number in range(1, len(classes) + 1) if (label == number).any()]
    if not shown:
        return None
    images = _images(series)
    made = _header(images[0], provenance)
    made.ReferencedFrameOfReferenceSequence = DicomSequence([referenced_frame(images)])
    affine = LPS_TO_RAS @ volume.affine
    rois, contours, observations = [], [], []
    for place, number in enumerate(shown, start=1):
        name = classes[number - 1]
        rois.append(_roi(place, name, str(images[0].FrameOfReferenceUID)))
        colour = [int(colour_of(number)[at : at + 2], 16) for at in (1, 3, 5)]
        contours.append(roi_contours(place, label == number, affine, images, colour))
        observations.append(_observation(place, name))
    made.StructureSetROISequence = DicomSequence(rois)
    made.ROIContourSequence = DicomSequence(contours)
    made.RTROIObservationsSequence = DicomSequence(observations)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.SOPInstanceUID}.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def _images(series: Series) -> list[Dataset]:
    """Headers of the slices, in the volume's order."""
    placed = depths_of(series)
    headers = [dcmread(path, stop_before_pixels=True, force=True) for path in series.files]
    alone = len(headers) == len(placed.depths) and not any(
        int(h.get("NumberOfFrames") or 1) > 1 for h in headers
    )
    if placed.is_picture or not alone or "FrameOfReferenceUID" not in headers[0]:
        raise DataError(
            "contours lie on single images in space, and it is not made of those; take its DICOM SEG"
        )
    return [headers[file] for file in sorted(placed.depths, key=lambda file: placed.depths[file])]


def _header(image: Dataset, provenance: Provenance) -> FileDataset:
    """Patient and study of the image; a series and an instance of its own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = (
        ImplicitVRLittleEndian  # contours of over 64 KiB, which explicit lengths do not hold
    )
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in (
        *MAY_BE_EMPTY,
        "IssuerOfPatientID",
        "StudyInstanceUID",
        "StudyDescription",
        "FrameOfReferenceUID",
    ):
        if keyword in image:
            header[keyword] = image[keyword]
        elif keyword in MAY_BE_EMPTY:
            setattr(header, keyword, "")
    first, now = provenance.models[0], datetime.now(UTC)
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PositionReferenceIndicator = str(image.get("PositionReferenceIndicator") or "")
    header.SOPClassUID, header.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    header.Modality, header.SeriesInstanceUID, header.SeriesNumber = (
        "RTSTRUCT",
        generate_uid(),
        _SERIES_NUMBER,
    )
    header.SeriesDescription = f"fedmed {first.experiment.name}"[:_LONGEST]
    header.OperatorsName = ""
    header.Manufacturer, header.ManufacturerModelName = "fedmed", "fedmed site predict"
    header.SoftwareVersions, header.InstanceNumber = version("fedmed"), 1
    header.StructureSetLabel = "FEDMED"
    header.StructureSetName = f"fedmed {first.experiment.name}"[:_LONGEST]
    header.StructureSetDescription = "; ".join(
        f"{name} {value}" for name, value in provenance.parameters.items()
    )[:1024]
    header.StructureSetDate, header.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    header.ApprovalStatus = "UNAPPROVED"
    return header


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference


def _roi(number: int, name: str, frame_of_reference: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, name[:_LONGEST]
    roi.ReferencedFrameOfReferenceUID = frame_of_reference
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _observation(number: int, name: str) -> Dataset:
    kind, code = coded(name).kind, Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        kind.value,
        kind.scheme_designator,
        kind.meaning,
    )
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.ROIObservationLabel = name[:_LONGEST_SHORT]
    observation.RTROIIdentificationCodeSequence = DicomSequence([code])
    observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
    return observation

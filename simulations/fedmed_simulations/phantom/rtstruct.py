"""Labels as RTSTRUCT: closed planar contours on the slices.

A contour runs halfway between the voxel centres inside and those outside, so filling all contours of a slice by the
even-odd rule at voxel centres gives the mask back exactly; holes and separate parts are contours of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from skimage.measure import find_contours

from fedmed_simulations.phantom.dicom import TIME, new_file
from fedmed_simulations.phantom.labels import Segment

DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
SHARED = (
    "SpecificCharacterSet", "SyntheticData", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator",
)  # fmt: skip
"""What the structure set has in common with its images."""
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))


def trace(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed contours of a slice ``(X, Y)``, each ``(N, 2)`` in voxel indices, its first point not repeated."""
    occupied = np.argwhere(mask)
    if not len(occupied):
        return
    low, high = occupied.min(axis=0), occupied.max(axis=0) + 1
    cropped = np.pad(mask[low[0] : high[0], low[1] : high[1]], 1).astype(np.float64)
    for contour in find_contours(cropped, 0.5):
        yield contour[:-1] + (low - 1)


def write_rtstruct(
    images: Sequence[FileDataset],
    found: Sequence[Segment],
    affine: NDArray[np.float64],
    file: Path,
    *,
    uids: tuple[str, str],
) -> None:
    """Write one structure set of all segments. ``affine``: voxel index to LPS; ``uids``: of its series, of itself."""
    series_uid, instance_uid = uids
    structures = new_file(str(RTStructureSetStorage), instance_uid, str(ExplicitVRLittleEndian))
    structures.update(_header(images[0], series_uid, instance_uid))
    structures.ReferencedFrameOfReferenceSequence = DicomSequence([_referenced_frame(images)])
    rois, contours, observations = [], [], []
    for number, segment in enumerate(found, start=1):
        rois.append(_roi(number, segment.name, str(images[0].FrameOfReferenceUID)))
        contours.append(_roi_contours(number, segment.mask, affine, images))
        observations.append(_observation(number, segment))
    structures.StructureSetROISequence = DicomSequence(rois)
    structures.ROIContourSequence = DicomSequence(contours)
    structures.RTROIObservationsSequence = DicomSequence(observations)
    structures.save_as(file, enforce_file_format=True)


def _header(image: FileDataset, series_uid: str, instance_uid: str) -> Dataset:
    header = Dataset()
    for keyword in SHARED:
        header[keyword] = image[keyword]
    header.SOPClassUID = RTStructureSetStorage
    header.SOPInstanceUID = instance_uid
    header.Modality = "RTSTRUCT"
    header.SeriesInstanceUID = series_uid
    header.SeriesNumber = 2
    header.SeriesDescription = "Labels"
    header.OperatorsName = ""
    header.Manufacturer, header.ManufacturerModelName, header.SoftwareVersions = "fedmed", "phantom", "1"
    header.InstanceNumber = 1
    header.StructureSetLabel = "LABELS"
    header.StructureSetDate, header.StructureSetTime = image.StudyDate, TIME
    header.ApprovalStatus = "UNAPPROVED"
    return header


def _referenced_frame(images: Sequence[FileDataset]) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = DicomSequence([_reference(image) for image in images])
    study.ReferencedSOPClassUID = DETACHED_STUDY
    study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = DicomSequence([series])
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = DicomSequence([study])
    return frame


def _reference(image: FileDataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference


def _roi(number: int, name: str, frame_of_reference: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber = number
    roi.ReferencedFrameOfReferenceUID = frame_of_reference
    roi.ROIName = name
    roi.ROIGenerationAlgorithm = "MANUAL"
    return roi


def _observation(number: int, segment: Segment) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = "EXTERNAL" if segment.structure == "body" else "ORGAN"
    observation.ROIInterpreter = ""
    return observation


def _roi_contours(
    number: int, mask: NDArray[np.bool_], affine: NDArray[np.float64], images: Sequence[FileDataset]
) -> Dataset:
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
    roi.ROIDisplayColor = list(COLORS[number % len(COLORS)])
    roi.ContourSequence = DicomSequence(items)
    roi.ReferencedROINumber = number
    return roi

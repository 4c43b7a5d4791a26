"""Labels as RTSTRUCT: closed planar contours on the slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from fedmed_client.predict.structures import referenced_frame, roi_contours
from fedmed_simulations.phantom.dicom import TIME, new_file
from fedmed_simulations.phantom.labels import Segment

SHARED = (
    "SpecificCharacterSet", "SyntheticData", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator",
)  # fmt: skip
"""What the structure set has in common with its images."""
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))


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
    structures.ReferencedFrameOfReferenceSequence = DicomSequence([referenced_frame(images)])
    rois, contours, observations = [], [], []
    for number, segment in enumerate(found, start=1):
        rois.append(_roi(number, segment.name, str(images[0].FrameOfReferenceUID)))
        contours.append(roi_contours(number, segment.mask, affine, images, COLORS[number % len(COLORS)]))
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

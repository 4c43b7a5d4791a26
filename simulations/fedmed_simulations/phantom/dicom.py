"""A scan as a DICOM series of single-frame CT or MR images."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, MRImageStorage, RLELossless

from fedmed_simulations.phantom.plan import PatientPlan, SitePlan
from fedmed_simulations.phantom.scanner import Scan, Scanner
from fedmed_simulations.phantom.settings import PhantomSettings

ISSUER = "FEDMED-PHANTOM"
TIME = "120000"
ENCODERS = {str(RLELossless): "pydicom", str(JPEGLSLossless): "pyjpegls"}
"""One fixed encoder per compressed syntax, because two encoders need not write the same bytes."""


def image_datasets(
    settings: PhantomSettings, site: SitePlan, patient: PatientPlan, scan: Scan
) -> list[FileDataset]:
    """One dataset per slice, in the order of the scan's third axis, pixels included."""
    scanner = site.scanner
    spacing_mm = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = scan.affine[:3, :3] / spacing_mm
    common = Dataset()
    common.update(patient_and_study(settings, site, patient))
    common.update(_series(settings, site, patient))
    common.update(_ct(scanner) if scanner.modality == "CT" else _mr(scanner, float(spacing_mm[2])))
    common.update(_pixel_module(scanner, scan.stored.shape))
    common.PixelSpacing = [f"{spacing_mm[1]:.6f}", f"{spacing_mm[0]:.6f}"]
    common.SliceThickness = f"{spacing_mm[2] * (1 - scanner.slice_gap):.6f}"
    common.ImageOrientationPatient = [f"{value:.9f}" for value in directions[:, :2].T.ravel()]
    slices = scan.stored.shape[2]
    datasets = []
    for k in range(slices):
        instance = slices - k if scanner.from_top else k + 1
        uid = settings.uid(site.name, patient.id, "image", instance)
        image = new_file(str(common.SOPClassUID), uid, str(ExplicitVRLittleEndian))
        image.update(common)
        image.SOPInstanceUID = uid
        image.InstanceNumber = image.AcquisitionNumber = instance
        image.ImagePositionPatient = [
            f"{value:.6f}" for value in scan.affine[:3, :3] @ (0, 0, k) + scan.affine[:3, 3]
        ]
        _set_pixels(image, scan.stored[:, :, k].T, scanner)
        datasets.append(image)
    return datasets


def write_images(datasets: list[FileDataset], folder: Path) -> None:
    """Files named after the instance number."""
    folder.mkdir(parents=True)
    for image in datasets:
        image.save_as(folder / f"{int(image.InstanceNumber):06d}.dcm", enforce_file_format=True)


def new_file(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> FileDataset:
    """An empty dataset with file meta information."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    meta.TransferSyntaxUID = transfer_syntax_uid
    return FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)


def patient_and_study(settings: PhantomSettings, site: SitePlan, patient: PatientPlan) -> Dataset:
    """What all objects of a patient share: the patient, study and frame of reference modules."""
    shared = Dataset()
    shared.SpecificCharacterSet = "ISO_IR 192"
    shared.SyntheticData = "YES"
    shared.PatientName = f"Phantom^{patient.id}"
    shared.PatientID = patient.id
    shared.IssuerOfPatientID = ISSUER
    shared.PatientBirthDate = "19600101"
    shared.PatientSex = "O"
    shared.StudyInstanceUID = settings.uid(site.name, patient.id, "study")
    shared.StudyDate = _study_date(patient)
    shared.StudyTime = TIME
    shared.StudyID = "1"
    shared.AccessionNumber = f"{site.index:04d}{patient.index:04d}"
    shared.ReferringPhysicianName = ""
    shared.StudyDescription = "Synthetic abdomen"
    shared.FrameOfReferenceUID = settings.uid(site.name, patient.id, "frame of reference")
    shared.PositionReferenceIndicator = ""
    return shared


def _study_date(patient: PatientPlan) -> str:
    return f"{date(2024, 1, 1) + timedelta(days=patient.index % 366):%Y%m%d}"


def _series(settings: PhantomSettings, site: SitePlan, patient: PatientPlan) -> Dataset:
    scanner = site.scanner
    series = Dataset()
    series.Modality = scanner.modality
    series.SeriesInstanceUID = settings.uid(site.name, patient.id, "series")
    series.SeriesNumber = 1
    series.SeriesDescription = scanner.description
    series.SeriesDate = series.AcquisitionDate = series.ContentDate = _study_date(patient)
    series.SeriesTime = series.AcquisitionTime = series.ContentTime = TIME
    series.BodyPartExamined = "ABDOMEN"
    series.PatientPosition = "HFS"
    series.Manufacturer = scanner.manufacturer
    series.ManufacturerModelName = scanner.model
    series.InstitutionName = f"Phantom hospital {site.name}"
    series.StationName = f"{scanner.modality}{site.index + 1}"
    series.DeviceSerialNumber = f"{site.index + 1:06d}"
    series.SoftwareVersions = "1.0"
    return series


def _ct(scanner: Scanner) -> Dataset:
    ct = Dataset()
    ct.SOPClassUID = CTImageStorage
    ct.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ct.KVP = "120"
    ct.ConvolutionKernel = "STANDARD"
    ct.RescaleIntercept = f"{scanner.intercept:g}"
    ct.RescaleSlope = f"{scanner.slope:g}"
    ct.RescaleType = "HU"
    ct.ContrastBolusAgent = "synthetic"
    ct.WindowCenter, ct.WindowWidth = "60", "400"
    return ct


def _mr(scanner: Scanner, slice_distance_mm: float) -> Dataset:
    t1 = "T1" in scanner.description
    mr = Dataset()
    mr.SOPClassUID = MRImageStorage
    mr.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    mr.ScanningSequence = "GR" if t1 else "SE"
    mr.SequenceVariant = "SP" if t1 else "SK"
    mr.ScanOptions = ""
    mr.MRAcquisitionType = "3D" if t1 else "2D"
    mr.RepetitionTime, mr.EchoTime = ("4", "2") if t1 else ("3000", "90")
    mr.EchoTrainLength = 1 if t1 else 16
    mr.MagneticFieldStrength = "1.5" if "1.5" in scanner.model else "3"
    mr.SpacingBetweenSlices = f"{slice_distance_mm:.6f}"
    return mr


def _pixel_module(scanner: Scanner, shape: tuple[int, ...]) -> Dataset:
    pixels = Dataset()
    pixels.SamplesPerPixel = 1
    pixels.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    pixels.Columns, pixels.Rows = shape[0], shape[1]
    pixels.BitsAllocated = 16
    pixels.BitsStored = scanner.bits_stored
    pixels.HighBit = scanner.bits_stored - 1
    pixels.PixelRepresentation = int(scanner.signed)
    return pixels


def _set_pixels(image: FileDataset, stored: NDArray[np.int32], scanner: Scanner) -> None:
    frame = np.ascontiguousarray(stored.astype("<i2" if scanner.signed else "<u2"))
    encoder = ENCODERS.get(scanner.transfer_syntax)
    if encoder is None:
        image.add_new("PixelData", "OW", frame.tobytes())
        image.file_meta.TransferSyntaxUID = scanner.transfer_syntax
    else:
        image.compress(scanner.transfer_syntax, frame, encoding_plugin=encoder, generate_instance_uid=False)

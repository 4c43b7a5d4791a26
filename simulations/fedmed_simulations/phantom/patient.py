"""One patient from drawing to files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from fedmed_simulations.phantom.anatomy import draw_anatomy
from fedmed_simulations.phantom.dicom import image_datasets, write_images
from fedmed_simulations.phantom.labels import segments, write_nifti
from fedmed_simulations.phantom.plan import PatientPlan, SitePlan
from fedmed_simulations.phantom.rtstruct import write_rtstruct
from fedmed_simulations.phantom.scanner import Scan, acquire
from fedmed_simulations.phantom.seg import write_seg
from fedmed_simulations.phantom.settings import PhantomSettings


def draw_scan(settings: PhantomSettings, site: SitePlan, patient: PatientPlan) -> Scan:
    """The patient's scan. Anatomy and acquisition have random streams of their own."""
    anatomy = draw_anatomy(
        np.random.default_rng([settings.seed, site.index, patient.index, 2]), patient.lesions
    )
    stream = np.random.default_rng([settings.seed, site.index, patient.index, 3])
    return acquire(anatomy, site.scanner, settings.shape, stream)


def write_patient(
    settings: PhantomSettings, site: SitePlan, patient: PatientPlan, folder: Path, workspace: Path
) -> None:
    """Write one patient's images and labels; ``folder`` appears whole or not at all. ``workspace``: on the same disk."""
    unfinished = workspace / patient.id
    shutil.rmtree(unfinished, ignore_errors=True)
    scan = draw_scan(settings, site, patient)
    images = image_datasets(settings, site, patient, scan)
    series = unfinished / f"{site.scanner.modality.lower()}-abdomen"
    write_images(images, series)
    found = segments(scan, site)

    def uid(part: str) -> str:
        return settings.uid(site.name, patient.id, "labels", part)

    if site.label_format == "nifti":
        write_nifti(scan, found, series / "labels.nii.gz")
    else:
        (unfinished / "labels").mkdir()
    if site.label_format == "rtstruct":
        file = unfinished / "labels" / "rtstruct.dcm"
        write_rtstruct(images, found, scan.affine, file, uids=(uid("series"), uid("instance")))
    elif site.label_format != "nifti":
        file = unfinished / "labels" / "seg.dcm"
        uids = uid("series"), uid("instance"), uid("dimensions")
        write_seg(images, found, file, label_map=site.label_format == "seg-labelmap", uids=uids)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.replace(folder)

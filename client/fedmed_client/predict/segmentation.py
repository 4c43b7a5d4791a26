"""A label map as DICOM SEG (PS3.3 A.51): one segment a class, on exactly the images that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from fedmed_client.data.index import Series
from fedmed_client.data.series import depths_of
from fedmed_client.predict.coding import coded
from fedmed_client.predict.released import Released
from fedmed_common.errors import DataError

_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
_SERIES_NUMBER = 9_001
_LONGEST = 64
MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that have to be there (type 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which models made a result, and how often each looked."""

    models: Sequence[Released]
    looks: int

    @property
    def parameters(self) -> dict[str, str]:
        """For the object's algorithm identification."""
        first = self.models[0]
        return {
            "experiment": first.experiment.name,
            "recipe": first.experiment.recipe.name,
            "runs": ", ".join(dict.fromkeys(model.run for model in self.models)),
            "rounds": ", ".join(str(model.round) for model in self.models),
            "sha256": ", ".join(model.digest for model in self.models),
            "looks": str(self.looks),
        }


def write_segmentation(
    label: NDArray[np.uint8], series: Series, provenance: Provenance, folder: Path
) -> Path | None:
    """Write the segmentation of a series into the folder, as ``<instance>.dcm``. None: no class is in it, and SEG cannot be
    empty.

    ``label``: ``(X, Y, Z)`` on the voxels of ``load_series``.

    Raises:
        DataError: the images cannot be referred to, as where a header is broken.
    """
    classes = provenance.models[0].experiment.task.classes
    shown = [number for number in range(1, len(classes) + 1) if (label == number).any()]
    if not shown:
        return None
    renumbered = np.zeros(1 + len(classes), np.uint8)
    renumbered[shown] = np.arange(1, len(shown) + 1)
    first = provenance.models[0]
    algorithm = AlgorithmIdentificationSequence(
        name=f"fedmed: {first.experiment.name}"[:_LONGEST],
        family=_FAMILY,
        version=first.digest[:16],
        source=f"fedmed {version('fedmed')}",
        parameters=provenance.parameters,
    )
    try:
        sources, planes = _on_sources(series, label)
        made = Segmentation(
            source_images=sources,
            pixel_array=renumbered[planes],
            segmentation_type="BINARY",
            segment_descriptions=[
                _described(place, classes[number - 1], algorithm)
                for place, number in enumerate(shown, start=1)
            ],
            series_instance_uid=generate_uid(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="fedmed",
            manufacturer_model_name="fedmed site predict",
            software_versions=version("fedmed"),
            device_serial_number=first.digest[:16],
            content_description="Automatic segmentation",
            content_label="SEGMENTATION",
            series_description=f"fedmed {first.experiment.name}"[:_LONGEST],
            specific_character_set="ISO_IR 192",
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{made.SOPInstanceUID}.dcm"
        made.save_as(path, enforce_file_format=True)
    except (DataError, OSError):
        raise
    except Exception as error:
        raise DataError(f"its images cannot be referred to by a segmentation: {error}") from error
    return path


def _on_sources(series: Series, label: NDArray[np.uint8]) -> tuple[list[Dataset], NDArray[np.uint8]]:
    """The images as a segmentation refers to them, and the label map on each ``(images, rows, columns)``."""
    datasets = [dcmread(path, stop_before_pixels=True, force=True) for path in series.files]
    placed = depths_of(series)
    if placed.is_picture:
        return [_completed(datasets[0], datasets[0])], label.transpose(2, 0, 1)
    planes = label.transpose(2, 1, 0)
    if len(datasets) == 1 and int(datasets[0].get("NumberOfFrames") or 1) > 1:
        if len(placed.depths) != int(datasets[0].NumberOfFrames):
            raise DataError("some of its frames repeat others; a segmentation cannot refer to it")
        return [_completed(datasets[0], datasets[0])], planes[
            [placed.depths[number] for number in sorted(placed.depths)]
        ]
    files = sorted(placed.depths, key=lambda file: placed.depths[file])
    return [_completed(datasets[file], datasets[files[0]]) for file in files], planes[
        [placed.depths[file] for file in files]
    ]


def _completed(dataset: Dataset, first: Dataset) -> Dataset:
    """A header, in memory, with what a segmentation copies from it: what may be empty is there, what all slices share is equal to
    the last digit, and the distance between slices is what their positions say."""
    for keyword in MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if dataset.PatientSex not in ("", "F", "M", "O"):
        dataset.PatientSex = ""
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        if keyword in first and keyword in dataset:
            setattr(dataset, keyword, first[keyword].value)
    if "ImagePositionPatient" in dataset and not dataset.get("SliceThickness"):
        dataset.SliceThickness = 1
    if "SpacingBetweenSlices" in dataset:
        del dataset.SpacingBetweenSlices
    return dataset


def _described(number: int, name: str, algorithm: AlgorithmIdentificationSequence) -> SegmentDescription:
    coding = coded(name)
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:_LONGEST],
        segmented_property_category=coding.category,
        segmented_property_type=coding.kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=[coding.region] if coding.region is not None else None,
        tracking_uid=generate_uid(),
        tracking_id=name[:_LONGEST],
    )

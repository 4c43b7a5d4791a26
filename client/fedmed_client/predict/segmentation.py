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
    label: NDArray[np.uint8], series: Series, provenance: Provenance, folder: Path, *, description: str = ""
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
    sources, depths = _sources(series)
    planes = label.transpose(2, 1, 0)[depths]
    masks = np.stack([planes == number for number in shown], axis=-1)
    algorithm = AlgorithmIdentificationSequence(
        name=f"fedmed: {provenance.models[0].experiment.name}"[:_LONGEST],
        family=_FAMILY,
        version=provenance.models[0].digest[:16],
        source=f"fedmed {version('fedmed')}",
        parameters={name: text[:_LONGEST] for name, text in provenance.parameters.items()},
    )
    try:
        made = Segmentation(
            source_images=sources,
            pixel_array=masks,
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
            device_serial_number=provenance.models[0].digest[:16],
            content_description=description[:_LONGEST] or "Automatic segmentation",
            content_label="SEGMENTATION",
            series_description=f"fedmed {provenance.models[0].experiment.name}"[:_LONGEST],
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"its images cannot be referred to by a segmentation: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made.SOPInstanceUID}.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def _sources(series: Series) -> tuple[list[Dataset], list[int]]:
    """The images in the order in which a segmentation refers to them, and at which depth of the volume each lies."""
    datasets = [dcmread(path, stop_before_pixels=True, force=True) for path in series.files]
    depths = depths_of(series)
    if len(datasets) == 1:
        return datasets, [depths[number] for number in range(len(depths))]
    kept = [file for file in range(len(datasets)) if file in depths]
    ordered = sorted(kept, key=lambda file: depths[file])
    return [datasets[file] for file in ordered], [depths[file] for file in ordered]


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

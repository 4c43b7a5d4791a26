"""Labels as DICOM SEG: binary, with overlapping segments, or as a label map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import FileDataset
from pydicom.sr.codedict import Code
from pydicom.uid import ExplicitVRLittleEndian

from fedmed_simulations.phantom.anatomy import HOSTS
from fedmed_simulations.phantom.dicom import TIME
from fedmed_simulations.phantom.labels import Segment

ORGAN_CATEGORY = Code("123037004", "SCT", "Anatomical Structure")
LESION_CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ORGAN_CODES = {
    "liver": Code("10200004", "SCT", "Liver"),
    "spleen": Code("78961009", "SCT", "Spleen"),
    "kidney_right": Code("9846003", "SCT", "Right kidney"),
    "kidney_left": Code("18639004", "SCT", "Left kidney"),
    "kidneys": Code("64033007", "SCT", "Kidney"),
    "pancreas": Code("15776009", "SCT", "Pancreas"),
    "aorta": Code("15825003", "SCT", "Aorta"),
    "spine": Code("421060004", "SCT", "Vertebral column"),
}
MASS, CYST = Code("4147007", "SCT", "Mass"), Code("367643001", "SCT", "Cyst")


def write_seg(
    images: Sequence[FileDataset],
    found: Sequence[Segment],
    file: Path,
    *,
    label_map: bool,
    uids: tuple[str, str, str],
) -> None:
    """Write one SEG of all segments. ``uids``: of its series, of itself, of its dimension organization."""
    series_uid, instance_uid, dimension_uid = uids
    masks = [segment.mask.transpose(2, 1, 0) for segment in found]
    if label_map:
        pixels = np.zeros(masks[0].shape, np.uint8)
        for number, mask in enumerate(masks, start=1):
            pixels[mask] = number
    else:
        pixels = np.stack(masks, axis=-1).astype(np.uint8)
    kidneys_joined = not any(segment.structure == "kidney_left" for segment in found)
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type="LABELMAP" if label_map else "BINARY",
        segment_descriptions=[
            _describe(n, segment, kidneys_joined) for n, segment in enumerate(found, start=1)
        ],
        series_instance_uid=series_uid,
        series_number=2,
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer="fedmed",
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="LABELS",
        series_description="Labels",
        content_date=str(images[0].StudyDate),
        content_time=TIME,
        omit_empty_frames=True,
    )
    seg.InstanceCreationDate, seg.InstanceCreationTime = images[0].StudyDate, TIME
    for item in seg.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = f"{images[0].StudyDate}{TIME}"
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    seg.save_as(file, enforce_file_format=True)


def _describe(number: int, segment: Segment, kidneys_joined: bool) -> hd.seg.SegmentDescription:
    structure = "kidneys" if kidneys_joined and segment.structure == "kidney_right" else segment.structure
    lesion = structure in HOSTS
    host = "kidneys" if structure == "kidney_cyst" else HOSTS.get(structure, (structure,))[0]
    kind = (CYST if structure.endswith("cyst") else MASS) if lesion else ORGAN_CODES[structure]
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=LESION_CATEGORY if lesion else ORGAN_CATEGORY,
        segmented_property_type=kind,
        algorithm_type="MANUAL",
        anatomic_regions=[ORGAN_CODES[host]] if lesion else None,
    )

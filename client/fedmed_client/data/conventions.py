"""Names that numbers have in label maps which widely used tools write."""

from __future__ import annotations

from functools import cache
from itertools import chain

_ORGANS = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left lung_upper_lobe_left
lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland
small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1
"""
_VESSELS = """
heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left common_carotid_artery_right
common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left superior_vena_cava
inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right
"""
_PAIRED = """
humerus scapula clavicula femur hip
"""
_MUSCLES = """
gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas
"""


@cache
def totalsegmentator() -> dict[str, str]:
    """Number, as text, to name: the task 'total' of TotalSegmentator 2 (Wasserthal et al. 2023, 'TotalSegmentator: robust
    segmentation of 104 anatomic structures in CT images', Radiology: Artificial Intelligence 5), whose classes are 117 now."""
    spine = [
        f"vertebrae_{part}{number}"
        for part, count in (("L", 5), ("T", 12), ("C", 7))
        for number in range(count, 0, -1)
    ]
    names = chain(
        _ORGANS.split(),
        spine,
        _VESSELS.split(),
        _both_sides(_PAIRED),
        ["spinal_cord"],
        _both_sides(_MUSCLES),
        ["brain", "skull"],
        [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)],
        ["sternum", "costal_cartilages"],
    )
    return {str(number): name for number, name in enumerate(names, start=1)}


def names_of(number: int, convention: str | None) -> tuple[str, ...]:
    """What a number in a label map answers to: itself, and its name by the convention."""
    text = str(number)
    named = totalsegmentator().get(text) if convention == "totalsegmentator" else None
    return (text,) if named is None else (text, named)


def _both_sides(words: str) -> list[str]:
    return [f"{word}_{side}" for word in words.split() for side in ("left", "right")]

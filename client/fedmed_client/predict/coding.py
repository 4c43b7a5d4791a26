"""What a class is in the terms that viewers know: SNOMED CT where it is an anatomical structure there, else a term of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.sr.coding import Code

OWN_SCHEME = "99FEDMED"
"""A private coding scheme (PS3.16 8.2: "99" begins those)."""

_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION = Code("52988006", "SCT", "Lesion")
_LESION_WORDS = frozenset(
    {"lesion", "tumor", "tumour", "cyst", "mass", "nodule", "metastasis", "carcinoma", "cancer"}
)
_TERMS = {
    "lesion": _LESION,
    "tumor": Code("108369006", "SCT", "Neoplasm"),
    "tumour": Code("108369006", "SCT", "Neoplasm"),
    "cyst": Code("441457006", "SCT", "Cyst"),
    "mass": Code("4147007", "SCT", "Mass"),
    "nodule": Code("27925004", "SCT", "Nodule"),
}
_PLURALS = {"kidneys": "kidney", "lungs": "lung", "vertebrae": "vertebra"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """``region``: where an abnormal structure is; None: not known, or it is the structure itself."""

    category: Code
    kind: Code
    region: Code | None = None


def coded(name: str) -> Coding:
    """The coding of an experiment's class, as ``liver`` or ``kidney_cyst``."""
    words = [_PLURALS.get(word, word) for word in re.split(r"[^a-z0-9]+", name.casefold()) if word]
    found = [word for word in words if word in _LESION_WORDS]
    if found:
        rest = [word for word in words if word not in _LESION_WORDS]
        kind = _TERMS.get(found[-1], _LESION)
        return Coding(category=_ABNORMAL, kind=kind, region=_anatomy(rest))
    return Coding(category=_STRUCTURE, kind=_anatomy(words) or Code(_short(name), OWN_SCHEME, name[:64]))


def _anatomy(words: list[str]) -> Code | None:
    from pydicom.sr.codedict import codes

    keyword = "".join(word.capitalize() for word in words)
    for wanted in (keyword, f"{keyword}Structure"):
        if wanted and wanted in set(codes.SCT.dir(wanted)):
            code: Code = getattr(codes.SCT, wanted)
            return Code(code.value, code.scheme_designator, code.meaning)
    return None


def _short(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:16].strip("-") or "class"

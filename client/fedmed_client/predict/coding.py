"""What a class is in the terms that viewers know: SNOMED CT where it is an anatomical structure there, else a term of its own."""

from __future__ import annotations

import hashlib
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
_ANATOMY = ("cid4", "cid7140", "cid7151", "cid4031")
_LONGEST, _CODE = 64, 16
_PLURALS = {"kidneys": "kidney", "lungs": "lung", "vertebrae": "vertebra"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """``region``: where an abnormal structure is; None: not known, or it is the structure itself."""

    category: Code
    kind: Code
    region: Code | None = None


def coded(name: str) -> Coding:
    """The coding of an experiment's class, as ``liver`` or ``kidney_cyst``."""
    words = [_singular(word) for word in re.split(r"[^a-z0-9]+", name.casefold()) if word]
    found = [word for word in words if word in _LESION_WORDS]
    if found:
        rest = [word for word in words if word not in _LESION_WORDS]
        return Coding(category=_ABNORMAL, kind=_TERMS.get(found[-1], _LESION), region=_anatomy(rest))
    return Coding(
        category=_STRUCTURE, kind=_anatomy(words) or Code(_short(name), OWN_SCHEME, name[:_LONGEST])
    )


def _singular(word: str) -> str:
    return _PLURALS.get(word, word[:-1] if word.endswith("s") and word[:-1] in _LESION_WORDS else word)


def _anatomy(words: list[str]) -> Code | None:
    """Of the terms for regions and segmented structures that DICOM lists (PS3.16, CID 4, 7151 and those they include)."""
    from pydicom.sr.codedict import codes

    keyword = "".join(word.capitalize() for word in words)
    for listed in (getattr(codes, group) for group in _ANATOMY):
        if keyword and keyword in listed.dir():
            code: Code = getattr(listed, keyword)
            return Code(code.value, code.scheme_designator, code.meaning)
    return None


def _short(name: str) -> str:
    """A code of sixteen characters at most, another one for each name."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    if readable == name and len(name) <= _CODE:
        return name
    return f"{readable[: _CODE - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"

"""Open a DICOM label object, and the names that a code sequence gives a label."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedmed_common.errors import UnreadableFile


def open_label(path: Path, modality: str) -> Any:
    """The data set of a SEG or RTSTRUCT, read without its pixels being decoded.

    Raises UnreadableFile when it is not DICOM, is cut off, or holds another modality.
    """
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True, defer_size="1 MB")
            found = str(dataset.get("Modality", ""))
    except Exception as error:
        raise UnreadableFile(f"{path}: not readable as DICOM ({type(error).__name__}: {error})") from error
    if found != modality:
        raise UnreadableFile(f"{path}: Modality is '{found}', expected '{modality}'")
    return dataset


def items(dataset: Any, keyword: str) -> list[Any]:
    """The items of a sequence; none where it is absent or empty."""
    return list(dataset.get(keyword) or ())


def code_names(codes: Iterable[Any]) -> list[str]:
    """``"SCHEME:VALUE"`` and the meaning of each code; an SRT code also under its SNOMED CT number."""
    from pydicom.sr.coding import snomed_mapping

    names = []
    for code in codes:
        scheme = str(code.get("CodingSchemeDesignator") or "")
        value = str(code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue") or "")
        if value:
            names.append(f"{scheme}:{value}")
        if scheme == "SRT" and value in snomed_mapping["SRT"]:
            names.append(f"SCT:{snomed_mapping['SRT'][value]}")
        names.append(str(code.get("CodeMeaning") or ""))
    return names


def distinct(names: Iterable[str], fallback: str) -> tuple[str, ...]:
    """The names without blanks and repetitions, or the fallback where none is left."""
    kept = dict.fromkeys(name.strip() for name in names if name and name.strip())
    return tuple(kept) or (fallback,)

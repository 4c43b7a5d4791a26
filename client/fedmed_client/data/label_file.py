"""Open a DICOM label object, and the names that a code sequence gives a label."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmed_client.data.text import printable
from fedmed_common.errors import DataError, UnreadableFile


def open_label(path: Path, modality: str, *, pixels: bool = True) -> Any:
    """The data set of a SEG or RTSTRUCT, with or without its pixels; they are not decoded.

    Raises UnreadableFile when it is not DICOM, is cut off, or holds another modality.
    """
    import pydicom

    with reading(path):
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        found = str(dataset.get("Modality") or "")
    if found != modality:
        raise UnreadableFile(f"{path}: Modality is '{printable(found)}', expected '{modality}'")
    return dataset


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a broken label object raises becomes an UnreadableFile that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        raise UnreadableFile(f"{path}: {type(error).__name__}: {printable(str(error))[:300]}") from error


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
    """The names, fit to be shown, without blanks and repetitions; the fallback where none is left."""
    kept = dict.fromkeys(printable(name.strip(" \0")) for name in names)
    return tuple(name for name in kept if name) or (fallback,)

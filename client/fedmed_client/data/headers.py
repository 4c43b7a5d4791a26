"""One file's DICOM header, reduced to what the index needs; pixels are neither read nor decoded.

Reading never raises: a file that is not wanted or cannot be read becomes a `Refused` with its own reason.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from fedmed_client.data.index import LabelKind
from fedmed_client.data.text import normalise, normalise_patient, printable

LABEL_MAP_SEGMENTATION = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, newer than the installed dictionary."""
_LABELS: dict[str, LabelKind] = {
    SegmentationStorage: "seg",
    LABEL_MAP_SEGMENTATION: "seg",
    RTStructureSetStorage: "rtstruct",
}
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LARGEST_INFLATED = 2**32
_PREFIX_BYTES = 1024
_SUFFIXES = (".dcm", ".dicom", ".ima")
_IDENTITY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
)
_IMAGE = (
    "ImageType",
    "Modality",
    "Manufacturer",
    "SeriesDescription",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "SamplesPerPixel",
    "NumberOfFrames",
    "Rows",
    "Columns",
)
_SPLIT = ("Rows", "Columns", "SamplesPerPixel", "EchoNumbers", "TemporalPositionIdentifier")
_TAGS: dict[str, tuple[int, str]] = {
    keyword: (tag, dictionary_VR(tag))
    for keyword in (*_IDENTITY, *_IMAGE, "MediaStorageSOPInstanceUID", "ReferencedSOPInstanceUID")
    if (tag := tag_for_keyword(keyword)) is not None
}
"""Of each the tag, and its value representation where the file does not say it."""
_WORDS = frozenset({"UI", "CS", "LO", "SH", "IS", "DS", "ST", "LT"})
_US_BYTES = 2
_REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
_DEEP_REFERENCES = (
    "SourceImageSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ROIContourSequence",
)
_REFERENCED_SERIES = {"ReferencedSeriesSequence", "RTReferencedSeriesSequence"}
_REFERENCED_IMAGES = {"ReferencedInstanceSequence", "ContourImageSequence", "SourceImageSequence"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What one DICOM image or label object says of itself.

    ``split`` holds what separates volumes within one series (matrix, image type, echo, time point); two images
    belong together when it is equal and ``orientation`` (six direction cosines, or none) agrees.
    """

    kind: Literal["image"] | LabelKind
    patient: str
    instance: str
    series: str
    study: str
    frame_of_reference: str
    modality: str
    description: str
    split: tuple[str, ...] = ()
    orientation: tuple[float, ...] = ()
    referenced_series: tuple[str, ...] = ()
    referenced_instances: tuple[str, ...] = ()
    manufacturer: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a file is left out. ``lasting`` is false when trying again may end differently."""

    code: str
    reason: str
    lasting: bool = True


def to_json(found: Header | Refused) -> str:
    """One line of ASCII."""
    return json.dumps({"type": type(found).__name__, **asdict(found)})


def from_json(line: str) -> Header | Refused:
    """The inverse of `to_json`."""
    fields: dict[str, Any] = json.loads(line)
    if fields.pop("type") == "Refused":
        return Refused(**fields)
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
    return Header(**fields)


def read_header(path: Path) -> Header | Refused:
    """Read one file's header; whatever is wrong with the file comes back as a `Refused`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path)
    except OSError as error:
        if error.errno is not None:
            return Refused("no-access", f"cannot be opened: {error.strerror}", lasting=False)
        return _unreadable(error)
    except MemoryError as error:
        return Refused("unreadable-file", f"does not fit into memory: {error}", lasting=False)
    except Exception as error:
        return _unreadable(error)


def _unreadable(error: Exception) -> Refused:
    return Refused(
        "unreadable-file", printable(f"broken DICOM header: {type(error).__name__}: {error}")[:300]
    )


def _read(path: Path) -> Header | Refused:
    with path.open("rb") as stream:
        start = stream.read(_PREFIX_BYTES)
        if not _looks_like_dicom(start):
            return _not_dicom(path, start)
        if DeflatedExplicitVRLittleEndian.encode() in start and not _inflates(path):
            return Refused("unreadable-file", f"inflates to more than {_LARGEST_INFLATED} bytes")
        dataset, pixels = _parse(stream, (*_IDENTITY, *_IMAGE, *_REFERENCES))
        size = os.fstat(stream.fileno()).st_size
        deflated = dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        missing = 0 if deflated else max(0, stream.tell() + pixels - size)
    sop_class = str(_text(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    refusal = _unsuitable(dataset, sop_class, pixels, missing) or _anonymous(dataset)
    if refusal:
        return refusal
    kind = _LABELS.get(sop_class)
    return _label(path, dataset, kind) if kind else _image(dataset)


def _parse(stream: BinaryIO, keywords: tuple[str, ...]) -> tuple[Dataset, int]:
    """The header up to the pixels, and how many bytes of pixels are declared: -1 none, 0 unknown."""
    declared = -1

    def at_pixels(tag: int, _vr: str | None, length: int) -> bool:
        nonlocal declared
        found = int(tag) in _PIXEL_TAGS
        if found:
            declared = 0 if length == _UNDEFINED_LENGTH else length
        return found

    stream.seek(0)
    tags: list[Any] = [tag_for_keyword(keyword) for keyword in ("SpecificCharacterSet", *keywords)]
    dataset = read_partial(stream, stop_when=at_pixels, force=True, specific_tags=tags)
    return dataset, declared


def _looks_like_dicom(start: bytes) -> bool:
    """A preamble, or else a first element of group 2 or 8 with a sound value representation or length."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 8:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    little, big = start[:2] in (b"\x02\x00", b"\x08\x00"), start[:2] in (b"\x00\x02", b"\x00\x08")
    return (little and (explicit or int.from_bytes(start[4:8], "little") <= _PREFIX_BYTES)) or (
        big and explicit
    )


def _not_dicom(path: Path, start: bytes) -> Refused:
    if not start:
        return Refused("not-dicom", "empty file")
    if path.suffix.lower() in _SUFFIXES:
        return Refused(
            "unreadable-file", f"named {printable(path.suffix)}, but it does not begin like a DICOM file"
        )
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b")) and not path.name.lower().endswith(".nii.gz"):
        return Refused("not-dicom", "an archive: unpack it to have its files found")
    return Refused("not-dicom", "not a DICOM file")


def _inflates(path: Path) -> bool:
    """Whether a deflated file stays within what a DICOM element may hold: a few bytes can inflate to terabytes."""
    offset = 144 + int(read_file_meta_info(path).FileMetaInformationGroupLength)
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as stream:
        stream.seek(offset)
        while total <= _LARGEST_INFLATED:
            piece = inflater.unconsumed_tail or stream.read(2**16)
            if not piece:
                return True
            total += len(inflater.decompress(piece, 2**24))
            if inflater.eof:
                return total <= _LARGEST_INFLATED
    return False


def _unsuitable(dataset: Dataset, sop_class: str, pixels: int, missing: int) -> Refused | None:
    name = _class_name(sop_class) if sop_class else "an object without SOPClassUID"
    if sop_class == RTStructureSetStorage:
        return None
    if sop_class == RTDoseStorage:
        return Refused("unsupported-object", f"{name}: a dose, not an image")
    if pixels < 0 and ("Rows" in dataset or "Image Storage" in name):
        return Refused("no-pixels", f"{name} without pixel data, or the file ends before them")
    if pixels < 0:
        return Refused("unsupported-object", f"{name}: not an image, SEG or RTSTRUCT")
    if missing:
        return Refused("truncated", f"{name}: the file ends {missing} bytes before its pixels do")
    return None


@lru_cache(256)
def _class_name(sop_class: str) -> str:
    return printable(UID(sop_class).name)


def _anonymous(dataset: Dataset) -> Refused | None:
    if not normalise(_text(dataset, "PatientID")):
        return Refused("no-patient", "PatientID is missing or empty: it cannot be assigned to a patient")
    if not _text(dataset, "SeriesInstanceUID"):
        return Refused("no-identifier", "SeriesInstanceUID is missing or empty")
    if not _instance(dataset):
        return Refused("no-identifier", "SOPInstanceUID is missing or empty")
    return None


def _instance(dataset: Dataset) -> str:
    return _text(dataset, "SOPInstanceUID") or _text(dataset.file_meta, "MediaStorageSOPInstanceUID")


def _text(dataset: Dataset, keyword: str) -> str:
    plain = _plain(dataset, keyword)
    if plain is not None:
        return plain
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _plain(dataset: Dataset, keyword: str) -> str | None:
    """The text of an element that is as it was read, one value in ASCII, or a short whole number: the same that pydicom makes of
    it, in a fraction of the time. None: let pydicom."""
    tag, known = _TAGS[keyword]
    element = dataset.get_item(tag)
    if element is None:
        return ""
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return None
    vr, value = element.VR or known, element.value
    if vr in _WORDS and value.isascii() and b"\\" not in value and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    if vr == "US" and len(value) == _US_BYTES:
        return str(int.from_bytes(value, "little" if element.is_little_endian else "big"))
    return None


def _several(dataset: Dataset, keyword: str) -> Sequence[Any]:
    """The values of an element of several, as words where it is as it was read."""
    tag, known = _TAGS[keyword]
    element = dataset.get_item(tag)
    content = element.value if isinstance(element, RawDataElement) else None
    if isinstance(content, bytes) and content.isascii():
        if not content.strip(b" \0"):
            return []
        if (element.VR or known) in {"CS", "DS"}:
            return [part.rstrip(" \0") for part in content.decode("ascii").split("\\")]
    value = dataset.get(keyword)
    if value is None:
        return []
    return [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)


def _header(dataset: Dataset, kind: Literal["image"] | LabelKind) -> Header:
    return Header(
        kind=kind,
        patient=normalise_patient(_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID")),
        instance=_instance(dataset),
        series=_text(dataset, "SeriesInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
    )


def _image(dataset: Dataset) -> Header:
    orientation = _several(dataset, "ImageOrientationPatient")
    placed = bool(orientation) and bool(_several(dataset, "ImagePositionPatient"))
    told = _plain(dataset, "NumberOfFrames")
    frames = told if told is not None and told.isdecimal() else dataset.get("NumberOfFrames")
    alone = not placed or int(frames or 1) > 1
    kinds = tuple(str(part) for part in _several(dataset, "ImageType")[2:])
    matrix = tuple(_text(dataset, keyword) for keyword in _SPLIT)
    return replace(
        _header(dataset, "image"),
        manufacturer=_text(dataset, "Manufacturer"),
        split=(*matrix, _instance(dataset) if alone else "", *kinds),
        orientation=() if alone else tuple(float(cosine) for cosine in orientation),
    )


def _label(path: Path, dataset: Dataset, kind: LabelKind) -> Header:
    header = _header(dataset, kind)
    series = {_text(item, "SeriesInstanceUID") for item in _items(dataset, _REFERENCED_SERIES)}
    instances = {_text(item, "ReferencedSOPInstanceUID") for item in _items(dataset, _REFERENCED_IMAGES)}
    if not instances:
        with path.open("rb") as stream:
            deep, _ = _parse(stream, _DEEP_REFERENCES)
        instances = {_text(item, "ReferencedSOPInstanceUID") for item in _items(deep, _REFERENCED_IMAGES)}
    frames = (
        _text(item, "FrameOfReferenceUID") for item in _items(dataset, {"ReferencedFrameOfReferenceSequence"})
    )
    return replace(
        header,
        frame_of_reference=header.frame_of_reference or next(frames, ""),
        referenced_series=tuple(sorted(series - {""})),
        referenced_instances=tuple(sorted(instances - {""})),
    )


def _items(dataset: Dataset, names: set[str]) -> Iterator[Dataset]:
    """All items, at any depth, of the sequences with these keywords."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if element.keyword in names:
                    yield item
                yield from _items(item, names)

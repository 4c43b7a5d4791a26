"""A dataset's attributes without the patient, in place: the profile's table, then every text once more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, RTStructureSetStorage, SegmentationStorage

from fedmed_client.data.headers import LABEL_MAP_SEGMENTATION
from fedmed_client.data.text import normalise, normalise_patient, printable
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import BYTES, TEMPORAL, TEXT, UNREADABLE, Action, Options, actions
from fedmed_client.deidentify.words import Identifiers, cleaned
from fedmed_common.errors import DataError

_STRINGS = TEXT | {"AE", "AS", "CS", "DS", "IS", "PN"}
_STRUCTURAL = frozenset(
    {
        "Modality",
        "PhotometricInterpretation",
        "PatientPosition",
        "SegmentationType",
        "SegmentAlgorithmType",
        "RescaleType",
    }
)
_TERMS = """
CodeValue CodingSchemeDesignator CodingSchemeVersion ConvolutionKernel FilterType Manufacturer ManufacturerModelName RescaleType
SegmentLabel SequenceName UnitsOfMeasure
"""
"""Texts that are terms and not sentences: they stay, unless one of the file's identifiers is in them."""
_STRICT = TEMPORAL | {"PN", "SQ", "UI"}
"""Kinds that are treated by kind, so that an attribute of another one may not be of these, nor the other way round."""
_PIXELS = (
    "PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths ICCProfile"
)
_DUMMIES: dict[str, object] = {
    "AE": "ANONYMIZED",
    "AS": "000Y",
    "CS": "ANONYMIZED",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "PN": "ANONYMIZED",
    "FD": 0.0,
    "FL": 0.0,
    "SL": 0,
    "SS": 0,
    "UL": 0,
    "US": 0,
}
_PUBLIC_SCHEMES = frozenset(
    {"DCM", "SCT", "SRT", "SNM3", "LN", "RADLEX", "FMA", "UCUM", "NCIT", "MDC", "I10", "I9", "ISO3166_1"}
)
"""Designators of coding schemes that are everybody's (PS3.16, Table 8-1), of those that images and labels have."""
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME = re.compile(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(\.\d{1,6})?)?)?", re.ASCII)
_DATE_TIME = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-]\d{4})?", re.ASCII)
LABEL_CLASSES = frozenset({SegmentationStorage, RTStructureSetStorage, LABEL_MAP_SEGMENTATION})
"""Segmentations, label maps among them, and structure sets: what has no pixels in which somebody writes."""
_ANNEX_E = (("113100", "Basic Application Confidentiality Profile"),)
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")


class NotDeidentified(DataError):
    """A file cannot be made free of the patient with certainty; nothing of it is written."""

    code = "not-deidentified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whose file it is: ``pseudonym`` in the place of name and number, ``shift`` taken off all dates."""

    pseudonym: str
    shift: timedelta


def protect(dataset: Dataset, secret: SiteSecret, options: Options) -> Identifiers:
    """Take the patient out of a dataset's attributes, in place, and say which words identified them.

    Raises:
        NotDeidentified: the object is of a kind that tells more than an image or a label, or it has no patient.
    """
    _check_kind(dataset)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not str(dataset.get(keyword) or ""):
            raise NotDeidentified(f"{keyword} is missing or empty")
    identifiers = Identifiers.of(dataset)
    number = str(dataset.get("PatientID") or "")
    if not normalise(number):
        raise NotDeidentified(
            "PatientID is missing or empty: there is no telling whose pseudonym it would get"
        )
    patient = normalise_patient(number, str(dataset.get("IssuerOfPatientID") or ""))
    person = Person(pseudonym=secret.pseudonym(patient), shift=secret.shift(patient))
    _Walk(secret, options, person, identifiers).through(dataset)
    dataset.PatientName = dataset.PatientID = person.pseudonym
    _say_so(dataset, options)
    _new_meta(dataset)
    return identifiers


def say_pixels_were_looked_at(dataset: Dataset) -> None:
    """Note that no text is burned into the pixels any more (PS3.15 E.3.1)."""
    dataset.BurnedInAnnotation = "NO"
    dataset.DeidentificationMethodCodeSequence.append(_code(*_CLEAN_PIXELS))


def _check_kind(dataset: Dataset) -> None:
    sop_class = UID(str(dataset.get("SOPClassUID") or ""))
    name = printable(sop_class.name) if sop_class else "an object without SOPClassUID"
    if sop_class in LABEL_CLASSES:
        return
    if "Image Storage" in name or "Parametric Map" in name:
        return
    raise NotDeidentified(f"{name}: only images, segmentations and structure sets are de-identified")


@dataclass(frozen=True, slots=True)
class _Walk:
    secret: SiteSecret
    options: Options
    person: Person
    identifiers: Identifiers

    def through(self, dataset: Dataset) -> None:
        """A dataset, or an item of a sequence."""
        _drop_groups(dataset)
        if self.options.dates == "shifted":
            _shift_pairs(dataset, self.person.shift)
        if "CodingSchemeDesignator" in dataset:
            self._code_of_the_house(dataset)
        table = actions(self.options)
        for element in _parsed(dataset):
            action = table.get(int(element.tag))
            if action is Action.REMOVED or not _is_known(element):
                del dataset[element.tag]
            elif element.VR == "SQ":
                if action is Action.EMPTIED:
                    element.value = Sequence()
                for item in element.value:
                    self.through(item)
            elif element.VR == "UI":
                element.value = _each(element, self.secret.uid)
            elif element.VR in TEMPORAL:
                self._date(dataset, element, action)
            else:
                self._other(element, action)

    def _code_of_the_house(self, item: Dataset) -> None:
        """A code of no public scheme is a hospital's own text; where it is a label of the site, its value stays."""
        scheme = str(item.CodingSchemeDesignator)
        if scheme.upper() in _PUBLIC_SCHEMES:
            return
        for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue"):
            value = str(item.get(keyword) or "")
            if value and normalise(f"{scheme}:{value}") not in self.options.labels:
                del item[keyword]
                item.CodeValue, item.CodingSchemeDesignator = "0", "99LOCAL"

    def _date(self, dataset: Dataset, element: DataElement, action: Action | None) -> None:
        """One of a pair of date and time is shifted before."""
        shifts = action is Action.SHIFTED or (action is None and self.options.dates == "shifted")
        if shifts and _partner(dataset, element) is None:
            element.value = _each(element, lambda value: _shifted(element.VR, value, self.person.shift))
        elif action is Action.REPLACED:
            element.value = _DUMMIES[element.VR]
        elif not shifts:
            element.value = ""

    def _other(self, element: DataElement, action: Action | None) -> None:
        is_free_text = element.VR in TEXT and element.keyword not in _TERMS.split()
        if action is Action.PSEUDONYM:
            element.value = self.person.pseudonym
        elif action is Action.EMPTIED or (action is None and element.VR == "PN"):
            element.value = None
        elif action is Action.REPLACED:
            element.value = _DUMMIES.get(element.VR, "ANONYMIZED")
        elif action is Action.CLEANED or (action is None and is_free_text):
            element.value = _each(element, self._clean)
        elif action is not None:
            raise NotDeidentified(f"{element.keyword} is of the kind {element.VR}, which it may not be")
        elif self._identifies(element):
            element.value = None

    def _identifies(self, element: DataElement) -> bool:
        """Whether a text that the profile leaves alone holds one of the file's identifiers. Numbers are measures."""
        if element.VR not in _STRINGS or element.keyword in _STRUCTURAL:
            return False
        return any(
            self.identifiers.are_in(text) for text in _strings(element) if not _is_number(element.VR, text)
        )

    def _clean(self, text: str) -> str:
        return (cleaned(text, self.identifiers, self.options.labels) or "ANONYMIZED") if text.strip() else ""


def _is_known(element: DataElement) -> bool:
    """Whether the standard's dictionary has the attribute, of this kind, and it is none whose bytes nobody looks into."""
    try:
        kinds = dictionary_VR(element.tag).split(" or ")
    except KeyError:
        return False
    if element.VR in UNREADABLE:
        return False
    if element.VR in BYTES:
        return element.keyword in _PIXELS.split() or element.keyword.endswith(("LookupTableData", "LUTData"))
    return element.VR in kinds or not {element.VR, *kinds} & _STRICT


def _is_number(vr: str, text: str) -> bool:
    if vr not in ("DS", "IS"):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _drop_groups(dataset: Dataset) -> None:
    """Private attributes, commands, directories, curves, waveforms, overlays."""
    for tag in list(dataset.keys()):
        group = tag.group
        if (
            tag.is_private
            or group in (0x0000, 0x0004)
            or 0x5000 <= group <= 0x54FF
            or 0x6000 <= group <= 0x60FF
        ):
            del dataset[tag]


def _parsed(dataset: Dataset) -> Iterator[DataElement]:
    """Each element that is left when its turn comes.

    Raises:
        NotDeidentified: one cannot be read.
    """
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception as error:
            raise NotDeidentified(f"{tag} cannot be read ({type(error).__name__})") from error
        yield element


def _strings(element: DataElement) -> list[str]:
    values = element.value if element.VM > 1 else [element.value]
    return ["" if value is None else str(value) for value in values]


def _each(element: DataElement, change: Callable[[str], str]) -> str | list[str]:
    changed = [change(text) for text in _strings(element)]
    return changed[0] if len(changed) == 1 else changed


def _shift_pairs(dataset: Dataset, shift: timedelta) -> None:
    for element in list(_parsed(dataset)):
        time = _partner(dataset, element) if element.VR == "DA" else None
        if time is None:
            continue
        moment = _moment(str(element.value), str(time.value))
        if moment is None:
            element.value = time.value = ""
        else:
            element.value, time.value = _written(moment - shift)


def _partner(dataset: Dataset, element: DataElement) -> DataElement | None:
    """The time of a date, or the date of a time, where both have one value."""
    ours, theirs = ("Date", "Time") if element.VR == "DA" else ("Time", "Date")
    if element.VR not in ("DA", "TM") or not element.keyword.endswith(ours) or element.VM != 1:
        return None
    tag = tag_for_keyword(element.keyword.removesuffix(ours) + theirs)
    if tag is None or tag not in dataset or dataset[tag].VM != 1:
        return None
    partner: DataElement = dataset[tag]
    return partner


def _shifted(vr: str, value: str, shift: timedelta) -> str:
    """A date, a time or both, earlier; what is no such thing is left out, and of a date alone the days are moved."""
    if vr == "DA":
        moment = _moment(value, "000000")
        return "" if moment is None else _written(moment - timedelta(days=shift.days))[0]
    if vr == "TM":
        moment = _moment("20000102", value)
        return "" if moment is None else _written(moment - timedelta(seconds=shift.seconds))[1]
    match = _DATE_TIME.fullmatch(value.strip())
    moment = _moment(match[1], match[2] or "000000") if match else None
    return "" if moment is None else "".join(_written(moment - shift))


def _moment(date: str, time: str) -> datetime | None:
    day, clock = _DATE.fullmatch(date.strip()), _TIME.fullmatch(time.strip())
    if day is None or clock is None:
        return None
    micro = int(float(clock[4] or 0) * 1e6)
    try:
        return datetime(
            int(day[1]),
            int(day[2]),
            int(day[3]),
            int(clock[1]),
            int(clock[2] or 0),
            min(int(clock[3] or 0), 59),
            micro,
        )
    except ValueError:
        return None


def _written(moment: datetime) -> tuple[str, str]:
    fraction = f".{moment.microsecond:06}" if moment.microsecond else ""
    return f"{moment:%Y%m%d}".rjust(8, "0"), f"{moment:%H%M%S}{fraction}"


def _say_so(dataset: Dataset, options: Options) -> None:
    shifted = options.dates == "shifted"
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"
    dataset.DeidentificationMethod = f"fedmed, PS3.15 Annex E 2026c; descriptors {options.descriptors}"
    codes = (*_ANNEX_E, _MODIFIED_DATES) if shifted else _ANNEX_E
    dataset.DeidentificationMethodCodeSequence = Sequence([_code(*code) for code in codes])


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning[:64]
    return item


def _new_meta(dataset: Dataset) -> None:
    """A meta header that says what the file is, and nothing of who wrote or sent it."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    meta = FileMetaDataset()
    if syntax:
        meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128

"""Words that identify somebody, and words that are known not to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from fedmed_client.data.text import normalise
from fedmed_client.deidentify.table import TEXT

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ACQUISITION = """
2d 3d 4d adc angio arterial asl ax axi axial bh bold bone bravo cine contrast cor coronal ct cta ctv cube dce delayed
diff diffusion dixon dti dwi dyn dynamic early echo enhanced ep2d epi fast fat fatsat fgre fiesta flair flash fov fs fse
full gd gre gtv haste high hires kernel late lava localizer low lung map mdc mip mpgr mpr mprage mr mra mri native oar
oblique pca pd perfusion pet phase plain portal post pre ptv radial raw recon reformat res resolution sag sagittal scout
se sense sequence series smooth soft space spgr spin spir stack std stir sub subtraction sup suppressed survey swi t1
t1w t2 t2w test thick thin tof topogram tra trans transverse trufi tse turbo us vascular venous vibe vista volume water
wb weighted window with without
"""
"""How acquisitions are named, where the standard's terms do not say so."""
_NUMBERS = re.compile(r"\d{1,2}mm|b\d{1,4}|te\d{1,3}|tr\d{1,4}", re.ASCII)
_PLACE = re.compile(r"(Name|Address|Telephone\w*|TelecomInformation|Location|Residence|PhoneNumber)$")
_IDENTIFIER = re.compile(
    r"(PatientID|PatientIDs|AccessionNumber|AdmissionID|SubjectID|ReadingID|EpisodeID|MedicalRecordLocator|OrderNumber\w*)$"
)
_LEAST_NUMBER, _LONG = 4, 6
_NOT_PLACES = frozenset(
    {
        "ProtocolName",
        "SequenceName",
        "ROIName",
        "StructureSetName",
        "RTPlanName",
        "ManufacturerModelName",
        "TemplateName",
    }
)
_NOBODY = frozenset({"anonymous", "anonymized", "none", "unknown", "patient", "test"})
_GENERIC = "hospital clinic medical center centre department university institute radiology street road suite"
"""Words of places that name no place."""


@dataclass(frozen=True, slots=True, repr=False)
class Identifiers:
    """Of one file: the words by which it names people, places and numbers, in the form in which texts are compared."""

    words: frozenset[str]

    @classmethod
    def of(cls, dataset: Dataset) -> Identifiers:
        """All that the file's own attributes say, at any depth; private ones and what cannot be read are passed over."""
        words: set[str] = set()
        for element in _elements(dataset):
            parts = split(_text(element))
            if element.VR == "PN":
                words.update(word for word in parts if len(word) > 1)
            elif element.VR in TEXT and _PLACE.search(element.keyword) and element.keyword not in _NOT_PLACES:
                words.update(word for word in parts if _names_a_place(word))
            elif _IDENTIFIER.search(element.keyword):
                words.update(word for word in (*parts, "".join(parts)) if len(word) >= _LEAST_NUMBER)
            elif element.keyword == "PatientBirthDate":
                words.update(_spellings(_text(element)))
        return cls(frozenset(words - _NOBODY))

    def are_in(self, text: str) -> bool:
        """Whether one of them is a word of the text, or, where it is long or not of Latin letters, anywhere in it; also with
        other signs between its letters and figures, or none."""
        found = split(text)
        if not self.words.isdisjoint(found):
            return True
        together = "".join(found)
        return any(word in together for word in self.words if len(word) >= _LONG or not word.isascii())

    def bytes_in(self, content: bytes) -> bool:
        """Whether one of the long ones stands in a file's bytes, in any case of letters."""
        lower = content.lower()
        return any(
            word.encode(coding, "ignore") in lower
            for word in self.words
            for coding in (
                "utf-8",
                *(() if word.isascii() else ("iso2022_jp", "euc_kr", "gb18030", "latin-1")),
            )
            if len(word.encode(coding, "ignore")) >= _LONG
        )


def _names_a_place(word: str) -> bool:
    """Not a house number, and no word of anatomy or of any hospital."""
    if word.isdecimal():
        return len(word) >= _LONG
    return (len(word) > 2 or not word.isascii()) and word not in _GENERIC.split() and word not in vocabulary()


def cleaned(text: str, identifiers: Identifiers, labels: Iterable[str] = ()) -> str:
    """The words of a text that are anatomy, acquisition or geometry, and none of the file's identifiers.

    A text that is one of ``labels`` stays as it is.
    """
    if normalise(text) in labels and not identifiers.are_in(text):
        return text
    kept = [
        word
        for word in _WORD.findall(text)
        if _is_harmless(word.casefold()) and word.casefold() not in identifiers.words
    ]
    return " ".join(kept)


def _is_harmless(word: str) -> bool:
    return word in vocabulary() or _NUMBERS.fullmatch(word) is not None


def split(text: str) -> list[str]:
    """The words of a text as they are compared: whatever the width, the case and the way in which accents are written."""
    return _WORD.findall(normalise(text))


@cache
def vocabulary() -> frozenset[str]:
    """Words of the anatomy and procedures that DICOM codes with SNOMED CT (PS3.16), animals' breeds left out, and acquisition."""
    from pydicom.sr.codedict import codes

    terms = [term for term in codes.SCT.dir() if not term.endswith("Breed")]
    return frozenset(_ACQUISITION.split()) | {
        word.casefold() for term in terms for word in _CAMEL.findall(term) if len(word) > 1
    }


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for tag in list(dataset.keys()):
        if tag.is_private:
            continue
        try:
            element = dataset[tag]
        except Exception:  # noqa: S112  what cannot be read is not kept either
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def _text(element: DataElement) -> str:
    values = element.value if element.VM > 1 else [element.value]
    return " ".join(str(value) for value in values if value is not None)


def _spellings(date: str) -> set[str]:
    """A birth date as it is also written, signs left out."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", date.strip())
    if match is None:
        return set()
    year, month, day = match.groups()
    return {year + month + day, day + month + year, month + day + year}

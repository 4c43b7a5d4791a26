"""Words that identify somebody, and words that are known not to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from fedmed_client.data.text import normalise

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
_PERSON = re.compile(r"(Name|Address|Telephone\w*|TelecomInformation|Location|Residence|PhoneNumber)$")
_IDENTIFIER = re.compile(
    r"(PatientID|PatientIDs|AccessionNumber|AdmissionID|SubjectID|ReadingID|EpisodeID|MedicalRecordLocator|OrderNumber\w*)$"
)
_LEAST_NAME, _LEAST_NUMBER, _LONG = 3, 4, 6
_NOT_PERSONS = frozenset(
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


@dataclass(frozen=True, slots=True, repr=False)
class Identifiers:
    """Of one file: the words by which it names people, places and numbers, all in lower case."""

    words: frozenset[str]

    @classmethod
    def of(cls, dataset: Dataset) -> Identifiers:
        """All that the file's own attributes say, at any depth; private ones and what cannot be read are passed over."""
        words: set[str] = set()
        for element in _elements(dataset):
            if element.VR == "PN" or (
                _PERSON.search(element.keyword) and element.keyword not in _NOT_PERSONS
            ):
                words.update(
                    word for word in split(_text(element)) if len(word) >= _LEAST_NAME or not word.isascii()
                )
            elif _IDENTIFIER.search(element.keyword):
                parts = split(_text(element))
                words.update(word for word in (*parts, "".join(parts)) if len(word) >= _LEAST_NUMBER)
            elif element.keyword == "PatientBirthDate":
                words.update(_spellings(_text(element)))
        return cls(frozenset(words - {"anonymous", "anonymized", "none", "unknown"}))

    def are_in(self, text: str) -> bool:
        """Whether one of them is a word of the text, or, where it is long, anywhere in it."""
        found = normalise(text)
        return not self.words.isdisjoint(split(found)) or any(
            word in found for word in self.words if len(word) >= 6
        )

    def bytes_in(self, content: bytes) -> bool:
        """Whether one of the long ones stands in a file's bytes, in any case of letters."""
        lower = content.lower()
        return any(word.encode() in lower for word in self.words if len(word) >= _LONG and word.isascii())


def cleaned(text: str, identifiers: Identifiers, labels: Iterable[str] = ()) -> str:
    """The words of a descriptor that are anatomy, acquisition or geometry, and none of the file's identifiers.

    A text that is one of ``labels`` stays as it is.
    """
    if normalise(text) in labels and not identifiers.are_in(text):
        return text
    kept = [
        word
        for word in _WORD.findall(text)
        if (word.casefold() in vocabulary() or _NUMBERS.fullmatch(word.casefold()))
        and word.casefold() not in identifiers.words
    ]
    return " ".join(kept)


def split(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


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
    """A birth date as it is also written."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", date.strip())
    if match is None:
        return set()
    year, month, day = match.groups()
    return {year + month + day, day + month + year, month + day + year}

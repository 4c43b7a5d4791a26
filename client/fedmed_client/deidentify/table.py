"""The basic profile's table (DICOM PS3.15, Table E.1-1, edition 2026c), and what we do with each of its attributes.

The table itself is that of the package dicom-anonymizer. Where the profile leaves a choice, as in "X/Z/D", what is chosen here
keeps a file readable by the programs that read images and labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as edition
from pydicom.datadict import dictionary_description, dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag, Tag

_GROUPS = {
    "D": edition.D_TAGS,
    "Z": edition.Z_TAGS,
    "X": edition.X_TAGS,
    "U": edition.U_TAGS,
    "Z/D": edition.Z_D_TAGS,
    "X/Z": edition.X_Z_TAGS,
    "X/D": edition.X_D_TAGS,
    "X/Z/D": edition.X_Z_D_TAGS,
    "X/Z/U*": edition.X_Z_U_STAR_TAGS,
}
TEMPORAL = frozenset({"DA", "DT", "TM"})
BYTES = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
UNREADABLE = frozenset({"UN", "UR"})
"""Kinds that are never kept: what nobody can look into, and addresses; of bytes none but pixels."""
TEXT = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_BIRTH = re.compile(r"PatientBirth(Date|Time)")
_DESCRIPTOR = re.compile(r"(Description|Comments|Label|Notes|ROIName|ProtocolName|ContrastBolusAgent)$")
PSEUDONYMS = frozenset({"PatientID", "PatientName"})


class Action(StrEnum):
    """What becomes of an attribute."""

    REMOVED = "removed"
    EMPTIED = "emptied"
    REPLACED = "replaced by a dummy"
    REMAPPED = "UID remapped"
    SHIFTED = "shifted"
    CLEANED = "cleaned"
    PSEUDONYM = "pseudonym"
    LOOKED_INTO = "its items treated alike"


_ALWAYS = {"U": Action.REMAPPED, "X/Z/U*": Action.LOOKED_INTO}
_BY_LETTER = {"D": Action.REPLACED, "Z": Action.EMPTIED, "X": Action.REMOVED}
_KEPT_EMPTY = frozenset({"Z", "D", "X/Z", "Z/D"})
"""Of sequences: where the profile wants one that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``dates``: moved by a time that is each patient's own, or left out. ``descriptors``: free text in which labels and series
    are found keeps its harmless words, or is left out. ``labels``: names that such a text may be, word for word."""

    dates: Literal["shifted", "removed"] = "shifted"
    descriptors: Literal["cleaned", "removed"] = "cleaned"
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An attribute of the table: ``basic`` is the profile's own word. ``tag`` is None of a whole range, as of overlays."""

    tag: BaseTag | None
    name: str
    basic: str
    action: Action


def rows(options: Options) -> Iterator[Row]:
    """The table, by tag."""
    basics = _basics()
    for tag in sorted(basics):
        basic, vr = basics[tag], _vr(tag)
        yield Row(
            tag=tag, name=_name(tag), basic=basic, action=_action(keyword_for_tag(tag), vr, basic, options)
        )
    for name, groups in (
        ("Curve Data", "(50xx,xxxx)"),
        ("Overlay Comments", "(60xx,4000)"),
        ("Overlay Data", "(60xx,3000)"),
    ):
        yield Row(tag=None, name=f"{name} {groups}", basic="X", action=Action.REMOVED)
    yield Row(
        tag=None, name="Private Attributes (gggg,eeee) where gggg is odd", basic="X", action=Action.REMOVED
    )


@cache
def actions(options: Options) -> dict[int, Action]:
    """By tag: what becomes of it."""
    return {int(row.tag): row.action for row in rows(options) if row.tag is not None}


@cache
def _basics() -> dict[BaseTag, str]:
    return {Tag(tag): basic for basic, tags in _GROUPS.items() for tag in tags if len(tag) == 2}


def _action(keyword: str, vr: str, basic: str, options: Options) -> Action:
    if keyword in PSEUDONYMS:
        return Action.PSEUDONYM
    if vr in UNREADABLE | BYTES or basic in _ALWAYS:
        return _ALWAYS.get(basic, Action.REMOVED)
    if vr in TEMPORAL and options.dates == "shifted" and not _BIRTH.match(keyword):
        return Action.SHIFTED
    if vr in TEXT and options.descriptors == "cleaned" and _DESCRIPTOR.search(keyword):
        return Action.CLEANED
    if vr == "SQ":
        return Action.EMPTIED if basic in _KEPT_EMPTY else Action.REMOVED
    return _BY_LETTER[next(letter for letter in "DZX" if letter in basic)]


def _vr(tag: BaseTag) -> str:
    """Of an attribute that the installed dictionary does not know, text: the profile lists no other new ones."""
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "LO"


def _name(tag: BaseTag) -> str:
    try:
        return str(dictionary_description(tag))
    except KeyError:
        return "(new in this edition)"

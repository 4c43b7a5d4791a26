"""What an index file, or the headers of DICOM, say of each patient of a site: as the vendor of the scanner.

For simulations, whose data are the researcher's own: nothing of it leaves the machine, and a case is still known by its random id
alone. An index file is CSV with a header. Its row belongs to a file by a column ``file``, ``image`` or ``case``, with or without
folders and ending, or to a patient by a column ``patient`` or, in format dicom, ``PatientID``; the first of these that is there
counts. Where it has a column ``site`` that names the site or its folder, the rows of other sites are left alone.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedmed_client.data.cache import ready_cache
from fedmed_client.data.cohort import patient_numbers
from fedmed_client.data.dicom_cases import is_wanted
from fedmed_client.data.paired import SUFFIXES, patient_of, stem_of
from fedmed_client.data.scan import scan
from fedmed_client.data.text import normalise, normalise_patient, without_issuer
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError

UNKNOWN = "unknown"
"""The value of an empty cell, and of a header that does not say."""

_FILES = ("file", "image", "case")
_KEYS = {
    "dicom": ("PatientID",),
    "nifti": (*_FILES, "patient"),
    "images": (*_FILES, "patient"),
}
_FIELD = "simulation.partition.index"

Row = Mapping[str, str]


def values_by_patient(
    site: Site, experiment: Experiment, folder: Path, column: str, index: Path | None
) -> dict[int, str]:
    """``Case.patient`` in the site's cohort -> the value of ``column``, without regard to case and runs of white space.

    Args:
        folder: the site's own working folder, with its cache. index: a CSV file; None: the headers of DICOM, of which the
            manufacturer is kept.

    Raises:
        ConfigError: the index cannot be read, has no such column, has nothing on a patient, or two values for one.
        DataError, LabelError: as ``cohort.open_cohort``.
    """
    _, manifest = ready_cache(site, experiment, folder)
    numbers = patient_numbers(manifest)
    said = _manufacturers(site, folder) if index is None else _column(site, column, index)
    found: dict[int, str] = {}
    if index is not None and "PatientID" in _KEYS[site.data.format]:
        said = _with_issuer(said, numbers, index)
    for patient, number in numbers.items():
        values = sorted(said.get(patient, ()))
        if len(values) > 1:
            raise ConfigError(
                f"a patient of site '{site.name}' has several values of '{column}': {', '.join(map(repr, values[:3]))}",
                file=index,
                field="simulation.partition.column",
                fix="a patient lies in one site: name a column that is the same throughout, or narrow down the site's [data]",
            )
        if values:
            found[number] = values[0]
    if len(found) < len(numbers):
        raise ConfigError(
            f"says nothing on {len(numbers) - len(found)} of the {len(numbers)} patients of site '{site.name}'",
            file=index,
            field=_FIELD,
            fix="add their rows, or leave the cases out of the site",
        )
    return found


def _manufacturers(site: Site, folder: Path) -> dict[str, set[str]]:
    """Of each patient's series that the site wants."""
    if site.data.format != "dicom":
        raise ConfigError(
            f"site '{site.name}' has format {site.data.format}, whose files do not name a manufacturer",
            field=_FIELD,
            fix="name a CSV file with such a column, as index = 'index.csv'",
        )
    said: dict[str, set[str]] = defaultdict(set)
    for series in scan(site.data.root, index_file=folder / "scan.index").series:
        if is_wanted(series, site.data):
            said[series.patient].add(normalise(series.manufacturer) or UNKNOWN)
    return said


def _column(site: Site, column: str, index: Path) -> dict[str, set[str]]:
    """By the patient's key, in format dicom without the issuer."""
    said: dict[str, set[str]] = defaultdict(set)
    header, rows = _read(index)
    if column not in header:
        raise ConfigError(
            f"has no column '{column}'",
            file=index,
            field="simulation.partition.column",
            fix=f"its columns: {', '.join(header)}",
        )
    known = _KEYS[site.data.format]
    key = next((name for name in known if name in header), None)
    if key is None:
        raise ConfigError(
            f"does not say whose rows these are: format {site.data.format} needs a column {' or '.join(known)}",
            file=index,
            field=_FIELD,
            fix="name the column so",
        )
    own = {site.name, site.data.root.name}
    mine = [row for row in rows if row.get("site") in own]
    for row in mine or rows:
        patient = _patient(site, key, row[key])
        if patient is not None:
            said[patient].add(normalise(row[column]) or UNKNOWN)
    return said


def _patient(site: Site, key: str, cell: str) -> str | None:
    if key == "PatientID":
        return without_issuer(normalise_patient(cell, ""))
    if key == "patient":
        return cell
    return patient_of(stem_of(cell, SUFFIXES[site.data.format]), site.data.patient_pattern)


def _with_issuer(
    said: Mapping[str, set[str]], numbers: Mapping[str, int], index: Path
) -> dict[str, set[str]]:
    """By the patients' whole keys; an index file has PatientID alone."""
    owners: dict[str, list[str]] = defaultdict(list)
    for patient in numbers:
        owners[without_issuer(patient)].append(patient)
    if any(len(people) > 1 for people in owners.values()):
        raise ConfigError(
            "patients of several issuers have one PatientID, which the file cannot tell apart",
            file=index,
            field=_FIELD,
            fix="leave index out, where column = 'Manufacturer' serves",
        )
    return {people[0]: said[name] for name, people in owners.items() if name in said}


def _read(index: Path) -> tuple[list[str], list[Row]]:
    try:
        with index.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            return header, list(_rows(header, reader, index))
    except FileNotFoundError:
        raise ConfigError("no such file", file=index, field=_FIELD, fix="check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"not readable as CSV in UTF-8 ({type(error).__name__})",
            file=index,
            field=_FIELD,
            fix="correct it",
        ) from None


def _rows(header: list[str], lines: Iterator[list[str]], index: Path) -> Iterator[Row]:
    for number, cells in enumerate(lines, start=2):
        if len(cells) == len(header):
            yield dict(zip(header, (cell.strip() for cell in cells), strict=True))
        elif any(cell.strip() for cell in cells):
            raise ConfigError(
                f"row {number} has {len(cells)} cells; the header has {len(header)}",
                file=index,
                field=_FIELD,
                fix="correct the row",
            )

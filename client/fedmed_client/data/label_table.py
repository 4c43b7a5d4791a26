"""Which classes a case shows, from a table: ``data.labels_from = "table"``.

A CSV file with a header. One column says whose row it is: ``file``, a file's name with or without its ending, or in format dicom
``SeriesInstanceUID`` or ``PatientID``. Beside it stands either one column ``label`` (several labels with ``;`` between
them, none: an empty cell), or one column for each label, with 1 or 0 in it. Labels are mapped by the site's own table like any
other.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_client.data.labels import assign
from fedmed_client.data.text import printable
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import DataError, LabelError

KEYS = {
    "dicom": ("SeriesInstanceUID", "PatientID"),
    "nifti": ("file",),
    "images": ("file",),
}
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """By key, what its row says. ``key``: the column that it was found in; ``path``: the file."""

    key: str
    path: Path
    shows: Mapping[str, tuple[bool, ...]]
    rows: Mapping[str, int]


def read_table(site: Site, experiment: Experiment, clean: Callable[[str, str], str]) -> LabelTable:
    """The site's table. ``clean(column, cell)`` makes a key out of a cell, as a stem out of a file's name.

    Raises:
        DataError: there is no such file, or it cannot be read; or the experiment needs masks.
        LabelError: names the file, the row and the column.
    """
    path = site.data.root / site.data.table
    if experiment.task.name != "classification":
        raise DataError(
            f"site '{site.name}' has data.labels_from = 'table', which says nothing of where a class lies; task.name is "
            f"'{experiment.task.name}'\n  fix: data.labels_from = 'masks'"
        )
    header, lines = _lines(path)
    key = _key_of(header, site, path)
    read = _reader(header, key, site, experiment, path)
    shows: dict[str, tuple[bool, ...]] = {}
    rows: dict[str, int] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            raise LabelError(f"{path}, row {number}: has {len(cells)} cells; the header has {len(header)}")
        name = clean(header[key], cells[key].strip())
        if not cells[key].strip():
            raise LabelError(
                f"{path}, row {number}, column '{header[key]}': is empty\n  fix: say whose row it is"
            )
        if name in rows:
            raise LabelError(
                f"{path}, row {number}, column '{header[key]}': '{printable(name)}' stands in row {rows[name]} too\n"
                "  fix: keep one of the rows"
            )
        shows[name], rows[name] = read(number, cells), number
    return LabelTable(key=header[key], path=path, shows=shows, rows=rows)


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other rows with their number in the file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise DataError(
            f"{path} is not there\n  fix: correct data.table, or data.labels_from = 'masks'"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as CSV in UTF-8 ({type(error).__name__}: {error})") from None
    if not rows:
        raise LabelError(f"{path}: is empty\n  fix: a header, and a row for each case")
    header = [cell.strip() for cell in rows[0][1]]
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise LabelError(f"{path}, row {rows[0][0]}: the column '{printable(double)}' is there twice")
    return header, rows[1:]


def _key_of(header: Sequence[str], site: Site, path: Path) -> int:
    known = KEYS[site.data.format]
    found = [place for place, name in enumerate(header) if name in known]
    if len(found) != 1:
        raise LabelError(
            f"{path}: the header is {', '.join(repr(printable(name)) for name in header)}; format {site.data.format} needs "
            f"one column {' or '.join(known)}\n  fix: name the column that says whose row it is"
        )
    return found[0]


def _reader(
    header: Sequence[str], key: int, site: Site, experiment: Experiment, path: Path
) -> Callable[[int, Sequence[str]], tuple[bool, ...]]:
    """Makes the classes that are shown out of a row's number and cells."""
    others = [column for column in range(len(header)) if column != key]
    named = [column for column in others if header[column].casefold() == "label"]
    if named:
        return _names_in(named[0], site, experiment, path)
    return _marks_in(others, header, site, experiment, path)


def _names_in(
    column: int, site: Site, experiment: Experiment, path: Path
) -> Callable[[int, Sequence[str]], tuple[bool, ...]]:
    classes = experiment.task.classes

    def read(number: int, cells: Sequence[str]) -> tuple[bool, ...]:
        names = [name.strip() for name in cells[column].split(";") if name.strip()]
        place = path.with_name(f"{path.name}, row {number}, column 'label'")
        found = assign([(printable(name),) for name in names], site, classes, source=place)
        return tuple(klass in found for klass in range(1, len(classes) + 1))

    return read


def _marks_in(
    columns: Sequence[int], header: Sequence[str], site: Site, experiment: Experiment, path: Path
) -> Callable[[int, Sequence[str]], tuple[bool, ...]]:
    classes = experiment.task.classes
    if not columns:
        raise LabelError(f"{path}: has no column of labels\n  fix: a column 'label', or one for each label")
    meant = assign([(printable(header[column]),) for column in columns], site, classes, source=path)
    for klass, name in enumerate(classes, start=1):
        if site.labels.get(name) and klass not in meant:
            raise LabelError(
                f"{path}: no column stands for the class '{name}', which site.toml lists under [labels]\n"
                f"  fix: add a column '{site.labels[name][0]}', or take '{name}' out of [labels]: it is then not annotated here"
            )

    def read(number: int, cells: Sequence[str]) -> tuple[bool, ...]:
        shown = set()
        for column, klass in zip(columns, meant, strict=True):
            if not klass:
                continue
            mark = cells[column].strip().casefold()
            if mark not in _YES | _NO:
                raise LabelError(
                    f"{path}, row {number}, column '{printable(header[column])}': '{printable(cells[column])}' is neither "
                    "1 nor 0\n"
                    "  fix: 1 where the case shows it, 0 where it does not"
                )
            shown |= {klass} if mark in _YES else set()
        return tuple(klass in shown for klass in range(1, len(classes) + 1))

    return read

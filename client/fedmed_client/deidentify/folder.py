"""A folder tree of DICOM, file by file into another one without the patients."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from fedmed_client.data.headers import Refused, read_header
from fedmed_client.data.text import printable
from fedmed_client.data.workers import in_order
from fedmed_client.deidentify.burned_in import clean_pixels, require_reader
from fedmed_client.deidentify.header import (
    LABEL_CLASSES,
    NotDeidentified,
    protect,
    say_pixels_were_looked_at,
)
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Options
from fedmed_common.errors import ConfigError, DataError, FedmedError
from fedmed_common.files import write_atomically

NOTE = "made-with.json"
RULES = 1
"""Raised when the same settings give other copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a file: where it was written below the new folder, or why not; ``texts``: lines that were blacked out."""

    source: Path
    target: str = ""
    texts: int = 0
    code: str = ""
    reason: str = ""


def deidentify_folder(
    source: Path,
    target: Path,
    secret: SiteSecret,
    options: Options,
    *,
    look_for_text: bool = True,
    progress: bool = False,
) -> list[Outcome]:
    """Every DICOM file below ``source``, without its patient below ``target``: pseudonym / series / instance.

    A file that is there already is not made again: a run that was killed goes on where it was. ``look_for_text``: whether text in
    pixels is looked for.

    Raises:
        ConfigError: ``source`` is no folder, or one of both lies in the other.
    """
    source, target = source.resolve(), target.resolve()
    if not source.is_dir():
        raise ConfigError("is not a folder", file=source, fix="name the folder that holds the files")
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"lies in {source}, or the other way round", file=target, fix="name a folder elsewhere"
        )
    if look_for_text:
        require_reader()
    claim(target, settings_of(options, secret, look_for_text=look_for_text))
    files = sorted(Path(place, name) for place, _, names in os.walk(source) for name in names)
    work = partial(_deidentify, target=target, secret=secret, options=options, look_for_text=look_for_text)
    return in_order(work, files, _crashed, title="de-identifying", progress=progress)


def deidentify_file(
    path: Path | BinaryIO, secret: SiteSecret, options: Options, *, look_for_text: bool = True
) -> tuple[str, bytes, int]:
    """A file's new name below a folder, its new content, and how many lines of text were blacked out.

    Raises:
        NotDeidentified: it cannot be made free of the patient with certainty.
        ConfigError: text cannot be looked for here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True)
            is_image = str(dataset.get("SOPClassUID")) not in LABEL_CLASSES
            texts = clean_pixels(dataset, look_for_text=look_for_text) if is_image else 0
            identifiers = protect(dataset, secret, options)
            if look_for_text and is_image:
                say_pixels_were_looked_at(dataset)
            content = _written(dataset)
        except FedmedError:
            raise
        except Exception as error:
            raise NotDeidentified(f"cannot be made anew ({type(error).__name__})") from error
    if identifiers.bytes_in(content):
        raise NotDeidentified("a name or number of the patient is still in it")
    return f"{dataset.PatientID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm", content, texts


def claim(folder: Path, made_with: Mapping[str, object]) -> None:
    """Note in a folder how what is in it was made.

    Raises:
        ConfigError: it was made otherwise; what is there would be taken for what is wanted now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note, text = folder / NOTE, json.dumps(made_with, sort_keys=True) + "\n"
    if not note.exists():
        if any(folder.rglob("*.dcm")):
            raise ConfigError(
                "holds files already, and not from here", file=folder, fix="name an empty folder"
            )
        write_atomically(note, text.encode())
    elif note.read_text(encoding="utf-8") != text:
        raise ConfigError(
            "was filled with other settings", file=folder, fix="name another folder, or empty this one"
        )


def settings_of(options: Options, secret: SiteSecret, *, look_for_text: bool) -> dict[str, object]:
    """What copies depend on, as a note in their folder may say it."""
    return {
        "dates": options.dates,
        "descriptors": options.descriptors,
        "labels": hashlib.sha256(repr(sorted(options.labels)).encode()).hexdigest()[:16],
        "secret": secret.uid("note")[-16:],
        "text": look_for_text,
        "rules": RULES,
    }


def _deidentify(
    path: Path, *, target: Path, secret: SiteSecret, options: Options, look_for_text: bool
) -> Outcome:
    found = read_header(path)
    if isinstance(found, Refused):
        return Outcome(source=path, code=found.code, reason=found.reason)
    name = f"{secret.pseudonym(found.patient)}/{secret.uid(found.series)}/{secret.uid(found.instance)}.dcm"
    if (target / name).exists():
        return Outcome(source=path, target=name)
    try:
        name, content, texts = deidentify_file(path, secret, options, look_for_text=look_for_text)
    except DataError as error:
        return Outcome(source=path, code=error.code, reason=printable(str(error)))
    except MemoryError:
        return Outcome(source=path, code="not-deidentified", reason="does not fit into memory")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target / name, content)
    return Outcome(source=path, target=name, texts=texts)


def _written(dataset: pydicom.Dataset) -> bytes:
    """As a file; of one that is deflated, inflated, so that its bytes can be searched."""
    stream = io.BytesIO()
    implicit, little = dataset.original_encoding
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax:
        dataset.save_as(stream, enforce_file_format=True)
    else:
        dataset.save_as(stream, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return stream.getvalue()


def _crashed(path: Path) -> Outcome:
    return Outcome(source=path, code="reader-crashed", reason="no process survived reading it")

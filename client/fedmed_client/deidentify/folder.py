"""A folder tree of DICOM, file by file into another one without the patients."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import RTStructureSetStorage

from fedmed_client.data.headers import Refused, read_header
from fedmed_client.data.text import printable
from fedmed_client.data.workers import in_order
from fedmed_client.deidentify.burned_in import black_out
from fedmed_client.deidentify.header import NotDeidentified, protect, say_pixels_were_looked_at
from fedmed_client.deidentify.secret import SiteSecret
from fedmed_client.deidentify.table import Options
from fedmed_common.errors import ConfigError, DataError
from fedmed_common.files import write_atomically

_LABELS = ("SEG", "RTSTRUCT")


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
    files = sorted(Path(place, name) for place, _, names in os.walk(source) for name in names)
    work = partial(_deidentify, target=target, secret=secret, options=options, look_for_text=look_for_text)
    return in_order(work, files, _crashed, title="de-identifying", progress=progress)


def deidentify_file(
    path: Path | BinaryIO, secret: SiteSecret, options: Options, *, look_for_text: bool = True
) -> tuple[str, bytes, int]:
    """A file's new name below a folder, its new content, and how many lines of text were blacked out.

    Raises:
        NotDeidentified: it cannot be made free of the patient with certainty.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True)
            is_image = (
                dataset.get("Modality") not in _LABELS and dataset.get("SOPClassUID") != RTStructureSetStorage
            )
        except Exception as error:
            raise NotDeidentified(f"cannot be read ({type(error).__name__})") from error
        texts = black_out(dataset) if look_for_text and is_image else 0
        try:
            identifiers = protect(dataset, secret, options)
            if look_for_text and is_image:
                say_pixels_were_looked_at(dataset)
            content = _written(dataset)
        except NotDeidentified:
            raise
        except Exception as error:
            raise NotDeidentified(f"cannot be written anew ({type(error).__name__})") from error
    if identifiers.bytes_in(content):
        raise NotDeidentified("a name or number of the patient is still in it")
    return f"{dataset.PatientID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm", content, texts


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
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target / name, content)
    return Outcome(source=path, target=name, texts=texts)


def _written(dataset: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    implicit, little = dataset.original_encoding
    declared = "TransferSyntaxUID" in dataset.file_meta
    if declared:
        dataset.save_as(stream, enforce_file_format=True)
    else:
        dataset.save_as(stream, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return stream.getvalue()


def _crashed(path: Path) -> Outcome:
    return Outcome(source=path, code="reader-crashed", reason="no process survived reading it")

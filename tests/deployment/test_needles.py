"""A text is found however it is written, and is not found where it is not."""

from __future__ import annotations

import base64
import gzip
import io
import os
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmed_simulations.rehearsal.needles import files_below, search

NEEDLE = "Zeisig^Ännchen"


def _zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-16-le"),
        lambda text: base64.b64encode(b"x" + text.encode() + b"yz"),
        lambda text: base64.b64encode(b"xy" + text.encode()),
        lambda text: base64.b64encode(b"xyz" + text.encode() + b"?"),
        lambda text: text.encode().hex().encode(),
        lambda text: gzip.compress(b"before " + text.encode()),
        lambda text: b"\x00\x01" + zlib.compress(text.encode(), 9) + b"after",
        lambda text: _zipped(b"before " + text.encode()),
        lambda text: text.upper().encode(),
    ],
)
def test_a_needle_is_found_however_it_is_written(tmp_path: Path, write: Callable[[str], bytes]) -> None:
    for name, text in (("hay", "Zeisig^Annchen"), ("needle", NEEDLE)):
        (tmp_path / name).write_bytes(os.urandom(500) + write(text) + os.urandom(500))
    assert {hit.file.name for hit in search(files_below(tmp_path), [NEEDLE])} == {"needle"}


def test_a_needle_is_found_in_a_database_and_in_a_file_s_name(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as store:
        store.execute("create table t (a blob)")
        store.execute("insert into t values (?)", (NEEDLE.encode(),))
    store.close()
    (tmp_path / NEEDLE).touch()
    assert {hit.file.name for hit in search(files_below(tmp_path), [NEEDLE])} == {"store.db", NEEDLE}

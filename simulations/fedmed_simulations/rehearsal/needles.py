"""Looking for a text in everything that was stored, printed or sent, however it is written there."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """``needle`` was found in ``file``, written as ``form``."""

    needle: str
    form: str
    file: Path


def forms(text: str) -> dict[str, bytes]:
    """The text as bytes, by how it is written: encodings, base64 at each offset, hex, as in an address and in JSON."""
    plain = text.encode()
    written = {
        "utf-8": plain,
        "latin-1": text.encode("latin-1", "replace"),
        "utf-16-le": text.encode("utf-16-le"),
        "utf-16-be": text.encode("utf-16-be"),
        "hex": plain.hex().encode(),
        "hex, upper case": plain.hex().upper().encode(),
        "address": quote(text, safe="").encode(),
        "json": json.dumps(text)[1:-1].encode(),
        "reversed": plain[::-1],
        "upper case": text.upper().encode(),
        "lower case": text.lower().encode(),
    }
    for offset in range(3):
        written[f"base64, offset {offset}"] = _inner_base64(plain, offset)
        written[f"base64 of utf-16, offset {offset}"] = _inner_base64(text.encode("utf-16-le"), offset)
    return written


def search(files: Iterable[Path], needles: Iterable[str]) -> Iterator[Hit]:
    """Every needle in every file, also inside compressed parts of it."""
    wanted = {needle: forms(needle) for needle in needles}
    for file in files:
        yield from _in(file, wanted)


def files_below(*places: Path) -> list[Path]:
    """All files of folders, and the files among the places."""
    found = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def _in(file: Path, wanted: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hit]:
    contents = [str(file).encode(), *_layers(file.read_bytes())]
    for needle, written in wanted.items():
        for form, content in written.items():
            if any(content in layer for layer in contents):
                yield Hit(needle=needle, form=form, file=file)
                break


def _layers(content: bytes) -> Iterator[bytes]:
    """The content, and what is compressed in it: streams of zlib and gzip, and members of archives."""
    yield content
    for mark, open_ in (
        (b"\x1f\x8b\x08", _gunzip),
        (b"\x78\x9c", _inflate),
        (b"\x78\xda", _inflate),
        (b"PK\x03\x04", _member),
    ):
        start = content.find(mark)
        while start >= 0:
            inner = open_(content[start:])
            if inner:
                yield inner
            start = content.find(mark, start + 1)


def _inflate(content: bytes, bits: int = zlib.MAX_WBITS) -> bytes:
    try:
        return zlib.decompressobj(bits).decompress(content, 1 << 24)
    except zlib.error:
        return b""


def _gunzip(content: bytes) -> bytes:
    return _inflate(content, zlib.MAX_WBITS | 16)


def _member(content: bytes) -> bytes:
    """One member of a zip archive, deflated."""
    if len(content) < 30 or content[8:10] != b"\x08\x00":
        return b""
    skip = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    return _inflate(content[skip:], -zlib.MAX_WBITS)


def _inner_base64(content: bytes, offset: int) -> bytes:
    """What of a text's base64 does not depend on its neighbours, where it begins ``offset`` bytes into a group of three."""
    whole = base64.b64encode(b"\0" * offset + content)
    first = 4 if offset else 0
    last = len(whole) - (4 if (offset + len(content)) % 3 else 0)
    return whole[first:last]

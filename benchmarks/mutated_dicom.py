"""Ten thousand DICOM files with changed bytes and structures: is each listed, does any hang, crash or take the memory.

    python benchmarks/mutated_dicom.py --files 10000

Each is a real file (with FEDMED_DATA) or a synthetic one with identifiers of its own, then changed at random: bytes flipped, cut
out, put in, parts moved, the end cut off, lengths and value representations rewritten, attributes given other values, sequences
nested deep. All are scanned as a site does; then each series that came out is read and decoded, in a process of its own with a
limit of memory.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pages
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from fedmed_client.data.scan import scan
from fedmed_client.data.series import load_series
from fedmed_common.errors import DataError
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation

_BATCH, _SEED = 500, 7
_MOST_BYTES = 400_000
_MEMORY_GB, _SECONDS = 4.0, 5.0
_DEPTH = 400


def main() -> None:
    """Make the files, batch by batch, look at what becomes of them, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(Path(options.read))
        return
    codes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    slowest = largest = slowest_read = 0.0
    unlisted = crashed = read_files = undecodable = 0
    with tempfile.TemporaryDirectory() as place:
        seeds, rng = originals(Path(place)), random.Random(_SEED)  # noqa: S311
        for batch in range(0, options.files, _BATCH):
            folder = Path(place) / f"batch-{batch}"
            folder.mkdir()
            for number in range(batch, min(batch + _BATCH, options.files)):
                kind, content = mutated(seeds[number % len(seeds)], rng)
                kinds[kind] += 1
                (folder / f"{number:06}.dcm").write_bytes(content)
            began = time.perf_counter()
            index = scan(folder, workers=2)
            slowest = max(slowest, time.perf_counter() - began)
            listed = {file for series in index.series for file in series.files}
            listed |= {label.path for label in index.labels} | {one.path for one in index.skipped}
            unlisted += len(set(folder.iterdir()) - listed)
            crashed += sum(one.code == "reader-crashed" for one in index.skipped)
            codes.update(one.code for one in index.skipped)
            codes["used"] += len(listed) - len(index.skipped)
            command = [sys.executable, __file__, "--read", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
            if done.returncode:
                crashed += 1
                print(done.stderr[-2000:], flush=True)
            told = done.stdout.split() if done.returncode == 0 else ["0", "0", "0", "0"]
            read_files, undecodable = read_files + int(told[0]), undecodable + int(told[1])
            slowest_read, largest = max(slowest_read, float(told[2])), max(largest, float(told[3]))
            print(
                f"{number + 1} files: {unlisted} unlisted, {crashed} crashes, slowest series {slowest_read:.2f} s",
                flush=True,
            )
            for file in folder.iterdir():
                file.unlink()
    pages.write(pages.dated("mutated_dicom"), _page(options.files, locals()))
    if unlisted or crashed or slowest_read > _SECONDS:
        raise SystemExit("a file was lost, or a reader crashed or took too long")


def read(folder: Path) -> None:
    """Read and decode every series of a folder, with a limit of memory; print how many, how many not, the longest, the memory."""
    limit = int(_MEMORY_GB * 2**30)
    index, failed, longest = scan(folder, workers=1), 0, 0.0
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for series in index.series:
        began = time.perf_counter()
        try:
            load_series(series)
        except (DataError, MemoryError):
            failed += 1
        longest = max(longest, time.perf_counter() - began)
    print(len(index.series), failed, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def originals(folder: Path) -> list[bytes]:
    """Real files that are not large, and synthetic ones."""
    write_federation(
        folder / "phantom",
        PhantomSettings(sites=4, patients=1, shape=(24, 24, 12)),
        workers=1,
        progress=False,
    )
    files = sorted((folder / "phantom").rglob("*.dcm"))
    real = Path(os.environ.get("FEDMED_DATA", "../shared/data")) / "dicom"
    files += sorted(file for file in real.rglob("*") if file.is_file() and file.suffix in ("", ".dcm"))
    return [file.read_bytes() for file in files if file.stat().st_size <= _MOST_BYTES]


def mutated(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and the file after it. A file that cannot be parsed has its bytes changed alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content), force=True)
            dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
            structure = rng.choice(("none", "value", "nested", "removed", "numbers"))
            _change(dataset, structure, rng)
            stream = pydicom.filebase.DicomBytesIO()
            dataset.save_as(stream)
            content = stream.getvalue()
            if structure == "nested":
                content = _nested(content, rng.randrange(2, _DEPTH))
        except Exception:
            structure = "none"
    bytewise = rng.choice(("flipped", "cut out", "put in", "moved", "cut off", "zeroed", "lengths"))
    return f"{structure}, {bytewise}", _changed(bytearray(content), bytewise, rng)


def _change(dataset: Dataset, kind: str, rng: random.Random) -> None:
    tags = [tag for tag in list(dataset.keys()) if tag.group > 2]
    if kind == "removed":
        for tag in rng.sample(tags, k=min(len(tags), rng.randrange(1, 12))):
            del dataset[tag]
    elif kind == "numbers":
        for keyword in (
            "Rows",
            "Columns",
            "NumberOfFrames",
            "BitsAllocated",
            "BitsStored",
            "SamplesPerPixel",
            "HighBit",
        ):
            if rng.random() < 0.4:
                setattr(dataset, keyword, rng.choice((0, 1, 7, 4096, 65535)))
    elif kind == "value":
        for tag in rng.sample(tags, k=min(len(tags), 4)):
            element = dataset[tag]
            if element.VR in ("DS", "IS", "LO", "CS", "UI", "SH", "DA"):
                element.value = rng.choice(
                    ("", "nan", "1e400", "-1", "\\".join("9" * 9), "\x1b[31m", "A" * 5000)
                )


def _nested(content: bytes, depth: int) -> bytes:
    """With a sequence in a sequence in a sequence before its pixels, without lengths, as streaming writers have it."""
    opening = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    place = max(content.find(b"\xe0\x7f\x10\x00"), 132)
    return content[:place] + opening * depth + closing * depth + content[place:]


def _changed(content: bytearray, kind: str, rng: random.Random) -> bytes:
    size = len(content)
    if size < 200:
        return bytes(content)
    place, length = rng.randrange(size), rng.randrange(1, 64)
    if kind == "flipped":
        for _ in range(rng.randrange(1, 40)):
            content[rng.randrange(size)] = rng.randrange(256)
    elif kind == "cut out":
        del content[place : place + length]
    elif kind == "put in":
        content[place:place] = rng.randbytes(length)
    elif kind == "moved":
        part = content[place : place + 4 * length]
        del content[place : place + 4 * length]
        content[rng.randrange(len(content)) : 0] = part
    elif kind == "cut off":
        del content[rng.randrange(100, size) :]
    elif kind == "zeroed":
        content[place : place + 4 * length] = bytes(len(content[place : place + 4 * length]))
    else:
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(132, max(133, min(size - 4, 4000)))
            content[at : at + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", rng.randbytes(4))
            )
    return bytes(content)


def _page(files: int, found: dict[str, object]) -> list[str]:
    codes, kinds = found["codes"], found["kinds"]
    assert isinstance(codes, Counter) and isinstance(kinds, Counter)
    return [
        "# Mutated DICOM files",
        "",
        pages.made_by(),
        "",
        f"{files} files, {len(kinds)} ways of changing them. Bounds: every file listed, no crash, no series over {_SECONDS:g} s, "
        f"memory below {_MEMORY_GB:g} GB.",
        "",
        "| | |",
        "|---|---|",
        f"| files that are not listed | {found['unlisted']} |",
        f"| headers whose reader crashed or hung | {found['crashed']} |",
        f"| slowest scan of {_BATCH} files | {found['slowest']:.1f} s |",
        f"| series read | {found['read_files']} |",
        f"| of those not decoded, with a reason | {found['undecodable']} |",
        f"| slowest series | {found['slowest_read']:.2f} s |",
        f"| memory of the process that decodes, at most | {found['largest']:.0f} MB |",
        "",
        "| what became of a file | files |",
        "|---|---|",
        *(f"| {code} | {count} |" for code, count in sorted(codes.items(), key=lambda item: -item[1])),
        "",
    ]


if __name__ == "__main__":
    main()

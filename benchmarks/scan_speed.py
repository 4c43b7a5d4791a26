"""How fast a site's scan reads headers beside pydicom's header read alone, and what a second scan of unchanged files takes.

    python benchmarks/scan_speed.py --files 10000 --repeats 5

Small CT images of many series. Both use all cores: pydicom in a pool of as many processes as the scan starts. Reading comes from
the page cache for both. Also how busy the cores are while cases are prepared for training.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pages
import pydicom
from pydicom.uid import generate_uid

from fedmed_client.data.cohort import open_cohort
from fedmed_client.data.scan import scan
from fedmed_common.config import Experiment
from fedmed_common.loading import load_site
from fedmed_common.processes import cores
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation

_PER_SERIES = 100


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patients", type=int, default=24, help="of the hospital whose cases are prepared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "files", options.files)
        alone, ours, again = [], [], []
        index = folder / "index.db"
        for _ in range(options.repeats):
            alone.append(_seconds(lambda: pydicom_alone(folder / "files")))
            index.unlink(missing_ok=True)
            ours.append(_seconds(lambda: scan(folder / "files", index_file=index)))
            again.append(_seconds(lambda: scan(folder / "files", index_file=index)))
            print(f"pydicom {alone[-1]:.2f} s, scan {ours[-1]:.2f} s, again {again[-1]:.2f} s", flush=True)
        share = statistics.median(one / other for one, other in zip(alone, ours, strict=True))
        busy, seconds = ingest(folder, options.patients)
    lines = [
        "# Scanning and preparing",
        "",
        pages.made_by(),
        "",
        f"{options.files:,} files, medians of {options.repeats}.",
        "",
        "| | seconds | files in a second |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(some):.2f} | {options.files / statistics.median(some):,.0f} |"
            for name, some in (
                (f"pydicom reads headers, {cores()} processes", alone),
                ("`fedmed site scan`", ours),
                ("the same again, nothing changed", again),
            )
        ),
        "",
        f"The scan reaches {share:.0%} of pydicom alone (median of the ratios within a repeat; the bar is 70 %); the second "
        "scan's bar is 2 s.",
        "",
        f"Preparing {options.patients} patients of 192 x 192 x 96 voxels for training took {seconds:.1f} s, in which the "
        f"{cores()} cores were busy for {busy:.0%} (the bar is 80 %).",
        "",
    ]
    pages.write(pages.dated("scan_speed"), lines)


def write(folder: Path, files: int) -> None:
    """Copies of a phantom's images with UIDs of their own."""
    made = folder.parent / "made"
    write_federation(
        made, PhantomSettings(sites=1, patients=1, shape=(64, 64, 16)), workers=1, progress=False
    )
    images = [pydicom.dcmread(file) for file in sorted(made.rglob("*.dcm"))]
    images = [image for image in images if image.Modality in ("CT", "MR")]
    for number in range(files):
        image = images[number % len(images)]
        if number % _PER_SERIES == 0:
            series = generate_uid()
        image.SeriesInstanceUID, image.PatientID = series, f"N-{number // _PER_SERIES}"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{number // _PER_SERIES:04}" / f"{number:06}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save_as(path)
    shutil.rmtree(made)


def pydicom_alone(folder: Path) -> None:
    """All headers, by a pool."""
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        for _ in pool.imap_unordered(_header, files, chunksize=64):
            pass


def _header(path: Path) -> int:
    return int(pydicom.dcmread(path, stop_before_pixels=True).Rows)


def ingest(folder: Path, patients: int) -> tuple[float, float]:
    """The share of all cores' time that preparing a hospital's cases kept busy, and its seconds."""
    settings = PhantomSettings(sites=1, patients=patients, shape=(192, 192, 96))
    write_federation(folder / "hospital", settings, workers=0, progress=False)
    (root,) = (entry for entry in (folder / "hospital").iterdir() if entry.is_dir())
    site = load_site(root / "site.toml")
    experiment = Experiment.model_validate(
        {
            "name": "ingest",
            "rounds": 1,
            "task": {"classes": list(site.labels), "dimensions": 3},
            "data": {"patch": [32, 32, 32], "spacing_mm": [2.5, 2.5, 4.0]},
        }
    )
    before, began = _cpu(), time.perf_counter()
    open_cohort(site, experiment, folder / "home")
    seconds = time.perf_counter() - began
    return (_cpu() - before) / (seconds * cores()), seconds


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _seconds(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

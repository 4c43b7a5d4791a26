"""Invented secrets at more than twenty places of two hospitals, errors forced there, and a search for them outside.

Searched: the server's whole folder (database, logs, runs, reports, MLflow), what it prints, what its commands print, and
every byte between hospitals and server, read by a proxy that ends TLS. Anything found is a leak. Two controls, which do
leave, must be found, or the search is worth nothing.

    python benchmarks/canaries.py
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fedmed_common.config import Experiment
from fedmed_common.errors import FedmedError
from fedmed_common.loading import load_experiment
from fedmed_server.history import RunEnded
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import Consortium, write_experiment
from fedmed_simulations.rehearsal.needles import Hit, files_below, search
from fedmed_simulations.rehearsal.rehearse import SHIPPED
from fedmed_simulations.rehearsal.relay import Relay

SETTINGS = PhantomSettings(sites=2, patients=5, shape=(32, 32, 16), seed=1)
UID_ROOT = "1.2.826.0.1.3680043.8.98765"
HEADERS = {
    "PatientName": "Kanarienvogel^Wilhelmine",
    "PatientBirthDate": "19370711",
    "PatientAddress": "Kanarienweg 7",
    "OtherPatientIDs": "KANANDERE",
    "AccessionNumber": "KANACC0815",
    "InstitutionName": "Kanarienspital",
    "ReferringPhysicianName": "Zeisig^Otto",
    "StudyDate": "19880229",
    "StudyDescription": "Kanarienbefund",
    "SeriesDescription": "Kanarienserie",
    "StationName": "KANSTATION",
    "DeviceSerialNumber": "KANSERIAL99",
}
PLACES = {
    **{f"header {name}": text for name, text in HEADERS.items()},
    "a part of the patient's name": "Kanarienvogel",
    "header PatientID": "KANPID4711",
    "UIDs": UID_ROOT,
    "a private element": "KANPRIVAT",
    "a file's name": "kanariendatei",
    "a folder's name": "kanarienordner",
    "a label's name": "Kanarienleber",
    "an ignored label's name": "Kanarienrand",
    "a label that nobody expects": "Kanarienfremd",
    "an unreadable file's name": "kanarienmuell",
    "an unreadable file's content": "KANMUELLTEXT",
    "site.toml": "kanarien-intern",
    "a broken site.toml": "kanarienkaputt",
    "the environment": "KANUMGEBUNG",
    "the user's name": "kanariennutzer",
    "the temporary folder": "kanarientmp",
    "the site's home": "kanarienhaus",
}
CONTROLS = {"the experiment's name": "Kontrollkanarie", "a class's name": "pancreas_cyst"}


class Hospitals(Consortium):
    """A consortium whose hospitals have canaries in their homes' names."""

    def site(self, name: str) -> Path:
        """A hospital's home."""
        return self.folder / "sites" / f"kanarienhaus-{name}"

    def start_site(self, name: str, environment: Any = None) -> None:
        """Start a hospital's machine among canaries."""
        temporary = self.folder / "kanarientmp"
        temporary.mkdir(exist_ok=True)
        canaries = {"HOSPITAL_SECRET": "KANUMGEBUNG", "USER": "kanariennutzer", "LOGNAME": "kanariennutzer"}
        super().start_site(name, {**canaries, "TMPDIR": str(temporary), **(environment or {})})


def plant(federation: Path, name: str) -> None:
    """Write canaries into a hospital's files, their names and its ``site.toml``."""
    root = federation / name / "kanarienordner"
    (federation / name / "dicom").rename(root)
    for number, file in enumerate(sorted(root.rglob("*.dcm"))):
        dataset = pydicom.dcmread(file)
        _rewrite(dataset)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file.with_name(f"kanariendatei-{number:05d}.dcm"))
        file.unlink()
    for folder in sorted(root.iterdir()):
        folder.rename(root / f"KANPID4711-{folder.name}")
    _rubbish(root)
    file = federation / name / "site.toml"
    text = file.read_text().replace('root = "dicom"', 'root = "kanarienordner"')
    text = text.replace('"Liver"', '"Kanarienleber"').replace('"LIVER"', '"Kanarienleber"')
    text = text.replace('"EXTERNAL"', '"Kanarienrand"')
    file.write_text(text + '\n[network]\nno_proxy = ["kanarien-intern.example"]\n')


def _rewrite(dataset: Dataset) -> None:
    """The same object of another patient: UIDs stay consistent, labels are renamed."""
    for element in dataset.iterall():
        if element.VR == "UI" and element.value and str(element.value).startswith("2.25."):
            digits = int(hashlib.sha256(str(element.value).encode()).hexdigest()[:24], 16)
            element.value = UID(f"{UID_ROOT}.{digits}")
        if element.keyword in {"SegmentLabel", "ROIName"}:
            element.value = {
                "Liver": "Kanarienleber",
                "LIVER": "Kanarienleber",
                "EXTERNAL": "Kanarienrand",
            }.get(element.value, element.value)
    for keyword, text in HEADERS.items():
        setattr(dataset, keyword, text)
    dataset.PatientID = f"KANPID4711-{dataset.PatientID}"
    block = dataset.private_block(0x0011, "KANPRIVAT", create=True)
    block.add_new(0x01, "LO", "KANPRIVAT element")


def _rubbish(root: Path) -> None:
    """Files that cannot be read, each in its way."""
    some = next(root.rglob("*.dcm")).read_bytes()
    (root / "kanarienmuell-1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"KANMUELLTEXT" * 50)
    (root / "kanarienmuell-2.dcm").write_bytes(some[: len(some) // 3] + b"KANMUELLTEXT")
    (root / "kanarienmuell-3.dcm").symlink_to(root / "kanarienmuell-nowhere.dcm")
    closed = root / "kanarienmuell-4.dcm"
    closed.write_bytes(some)
    closed.chmod(0)


def _missing_root(hospital: Path, _home: Path) -> None:
    (hospital / "kanarienordner").rename(hospital / "elsewhere")


def _unknown_label(hospital: Path, _home: Path) -> None:
    for file in hospital.rglob("*.dcm"):
        with contextlib.suppress(Exception):
            dataset = pydicom.dcmread(file)
            if "StructureSetROISequence" in dataset:
                dataset.StructureSetROISequence[1].ROIName = "Kanarienfremd"
                dataset.save_as(file)


def _truncated_files(hospital: Path, _home: Path) -> None:
    for file in sorted(hospital.rglob("kanariendatei-*.dcm"))[::2]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def _damaged_cache(_hospital: Path, home: Path) -> None:
    for file in home.rglob("*.npy"):
        file.chmod(0o600)
        file.write_bytes(b"KANMUELLTEXT")


def _broken_site_file(_hospital: Path, home: Path) -> None:
    file = home / "site.toml"
    file.write_text(file.read_text() + '\nkanarienkaputt = [[["\n')


ERRORS: tuple[tuple[str, Callable[[Path, Path], None], bool], ...] = (
    ("the prepared arrays are damaged", _damaged_cache, False),
    ("the data folder is gone", _missing_root, True),
    ("a label that stands for nothing", _unknown_label, True),
    ("half of the files are cut off", _truncated_files, True),
    ("site.toml is broken while the site runs", _broken_site_file, True),
)
"""What is done to a hospital, and whether the next experiment must prepare its cases anew."""


@contextlib.contextmanager
def proxied(consortium: Hospitals, record: Path) -> Iterator[None]:
    """A proxy in front of the server that ends TLS, asks for client certificates and records every byte."""
    consortium.set_server(public={"behind_proxy": True})
    tls = consortium.server / "tls"
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "ca.pem"))
    inside.load_cert_chain(tls / "server.pem", tls / "server.key")
    inside.verify_mode = ssl.CERT_REQUIRED
    outside = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    with Relay(consortium.public_port(), inside=inside, outside=outside, record=record) as relay:
        for name in consortium.names:
            consortium.route(name, relay.port)
        yield


def carry_out(folder: Path) -> list[tuple[str, str]]:
    """Run a healthy experiment and one with each error; what was done, and how the run ended."""
    federation = folder / "federation"
    write_federation(federation, SETTINGS)
    names = [site.name for site in plan_federation(SETTINGS)]
    for name in names:
        plant(federation, name)
    told = []
    with Hospitals(folder, names) as consortium, contextlib.ExitStack() as stack:
        consortium.found(federation)
        stack.enter_context(proxied(consortium, folder / "traffic.bin"))
        consortium.start()
        told.append(("nothing", _run(consortium, federation, 0)))
        victim = "east"
        for number, (what, harm, anew) in enumerate(ERRORS, start=1):
            kept = (federation / victim, consortium.site(victim))
            if not anew:
                consortium.stop(victim)
            for place in kept:
                shutil.copytree(place, f"{place}.kept", symlinks=True, ignore=_sockets)
            harm(*kept)
            if not anew:
                consortium.start_site(victim)
                consortium.wait_connected()
            told.append((what, _run(consortium, federation, number if anew else 0)))
            _restore(consortium, victim, kept)
        _ask_everything(consortium, folder / "printed")
    return told


def _sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_socket()}


def _restore(consortium: Hospitals, victim: str, kept: tuple[Path, Path]) -> None:
    if victim in consortium.machines:
        with contextlib.suppress(FedmedError):
            consortium.stop(victim)
    data, home = kept
    shutil.rmtree(data)
    Path(f"{data}.kept").rename(data)
    shutil.copy(Path(f"{home}.kept") / "site.toml", home / "site.toml")
    shutil.rmtree(f"{home}.kept")
    shutil.rmtree(home / "cache", ignore_errors=True)
    consortium.start_site(victim)
    consortium.wait_connected()


def _run(consortium: Hospitals, federation: Path, number: int) -> str:
    """Launch and wait; ``number`` changes how cases are prepared, so that sources are read again."""
    shipped = load_experiment(SHIPPED)
    changed: dict[str, Any] = {
        "name": "Kontrollkanarie",
        "rounds": 1,
        "data": shipped.data.model_copy(update={"spacing_mm": (8.0 + number, 8.0, 8.0)}),
        "train": shipped.train.model_copy(update={"steps": 2}),
        "federation": shipped.federation.model_copy(
            update={"minimum_sites": 1, "quorum": 0.5, "deadline_seconds": 60.0}
        ),
    }
    experiment: Experiment = shipped.model_copy(update=changed)
    file = consortium.folder / f"experiment-{number}.toml"
    write_experiment(experiment, federation, file)
    run = consortium.launch(file)
    ended: RunEnded = consortium.wait_ended(run)
    return ended.status


def _ask_everything(consortium: Hospitals, folder: Path) -> None:
    """What the coordinator's commands print."""
    folder.mkdir()
    home = ("--home", str(consortium.server))
    commands = [("status",), ("status", "--json"), ("sites",), ("sites", "--json")]
    commands += [
        ("log", run.name)
        for run in sorted((consortium.server / "runs").iterdir())
        if (run / "launch.json").exists()
    ]
    for number, command in enumerate(commands):
        (folder / f"{number:02d}-{command[0]}.txt").write_text(consortium.fedmed(*command, *home))


def searched(folder: Path) -> list[Path]:
    """Everything outside the hospitals."""
    server = folder / "consortium" / "server"
    return files_below(server, folder / "log" / "server.log", folder / "printed", folder / "traffic.bin")


def main() -> None:
    """Carry out, search, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="where the consortium is made and kept; absent: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmed-canaries-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        told = carry_out(folder)
        files = searched(folder)
        hits = list(search(files, PLACES.values()))
        controls = {
            what: {_place(hit, folder) for hit in search(files, [text])} for what, text in CONTROLS.items()
        }
        kept = {hit.needle for hit in search(sorted(folder.glob("sites/*/incidents.log")), PLACES.values())}
        size = sum(file.stat().st_size for file in files)
        text = page(told, [_told(hit, folder) for hit in hits], controls, len(kept), len(files), size)
    (Path(__file__).parent / f"canaries-{datetime.now(UTC).date().isoformat()}.md").write_text(text)
    print(text)
    seen = [any("traffic" in place for place in places) for places in controls.values()]
    sys.exit(bool(hits) or not all(seen) or not kept)


def page(
    told: list[tuple[str, str]],
    hits: list[str],
    controls: dict[str, set[str]],
    kept: int,
    files: int,
    size: int,
) -> str:
    """The dated file."""
    lines = [
        f"# Canaries, {datetime.now(UTC).date().isoformat()}",
        "",
        f"`{' '.join(['python', 'benchmarks/canaries.py', *sys.argv[1:]])}`, {platform.machine()}, {os.cpu_count()} cores, "
        f"fedmed {version('fedmed')}: {len(PLACES)} invented texts at two hospitals; "
        f"{files} files of {size / 1e6:.0f} MB searched.",
        "",
        f"**Found: {len(hits)}**",
        *(f"- {hit}" for hit in hits),
        "",
        "| done to a hospital | how the run ended |",
        "|---|---|",
        *(f"| {what} | {status} |" for what, status in told),
        "",
        "| control, which must be found | where |",
        "|---|---|",
        *(f"| {what} | {', '.join(sorted(places)) or '**nowhere**'} |" for what, places in controls.items()),
        "",
        f"In the hospitals' own `incidents.log`, where the errors are kept: {kept} of the invented texts.",
        "",
        "Where canaries were put: " + ", ".join(PLACES) + ".",
    ]
    return "\n".join(lines) + "\n"


def _place(hit: Hit, folder: Path) -> str:
    """Roughly where: the part of the server's folder, or the record."""
    parts = hit.file.relative_to(folder).parts
    return parts[2] if parts[0] == "consortium" else parts[0]


def _told(hit: Hit, folder: Path) -> str:
    (place,) = (what for what, text in PLACES.items() if text == hit.needle)
    return f"{place} in {hit.file.relative_to(folder)}, as {hit.form}"


if __name__ == "__main__":
    main()

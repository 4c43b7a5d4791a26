"""Searching, fetching and storing against Orthanc: by DICOMweb, by C-GET and by C-MOVE."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pydicom
import pytest

from fedmed_client.pacs.cli import fetch
from fedmed_client.pacs.dicomweb import DicomWeb
from fedmed_client.pacs.dimse import Dimse
from fedmed_client.pacs.keeping import Incoming
from fedmed_client.pacs.query import Archive, ArchiveError, FoundSeries, Query
from fedmed_common.site_config import Pacs
from fedmed_simulations.rehearsal.machines import free_ports

from .conftest import Orthanc, write_series

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""pynetdicom leaves a socket open where a connection is refused."""

KINDS = ("dicomweb", "get", "move")


def _archive(pacs: Pacs) -> Archive:
    return DicomWeb.of(pacs) if pacs.url else Dimse(pacs)


@pytest.fixture(scope="module")
def filled(
    orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Orthanc, list[Path]]]:
    """An archive with three studies, stored by both protocols."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACS_PASSWORD", "word")
        one = write_series(folder / "one", 3)
        other = write_series(
            folder / "other",
            2,
            patient="N-2",
            modality="MR",
            description="T1 axial",
            day="20230615",
            accession="B2",
        )
        third = write_series(
            folder / "third", 4, patient="N-3", description="Localizer", day="20240201", accession="C3"
        )
        _archive(orthanc.pacs("get")).send(one)
        _archive(orthanc.pacs("dicomweb")).send(other + third)
        yield orthanc, one


@pytest.mark.parametrize("kind", KINDS)
def test_queries_find_what_fits_and_nothing_else(kind: str, filled: tuple[Orthanc, list[Path]]) -> None:
    archive = _archive(filled[0].pacs(kind))
    archive.echo()

    def found(query: Query) -> list[str]:
        return sorted(one.description for one in archive.find(query))

    assert found(Query()) == ["Abdomen venous", "Localizer", "T1 axial"]
    assert found(Query(modalities=("MR",))) == ["T1 axial"]
    assert found(Query(since=date(2024, 1, 31), until=date(2024, 1, 31))) == ["Abdomen venous"]
    assert found(Query(since=date(2024, 1, 1))) == ["Abdomen venous", "Localizer"]
    assert found(Query(description=re.compile("venous$"))) == ["Abdomen venous"]
    assert found(Query(accessions=("B2", "C3", "none"))) == ["Localizer", "T1 axial"]
    assert {one.images for one in archive.find(Query())} == {2, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fetched_is_what_was_stored_and_is_fetched_once(
    kind: str, filled: tuple[Orthanc, list[Path]], tmp_path: Path
) -> None:
    orthanc, originals = filled
    archive = _archive(orthanc.pacs(kind))
    incoming = Incoming(tmp_path, least_free_gb=0.0)
    series = next(archive.find(Query(accessions=("A1",))))
    assert not incoming.is_fetched(series)
    assert fetch(archive, series, incoming) == ""
    files = sorted(tmp_path.rglob("*.dcm"))
    ours = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in files}
    assert len(ours) == 3
    for original in map(pydicom.dcmread, originals):
        assert ours[original.SOPInstanceUID].PixelData == original.PixelData
        assert ours[original.SOPInstanceUID].ImagePositionPatient == original.ImagePositionPatient
    assert Incoming(tmp_path).is_fetched(series)


def test_a_series_that_comes_short_is_told_and_asked_again(
    filled: tuple[Orthanc, list[Path]], tmp_path: Path
) -> None:
    archive, incoming = _archive(filled[0].pacs("get")), Incoming(tmp_path, least_free_gb=0.0)
    series = next(archive.find(Query(accessions=("A1",))))
    more = FoundSeries(
        study=series.study,
        series=series.series,
        modality="CT",
        description="Abdomen",
        day=series.day,
        images=5,
    )
    assert "3 of 5 images came" in fetch(archive, more, incoming)
    assert not incoming.is_fetched(more)


def test_a_full_disk_ends_the_series_with_its_reason_and_leaves_no_half_file(
    filled: tuple[Orthanc, list[Path]], tmp_path: Path
) -> None:
    archive = _archive(filled[0].pacs("dicomweb"))
    series = next(archive.find(Query(accessions=("A1",))))
    assert "stay free" in fetch(archive, series, Incoming(tmp_path, least_free_gb=1e6))
    assert not list(tmp_path.rglob("*.dcm"))


def test_what_cannot_be_reached_or_does_not_permit_it_is_named_with_the_fix(
    orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_PASSWORD", "wrong")
    with pytest.raises(ArchiveError, match="status 401"):
        _archive(orthanc.pacs("dicomweb")).echo()
    (nobody,) = free_ports(1)
    with pytest.raises(ArchiveError, match="cannot be reached"):
        _archive(Pacs(url=f"http://127.0.0.1:{nobody}/dicom-web")).echo()
    with pytest.raises(ArchiveError, match=r"cannot be reached[\s\S]*pacs.host"):
        _archive(Pacs(host="127.0.0.1", port=nobody)).echo()
    monkeypatch.setenv("PACS_PASSWORD", "word")
    nowhere = Pacs(
        url=f"http://127.0.0.1:{orthanc.http}/nowhere",
        user="it",
        password_variable="PACS_PASSWORD",  # noqa: S106
    )
    with pytest.raises(ArchiveError, match="status 404"):
        _archive(nowhere).echo()


def test_dcmtk_finds_in_the_archive_what_we_stored(filled: tuple[Orthanc, list[Path]]) -> None:
    program = shutil.which("findscu", path="/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("no other client: apt-get install dcmtk")
    command = [program, "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "AccessionNumber=A1", "-k", "PatientID"]
    done = subprocess.run(
        [*command, "-aec", "ORTHANC", "127.0.0.1", str(filled[0].dicom)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "N-1" in done.stdout + done.stderr

"""An archive that speaks DICOMweb (PS3.18): QIDO-RS to search, WADO-RS to fetch, STOW-RS to store."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from retrying import RetryError

from fedmed_client.pacs.query import ArchiveError, FoundSeries, Keep, Query, is_uid
from fedmed_common.errors import ConfigError
from fedmed_common.site_config import Pacs

_PAGE, _MOST_PAGES = 200, 500
_SECONDS = (10.0, 300.0)
_STUDY_FIELDS = ["StudyInstanceUID", "StudyDate"]
_SERIES_FIELDS = ["SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances"]


@dataclass(frozen=True)
class DicomWeb:
    """One archive at an address, as ``https://pacs.example/dicom-web``."""

    client: DICOMwebClient
    url: str

    @classmethod
    def of(cls, pacs: Pacs) -> DicomWeb:
        """The one that a site's file names. Passwords come from the environment.

        Raises:
            ConfigError: a variable that the file names is not set.
        """
        session = requests.Session()
        session.trust_env = False
        if pacs.ca is not None:
            session.verify = str(pacs.ca)
        if pacs.certificate is not None and pacs.key is not None:
            session.cert = (str(pacs.certificate), str(pacs.key))
        if pacs.user:
            session.auth = (pacs.user, _secret(pacs.password_variable, "pacs.password_variable"))
        headers = (
            {"Authorization": f"Bearer {_secret(pacs.token_variable, 'pacs.token_variable')}"}
            if pacs.token_variable
            else None
        )
        client = DICOMwebClient(url=pacs.url, session=session, headers=headers, timeout=_SECONDS)
        return cls(client=client, url=pacs.url)

    def echo(self) -> None:
        """Ask for one study."""
        with self._speaking():
            self.client.search_for_studies(limit=1)

    def find(self, query: Query) -> Iterator[FoundSeries]:
        """The series that fit."""
        told: set[str] = set()
        for accession in query.accessions or ("",):
            filters = {"StudyDate": query.days, "AccessionNumber": accession}
            for study in self._pages(None, {key: value for key, value in filters.items() if value}):
                uid = str(study.get("StudyInstanceUID") or "")
                for series in self._pages(uid, {}) if is_uid(uid) else ():
                    found = FoundSeries.of(study, series)
                    if found is not None and found.series not in told and query.fits(found):
                        told.add(found.series)
                        yield found

    def fetch(self, series: FoundSeries, keep: Keep) -> None:
        """All instances, in the transfer syntax in which the archive has them."""
        with self._speaking():
            instances = self.client.iter_series(
                series.study, series.series, media_types=(("application/dicom", "*"),)
            )
        while True:
            with self._speaking():
                dataset = next(instances, None)
                if dataset is None:
                    return
                stream = io.BytesIO()
                dataset.save_as(stream, enforce_file_format=True)
            keep(stream.getvalue())

    def send(self, files: Sequence[Path]) -> None:
        """Store files, one request each."""
        for file in files:
            with self._speaking():
                answer = self.client.store_instances([dcmread(file)])
            if answer.get("FailedSOPSequence"):
                reason = answer.FailedSOPSequence[0].get("FailureReason")
                raise ArchiveError(f"{self.url} refuses {file.name} (reason {reason})")

    def _pages(self, study: str | None, filters: dict[str, Any]) -> Iterator[Dataset]:
        """All answers, however few the archive gives at once; one that ignores the offset answers the same again."""
        keyword, seen = ("StudyInstanceUID" if study is None else "SeriesInstanceUID"), set[str]()
        for _ in range(_MOST_PAGES):
            with self._speaking():
                if study is None:
                    page = self.client.search_for_studies(
                        limit=_PAGE, offset=len(seen), fields=_STUDY_FIELDS, search_filters=filters
                    )
                else:
                    page = self.client.search_for_series(
                        study, limit=_PAGE, offset=len(seen), fields=_SERIES_FIELDS, search_filters=filters
                    )
                answers = [Dataset.from_json(one) for one in page]
                named = {str(one.get(keyword) or ""): one for one in answers}
            fresh = [one for uid, one in named.items() if uid not in seen]
            if not fresh:
                return
            seen |= named.keys()
            yield from fresh
        raise ArchiveError(
            f"{self.url} finds more than {_MOST_PAGES * _PAGE}\n  fix: ask for fewer, as with --since"
        )

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            raise ArchiveError(f"{self.url} answers with status {status}{_hint(status)}") from error
        except requests.exceptions.SSLError as error:
            raise ArchiveError(
                f"{self.url}: its certificate is not trusted\n  fix: name the authority's file as pacs.ca"
            ) from error
        except (requests.RequestException, RetryError) as error:
            raise ArchiveError(
                f"{self.url} cannot be reached ({type(error).__name__})\n  fix: correct pacs.url, or open the firewall"
            ) from error
        except FileNotFoundError as error:
            raise ArchiveError(
                f"{error.filename}: no such file\n  fix: correct pacs.ca, certificate or key"
            ) from error
        except OSError as error:
            raise ArchiveError(f"{self.url}: {error}\n  fix: see to pacs.ca, certificate and key") from error
        except Exception as error:
            raise ArchiveError(
                f"{self.url} answers with what is no DICOMweb ({type(error).__name__})"
            ) from error


def _hint(status: object) -> str:
    if status in (401, 403):
        return "\n  fix: see to pacs.user and pacs.password_variable, or pacs.token_variable"
    return "\n  fix: correct pacs.url; it ends where /studies would begin" if status == 404 else ""


def _secret(variable: str | None, field: str) -> str:
    value = os.environ.get(variable or "", "")
    if not value:
        raise ConfigError(
            f"the variable '{variable}' is not set",
            field=field,
            fix="set it in the site's environment, not in the file",
        )
    return value

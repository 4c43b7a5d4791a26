"""An archive that speaks DIMSE (PS3.7): C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, Association, build_role, evt
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from fedmed_client.pacs.query import ArchiveError, FoundSeries, Keep, Query
from fedmed_common.site_config import Pacs

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
)
_LABELS = ("Segmentation Storage", "RT Structure Set Storage", "Label Map Segmentation Storage")
_PENDING = (0xFF00, 0xFF01)
_MOST_CONTEXTS = 127
_SECONDS = 60.0


def storage_classes() -> list[UID]:
    """What is fetched and received: images, segmentations and structure sets."""
    found = [UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts]
    return [uid for uid in found if "Image Storage" in uid.name or uid.name in _LABELS]


def tls_context(pacs: Pacs, *, server: bool) -> ssl.SSLContext | None:
    """By the site's file; None: no TLS."""
    if not pacs.tls:
        return None
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH,
        cafile=str(pacs.ca) if pacs.ca else None,
    )
    if pacs.certificate is not None and pacs.key is not None:
        context.load_cert_chain(pacs.certificate, pacs.key)
    if server and pacs.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(frozen=True)
class Dimse:
    """One archive at a host and port."""

    pacs: Pacs

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.pacs.title} at {self.pacs.host}:{self.pacs.port}"

    def echo(self) -> None:
        """C-ECHO."""
        entity = self._entity()
        entity.add_requested_context(Verification)
        with self._associated(entity) as association:
            self._check(association.send_c_echo())

    def find(self, query: Query) -> Iterator[FoundSeries]:
        """C-FIND of studies, then of each one's series."""
        entity = self._entity()
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        with self._associated(entity) as association:
            for accession in query.accessions or ("",):
                wanted = _identifier(
                    "STUDY", StudyDate=query.days, AccessionNumber=accession, StudyInstanceUID=""
                )
                for study in list(self._found(association, wanted)):
                    yield from self._series(association, study, query)

    def fetch(self, series: FoundSeries, keep: Keep) -> None:
        """C-GET, or C-MOVE to a port of this machine where the file says so."""
        if self.pacs.move:
            self._move(series, keep)
        else:
            self._get(series, keep)

    def send(self, files: Sequence[Path]) -> None:
        """C-STORE, in the transfer syntax of the file."""
        for file in files:
            dataset = dcmread(file)
            entity = self._entity()
            entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
            with self._associated(entity) as association:
                self._check(association.send_c_store(dataset))

    def _series(self, association: Association, study: Dataset, query: Query) -> Iterator[FoundSeries]:
        wanted = _identifier(
            "SERIES",
            StudyInstanceUID=str(study.get("StudyInstanceUID") or ""),
            SeriesInstanceUID="",
            Modality="",
            SeriesDescription="",
            NumberOfSeriesRelatedInstances="",
        )
        for series in list(self._found(association, wanted)):
            found = FoundSeries.of(study, series)
            if found is not None and query.fits(found):
                yield found

    def _found(self, association: Association, wanted: Dataset) -> Iterator[Dataset]:
        for status, answer in association.send_c_find(wanted, StudyRootQueryRetrieveInformationModelFind):
            if "Status" in status and status.Status in _PENDING and answer is not None:
                yield answer
            else:
                self._check(status)

    def _get(self, series: FoundSeries, keep: Keep) -> None:
        entity = self._entity()
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        classes = storage_classes()[:_MOST_CONTEXTS]
        entity.requested_contexts = [*entity.requested_contexts, *(storage_context(uid) for uid in classes)]
        roles = [build_role(uid, scp_role=True) for uid in classes]
        with self._associated(entity, roles, [(evt.EVT_C_STORE, storing(keep))]) as association:
            answers = association.send_c_get(_of(series), StudyRootQueryRetrieveInformationModelGet)
            for status, _ in answers:
                if status.get("Status") not in _PENDING:
                    self._check(status)

    def _move(self, series: FoundSeries, keep: Keep) -> None:
        entity = self._entity()
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        entity.supported_contexts = [storage_context(uid) for uid in storage_classes()]
        server = entity.start_server(
            (self.pacs.own_host, self.pacs.own_port),
            block=False,
            ssl_context=tls_context(self.pacs, server=True),
            evt_handlers=[(evt.EVT_C_STORE, storing(keep))],
        )
        assert server is not None  # noqa: S101
        try:
            with self._associated(entity) as association:
                answers = association.send_c_move(
                    _of(series), self.pacs.own_title, StudyRootQueryRetrieveInformationModelMove
                )
                for status, _ in answers:
                    if status.get("Status") not in _PENDING:
                        self._check(status)
        finally:
            server.shutdown()

    def _entity(self) -> AE:
        entity = AE(ae_title=self.pacs.own_title)
        entity.acse_timeout = entity.connection_timeout = 10.0
        entity.dimse_timeout = entity.network_timeout = _SECONDS
        return entity

    @contextmanager
    def _associated(
        self, entity: AE, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Association]:
        context = tls_context(self.pacs, server=False)
        association = entity.associate(
            self.pacs.host,
            self.pacs.port,
            ae_title=self.pacs.title,
            ext_neg=list(roles),
            tls_args=(context, self.pacs.host) if context is not None else None,
            evt_handlers=list(handlers),
        )
        if not association.is_established:
            reason = "refuses this machine's title" if association.is_rejected else "cannot be reached"
            raise ArchiveError(
                f"{self.name} {reason}\n  fix: have '{self.pacs.own_title}' registered there, and correct pacs.host, "
                "pacs.port, pacs.title and pacs.own_title"
            )
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _check(self, status: Dataset) -> None:
        code = status.get("Status")
        if code is None:
            raise ArchiveError(f"{self.name} broke off, or did not answer within {_SECONDS:.0f} s")
        if code not in (0x0000, *_PENDING):
            raise ArchiveError(f"{self.name} answers with status 0x{code:04X}")


def storing(keep: Callable[[bytes], object]) -> Callable[[evt.Event], int]:
    """What answers a C-STORE: 0x0000 once it is kept, 0xA700 where it cannot be (PS3.4 B.2.3)."""

    def handle(event: evt.Event) -> int:
        try:
            keep(event.encoded_dataset())
        except Exception:
            return 0xA700
        return 0x0000

    return handle


def storage_context(uid: UID) -> PresentationContext:
    """One kind of object, in any of the transfer syntaxes that are taken."""
    context = PresentationContext()
    context.abstract_syntax = uid
    context.transfer_syntax = list(SYNTAXES)
    return context


def _identifier(level: str, **fields: str) -> Dataset:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = level
    for keyword, value in fields.items():
        setattr(wanted, keyword, value)
    return wanted


def _of(series: FoundSeries) -> Dataset:
    return _identifier("SERIES", StudyInstanceUID=series.study, SeriesInstanceUID=series.series)

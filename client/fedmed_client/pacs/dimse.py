"""An archive that speaks DIMSE (PS3.7): C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
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

from fedmed_client.deidentify.header import LABEL_CLASSES
from fedmed_client.pacs.query import ArchiveError, FoundSeries, Keep, Query
from fedmed_common.errors import ConfigError, DataError, FedmedError
from fedmed_common.site_config import Pacs

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
    JPEG2000,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSNearLossless,
)
_SOME_FAILED = 0xB000
_HANDSHAKE_SECONDS, _BEGINNING_SECONDS = 10.0, 30.0
_PENDING = (0xFF00, 0xFF01)
_MOST_CONTEXTS = 127
_SECONDS = 60.0


def storage_classes() -> list[UID]:
    """What is fetched and received: images, segmentations and structure sets."""
    found = [UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts]
    return [
        *(uid for uid in found if "Image Storage" in uid.name and uid not in LABEL_CLASSES),
        *sorted(LABEL_CLASSES),
    ]


class _Impatient(ssl.SSLContext):
    """Gives a handshake up after a while: it is made in the thread that lets others in."""

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **settings: Any) -> ssl.SSLSocket:
        sock.settimeout(_HANDSHAKE_SECONDS)
        wrapped = super().wrap_socket(sock, *arguments, **settings)
        wrapped.settimeout(None)
        return wrapped


def tls_context(pacs: Pacs, *, server: bool) -> ssl.SSLContext | None:
    """By the site's file; None: no TLS.

    Raises:
        ConfigError: a file of it is missing or is none.
    """
    if not pacs.tls:
        return None
    if server and pacs.certificate is None:
        raise ConfigError(
            "is missing", field="pacs.certificate", fix="with tls, who listens shows a certificate"
        )
    try:
        context = _Impatient(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        if pacs.ca is not None:
            context.load_verify_locations(str(pacs.ca))
        elif not server:
            context.load_default_certs()
        if pacs.certificate is not None and pacs.key is not None:
            context.load_cert_chain(pacs.certificate, pacs.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot be read: {error}", field="pacs", fix="correct pacs.ca, pacs.certificate and pacs.key"
        ) from error
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
            told: set[str] = set()
            for accession in query.accessions or ("",):
                wanted = _identifier(
                    "STUDY", StudyDate=query.days, AccessionNumber=accession, StudyInstanceUID=""
                )
                for study in list(self._found(association, wanted)):
                    for found in self._series(association, study, query):
                        if found.series not in told:
                            told.add(found.series)
                            yield found

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
        classes = storage_classes()[-_MOST_CONTEXTS:]
        entity.requested_contexts = [*entity.requested_contexts, *(storage_context(uid) for uid in classes)]
        roles, storing = [build_role(uid, scp_role=True) for uid in classes], Storing(keep)
        with self._associated(entity, roles, [(evt.EVT_C_STORE, storing)]) as association:
            answers = association.send_c_get(_of(series), StudyRootQueryRetrieveInformationModelGet)
            self._retrieved(answers, storing)

    def _move(self, series: FoundSeries, keep: Keep) -> None:
        entity, storing = self._entity(), Storing(keep)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        entity.require_called_aet = True
        entity.supported_contexts = [storage_context(uid) for uid in storage_classes()]
        try:
            server = entity.start_server(
                (self.pacs.own_host, self.pacs.own_port),
                block=False,
                ssl_context=tls_context(self.pacs, server=True),
                evt_handlers=[(evt.EVT_C_STORE, storing)],
            )
        except OSError as error:
            raise ArchiveError(
                f"{self.pacs.own_host}:{self.pacs.own_port} cannot be listened at: {error.strerror}\n"
                "  fix: end what listens there, or name another pacs.own_port here and in the archive"
            ) from error
        assert server is not None  # noqa: S101
        try:
            with self._associated(entity) as association:
                answers = association.send_c_move(
                    _of(series), self.pacs.own_title, StudyRootQueryRetrieveInformationModelMove
                )
                self._retrieved(answers, storing)
        finally:
            server.shutdown()

    def _retrieved(self, answers: Iterator[tuple[Dataset, Dataset | None]], storing: Storing) -> None:
        """Wait for the end; what went wrong here comes before what the archive says of it."""
        for status, _ in answers:
            if status.get("Status") not in _PENDING:
                if storing.problem is not None:
                    raise storing.problem
                if status.get("Status") == _SOME_FAILED:
                    failed = status.get("NumberOfFailedSuboperations") or "some"
                    raise ArchiveError(
                        f"{self.name} could not send {failed} images, or they were not kept here"
                    )
                self._check(status)

    def _entity(self) -> AE:
        entity = AE(ae_title=self.pacs.own_title)
        entity.acse_timeout = entity.connection_timeout = _BEGINNING_SECONDS
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
        except (ValueError, RuntimeError) as error:
            raise ArchiveError(
                f"{self.name} does not offer what was asked ({error})\n"
                "  fix: where it knows no C-GET, set pacs.move = true; else have the service permitted there"
            ) from error
        finally:
            if association.is_established:
                association.release()

    def _check(self, status: Dataset) -> None:
        code = status.get("Status")
        if code is None:
            raise ArchiveError(f"{self.name} broke off, or did not answer within {_SECONDS:.0f} s")
        if code not in (0x0000, *_PENDING):
            raise ArchiveError(f"{self.name} answers with status 0x{code:04X}")


class Storing:
    """What answers a C-STORE: 0x0000 once it is kept, 0xC000 where it is refused for good, 0xA700 where there is no room
    (PS3.4 B.2.3). ``problem``: the first one that is not the instance's own."""

    def __init__(self, keep: Callable[[bytes], object]) -> None:
        self._keep = keep
        self.problem: FedmedError | None = None

    def __call__(self, event: evt.Event) -> int:
        """Keep one."""
        try:
            self._keep(event.encoded_dataset())
        except ArchiveError as error:
            self.problem = self.problem or error
            return 0xA700
        except DataError:
            return 0xC000
        except Exception as error:
            self.problem = self.problem or ArchiveError(
                f"an image cannot be kept ({type(error).__name__}: {error})"
            )
            return 0xA700
        return 0x0000


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

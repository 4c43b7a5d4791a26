"""A C-STORE receiver that an archive, or a scanner, can push to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom import AE, Association, evt
from pynetdicom.sop_class import Verification

from fedmed_client.pacs.dimse import Storing, storage_classes, storage_context, tls_context
from fedmed_common.errors import ConfigError
from fedmed_common.site_config import Pacs

_MOST_AT_ONCE = 8
_IDLE_SECONDS, _ENDING_SECONDS = 60.0, 5.0


@dataclass
class Receiver:
    """Runs from :meth:`start` to :meth:`stop`; each connection has a thread. ``keep``: is given each instance."""

    pacs: Pacs
    keep: Callable[[bytes], object]
    _entity: AE | None = None
    _storing: Storing | None = None

    def start(self) -> int:
        """Listen, and say on which port.

        Raises:
            ConfigError: the port cannot be had, or TLS lacks a file.
        """
        entity = AE(ae_title=self.pacs.own_title)
        entity.maximum_associations = _MOST_AT_ONCE
        entity.network_timeout = entity.dimse_timeout = _IDLE_SECONDS
        entity.require_called_aet = True
        entity.require_calling_aet = list(self.pacs.senders)
        entity.supported_contexts = [storage_context(uid) for uid in (*storage_classes(), UID(Verification))]
        context = tls_context(self.pacs, server=True)
        self._storing = Storing(self.keep)
        try:
            server = entity.start_server(
                (self.pacs.own_host, self.pacs.own_port),
                block=False,
                ssl_context=context,
                evt_handlers=[(evt.EVT_C_STORE, self._storing)],
            )
        except OSError as error:
            raise ConfigError(
                f"{self.pacs.own_host}:{self.pacs.own_port} cannot be listened at: {error.strerror}",
                field="pacs.own_port",
                fix="name a free port above 1023",
            ) from error
        assert server is not None  # noqa: S101
        self._entity = entity
        return int(server.server_address[1])

    @property
    def problem(self) -> str:
        """What went wrong here first, apart from single instances; empty: nothing."""
        return "" if self._storing is None or self._storing.problem is None else str(self._storing.problem)

    def stop(self) -> None:
        """Take no more, and break off what is open: who was sending is told nothing, and sends again."""
        if self._entity is not None:
            open_ones = list(self._entity.active_associations)
            ending = threading.Thread(target=self._entity.shutdown, daemon=True)
            ending.start()
            ending.join(_ENDING_SECONDS)
            for association in open_ones:
                _cut_off(association)
            self._entity = None


def _cut_off(association: Association) -> None:
    """End what reads a message that does not come: its thread would keep the process from ending."""
    association.dul.kill_dul()
    connection = association.dul.socket
    if connection is not None and connection.socket is not None:
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)

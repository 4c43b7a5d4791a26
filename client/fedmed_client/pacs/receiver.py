"""A C-STORE receiver that an archive, or a scanner, can push to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from fedmed_client.pacs.dimse import storage_classes, storage_context, storing, tls_context
from fedmed_common.errors import ConfigError
from fedmed_common.site_config import Pacs

_MOST_AT_ONCE = 8
_IDLE_SECONDS = 60.0


@dataclass
class Receiver:
    """Runs from :meth:`start` to :meth:`stop`; each connection has a thread. ``keep``: is given each instance."""

    pacs: Pacs
    keep: Callable[[bytes], object]
    _server: ThreadedAssociationServer | None = None

    def start(self) -> int:
        """Listen, and say on which port.

        Raises:
            ConfigError: the port cannot be had.
        """
        entity = AE(ae_title=self.pacs.own_title)
        entity.maximum_associations = _MOST_AT_ONCE
        entity.network_timeout = entity.dimse_timeout = _IDLE_SECONDS
        entity.require_called_aet = True
        entity.require_calling_aet = list(self.pacs.senders)
        entity.supported_contexts = [storage_context(uid) for uid in (*storage_classes(), UID(Verification))]
        try:
            self._server = entity.start_server(
                (self.pacs.own_host, self.pacs.own_port),
                block=False,
                ssl_context=tls_context(self.pacs, server=True),
                evt_handlers=[(evt.EVT_C_STORE, storing(self.keep))],
            )
        except OSError as error:
            raise ConfigError(
                f"{self.pacs.own_host}:{self.pacs.own_port} cannot be listened at: {error.strerror}",
                field="pacs.own_port",
                fix="name a free port above 1023",
            ) from error
        assert self._server is not None  # noqa: S101
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more, and end what is open."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

"""The numbers that come beside orders: fetched into files, and looked at only by their digest.

Files of the last two orders stay, for what was measured in one round is often trained in the next. None is older than the
process: what was not on disk when the power went would have the right name and the wrong numbers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from flwr.app import Message
from flwr.app.message.message import make_message

from fedmed_common import wire_files
from fedmed_common.errors import WireError
from fedmed_common.wire_files import CHUNK_BYTES, Filed, Part

LARGEST_ORDER_BYTES = 2**32
"""Of all numbers that go with an order. One larger fails alone, and does not take the site's disk."""


class Incoming:
    """A file that grows. ``size``: how many bytes have come."""

    def __init__(self, path: Path) -> None:
        self.size, self._digest = 0, hashlib.sha256()
        self._file = path.open("wb", buffering=CHUNK_BYTES)

    def take(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            OSError: they cannot be kept.
        """
        self._digest.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)

    def close(self) -> str:
        """End it; the digest of all that came.

        Raises:
            OSError: it cannot be kept.
        """
        self._file.close()
        return self._digest.hexdigest()


Fetch = Callable[[Part, Incoming], None]


class Received:
    """The folder of a site's link. ``fetch`` gives an :class:`Incoming` all the bytes of a part."""

    def __init__(self, folder: Path, fetch: Fetch) -> None:
        self._folder, self._fetch = folder, fetch
        self._last: frozenset[str] = frozenset()
        shutil.rmtree(folder, ignore_errors=True)

    def complete(self, message: Message) -> Message:
        """The message with all numbers that belong to it.

        Raises:
            WireError: they are more than an order may have, or not those that it names.
            RunOver: they are not there any more.
            OSError: they cannot be kept.
        """
        wanted = wire_files.references(message.content)
        if sum(wanted.values()) > LARGEST_ORDER_BYTES:
            raise WireError("the message is larger than an order may be")
        self._make_room(frozenset(wanted))
        files = {}
        for digest, size in wanted.items():
            part = Part(
                run=message.metadata.run_id, message=message.metadata.message_id, digest=digest, size=size
            )
            files[digest] = self._file(part)
        content = wire_files.located(message.content, files)
        return make_message(metadata=message.metadata, content=content)

    def _make_room(self, wanted: frozenset[str]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for file in self._folder.iterdir():
            if file.name not in wanted | self._last:
                file.unlink(missing_ok=True)
        self._last = wanted or self._last

    def _file(self, part: Part) -> Filed:
        path = self._folder / part.digest
        if not path.exists():
            beside = path.with_suffix(".part")
            try:
                incoming = Incoming(beside)
                try:
                    self._fetch(part, incoming)
                finally:
                    found = incoming.close()
                if found != part.digest:
                    raise WireError("numbers that are not those the order names")
                beside.rename(path)
            finally:
                beside.unlink(missing_ok=True)
        return Filed.open(path, part.digest, part.size)

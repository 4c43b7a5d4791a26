"""A coordinator that takes or gives nothing, and says that all is well, does not keep a link busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedmed_client.link.bulk import Bulk
from fedmed_client.link.line import Line
from fedmed_client.link.received import Incoming
from fedmed_common.errors import TransportAway
from fedmed_common.wire_files import HELD_HEADER, Filed, Part

NUMBERS = b"x" * 1000
PART = Part(run=1, message="a" * 64, digest=sha256(NUMBERS).hexdigest(), size=len(NUMBERS))


class _Answering(Bulk):
    """Whose coordinator answers always the same."""

    def __init__(self, content: bytes = b"", **headers: str) -> None:
        self._reach = SimpleNamespace(address="127.0.0.1:1")  # type: ignore[assignment]
        self._response = httpx.Response(200, content=content, headers=headers)

    @contextmanager
    def _asked(self, *_request: Any) -> Iterator[Any]:
        yield SimpleNamespace(headers=self._response.headers, iter_raw=lambda: [self._response.content])


@pytest.mark.parametrize("held", ["0", "999"])
def test_a_piece_that_is_not_taken_is_a_failure(held: str, tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(NUMBERS)
    numbers = Filed.open(file, PART.digest, PART.size)
    assert _Answering(**{HELD_HEADER: "1000"}).write(PART, numbers, 0) == 1000
    with pytest.raises(TransportAway, match="another part"):
        _Answering(**{HELD_HEADER: held}).write(PART, numbers, 0)


def test_an_answer_without_numbers_is_a_failure(tmp_path: Path) -> None:
    class _Once(Line):
        def __init__(self, content: bytes) -> None:
            self._bulk = _Answering(content)

        def _through(self, call: Any) -> Any:
            return call()

    incoming = Incoming(tmp_path / "incoming")
    with pytest.raises(TransportAway, match="sends nothing"):
        _Once(b"").read(PART, incoming)
    _Once(NUMBERS).read(PART, incoming)
    assert incoming.close() == PART.digest

"""Every way in which a connection fails has a sentence and an exit code of its own; each is brought about for real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from diagnosed import Listen, quietly

from fedmed_client.site.home import SiteFolder


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Take connections at a port of 127.0.0.0/8 and have ``serve`` deal with each; the port."""
    opened: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> int:
        listener = socket.create_server((host, 0))
        opened.append(listener)

        def take() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                opened.append(stream)
                threading.Thread(target=quietly, args=(serve, stream), daemon=True).start()

        threading.Thread(target=take, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for one in opened:
        one.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(offline: Any) -> SiteFolder:
    """A hospital of a consortium whose server does not run; the tests put something in its place."""
    return offline.join()  # type: ignore[no-any-return]

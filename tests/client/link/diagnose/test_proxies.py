"""A hospital's proxy."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from diagnosed import Listen, expect, problem, saying

from fedmed_client.link import diagnose
from fedmed_client.link.reach import find_proxy
from fedmed_client.site.home import SiteFolder
from fedmed_common import errors
from fedmed_common.consortium import Connection
from fedmed_common.errors import FedmedError
from fedmed_common.site_config import Network
from fedmed_simulations.rehearsal.machines import free_ports


def tunnel(asked: list[bytes]) -> Callable[[socket.socket], None]:
    """A CONNECT proxy that goes anywhere on this machine; ``asked``: the requests that it got."""

    def serve(stream: socket.socket) -> None:
        asked.append(stream.recv(65536))
        host, _, port = asked[-1].split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port)), 10) as there:
            stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(there, stream), daemon=True)
            back.start()
            _pump(stream, there)
            back.join(5)

    return serve


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.parametrize(
    ("status", "kind", "phrase"),
    [
        ("403 Forbidden", errors.ProxyRefuses, "it forbids it"),
        ("407 Proxy Authentication Required", errors.ProxyRefuses, "user name and a password"),
        ("502 Bad Gateway", errors.Unreachable, "cannot reach"),
    ],
)
def test_a_proxy_refuses(
    status: str,
    kind: type[FedmedError],
    phrase: str,
    home: SiteFolder,
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = listen(saying(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
    expect(home, kind, f"the proxy 127.0.0.1:{port}", phrase)
    assert "secret" not in str(problem(home))


def test_a_proxy_that_is_away(home: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    expect(home, errors.ProxyRefuses, "cannot be reached", "nothing listens there")


def test_a_proxy_that_nobody_knows(home: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://no-such-proxy.invalid:3128")
    expect(home, errors.ProxyRefuses, "no-such-proxy.invalid:3128", "cannot be looked up")


def test_a_proxy_that_is_none(home: SiteFolder, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listen(saying(b"hello\r\n"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    expect(home, errors.ProxyRefuses, "the proxy")


def test_a_proxy_that_lets_through_with_a_password(
    coordinator: Any, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    home = coordinator.join()
    port = listen(tunnel(asked))
    text = home.site_file.read_text()
    home.site_file.write_text(f'{text}\n[network]\nproxy = "http://me:s%40fe@127.0.0.1:{port}"\n')
    assert diagnose.check(home)[-1].error is None
    given = base64.b64encode(b"me:s@fe")
    assert len(asked) == 2
    assert all(b"proxy-authorization: basic " + given.lower() in request.lower() for request in asked)
    assert b"Host: " + home.connection().address.encode() in asked[0]


CONNECTION = Connection(
    consortium="c",
    site="s",
    address="fed.example.org:9443",
    fingerprint="0" * 64,
    signer=base64.b64encode(bytes(32)).decode(),
)


@pytest.mark.parametrize(
    ("network", "environment", "proxy"),
    [
        ({}, {}, ""),
        ({}, {"HTTPS_PROXY": "proxy:1"}, "http://proxy:1"),
        ({}, {"ALL_PROXY": "http://proxy:1"}, "http://proxy:1"),
        ({}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "example.org"}, ""),
        ({}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "other.org"}, "http://proxy:1"),
        ({"proxy": "http://own:1"}, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, "http://own:1"),
        ({"proxy": "http://own:1", "no_proxy": ["fed.example.org"]}, {}, ""),
        ({"no_proxy": [".example.org"]}, {"HTTPS_PROXY": "http://proxy:1"}, ""),
    ],
)
def test_which_proxy(
    network: dict[str, Any], environment: dict[str, str], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(CONNECTION, Network.model_validate(network)) == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "http://jane:geheim/word@proxy:3128",
        "http://jane:12/geheim@proxy:3128",
        "http://jane:geheim#1@proxy:3128",
        "http://jane:geheim@proxy:port",
        "http://jane:geheim@proxy:99999",
        "http://jane:geheim@",
        "socks5://jane:geheim@proxy:1080",
    ],
)
@pytest.mark.parametrize("where", ["site.toml", "HTTPS_PROXY"])
def test_a_proxy_that_cannot_be_one_is_named_without_its_password(
    where: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {}
    if where == "site.toml" and proxy.startswith("http"):
        settings = {"proxy": proxy}
    else:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(errors.ConfigError, match="is not the address of an HTTP proxy") as refused:
        find_proxy(CONNECTION, Network.model_validate(settings))
    assert not any(word in str(refused.value) for word in ("jane", "geheim"))


def test_networks_can_be_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = CONNECTION.model_copy(update={"address": "10.1.2.3:9443"})
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert find_proxy(connection, Network(no_proxy=("10.0.0.0/8",))) == ""
    assert find_proxy(connection, Network(no_proxy=("10.9.0.0/16",))) == "http://proxy:1"

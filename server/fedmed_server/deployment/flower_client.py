"""The way to the SuperLink's private port: a client over TLS on the loopback, and its faults by name."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor

from fedmed_server.deployment.home import ServerHome

_CALL_SECONDS = 10.0
C = TypeVar("C", bound=ProtobufClient)


class SuperLinkAway(Exception):
    """The SuperLink does not answer, or not as it should; asking again later may help."""


class Refused(SuperLinkAway):
    """The SuperLink answers, and refuses; ``status`` is HTTP's."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"Flower answers HTTP {status}")


def root_certificates(home: ServerHome) -> bytes:
    """What the private port's certificate is checked against."""
    return home.authority.read_bytes()


def private_client(kind: type[C], home: ServerHome, *interceptors: ProtobufClientInterceptor) -> C:
    """A client of the private port that never goes through a proxy of this machine's environment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root_certificates(home).decode("ascii"))
    client = kind(f"https://{home.private_address()}", interceptors=interceptors, verify=context)
    client._client.close()
    client._client = httpx.Client(verify=context, timeout=_CALL_SECONDS, trust_env=False)
    return client


@contextmanager
def named_faults() -> Iterator[None]:
    """What goes wrong inside is :class:`SuperLinkAway`."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise Refused(error.response.status_code) from None
    except (httpx.HTTPError, OSError) as error:
        raise SuperLinkAway(f"Flower does not answer ({type(error).__name__})") from None

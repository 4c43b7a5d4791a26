"""What a site's kit and the server's home begin with: connection, skeletons of the two settings files, the page for IT."""

from __future__ import annotations

import base64
import json
from importlib.resources import files

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedmed_common import identity, kits
from fedmed_common.consortium import Connection, Consortium
from fedmed_server.deployment.home import Health, Private
from fedmed_server.provision.it_page import draw_page

_ASSETS = files("fedmed_server.provision")


def connection_for(
    consortium: Consortium, site: str, authority: x509.Certificate, signer: Ed25519PublicKey
) -> Connection:
    """What the site must know of its coordinator."""
    return Connection(
        consortium=consortium.name,
        site=site,
        address=consortium.coordinator.address,
        fingerprint=identity.fingerprint(authority),
        signer=base64.b64encode(signer.public_bytes_raw()).decode(),
        contact=consortium.coordinator.contact,
    )


def kit_files(
    consortium: Consortium, connection: Connection, authority: x509.Certificate, secret: bytes
) -> dict[str, bytes]:
    """The files of a site's kit; the same every time for the same consortium and the same fedmed."""
    return {
        kits.AUTHORITY: identity.certificate_text(authority).encode(),
        kits.CONNECTION: (connection.model_dump_json(indent=2) + "\n").encode(),
        kits.SITE: _filled("site.toml.txt", name=connection.site).encode(),
        kits.PAGE: draw_page(connection, consortium.certificates).encode(),
        kits.SECRET: secret,
    }


def server_settings(consortium: Consortium) -> str:
    """The ``server.toml`` that a server's home begins with."""
    public = consortium.coordinator.port
    private, health = (str(_other_than(public, model().port)) for model in (Private, Health))
    return _filled(
        "server.toml.txt",
        # A JSON string without control characters is a TOML string.
        name=json.dumps(consortium.name, ensure_ascii=False),
        address=consortium.coordinator.address,
        public=str(public),
        private=private,
        health=health,
    )


def _other_than(taken: int, wanted: int) -> int:
    return wanted + 10 if wanted == taken else wanted


def _filled(asset: str, **values: str) -> str:
    text = _ASSETS.joinpath(asset).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"<{key}>", value)
    return text

"""The folder of a consortium: the authority, the server's home, the kits, and what was made for which consortium file."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from pydantic import ValidationError

from fedmed_common import identity
from fedmed_common.consortium import Consortium
from fedmed_common.errors import ProvisionError
from fedmed_common.files import write_atomically
from fedmed_server.deployment.home import ServerHome
from fedmed_server.provision.authority import Authority


@dataclass(frozen=True, slots=True)
class ConsortiumFolder:
    """Where the coordinator keeps a consortium. Making one of these touches nothing on disk."""

    path: Path

    @property
    def record(self) -> Path:
        """The consortium file as it was when the folder was last made or changed by it."""
        return self.path / "consortium.json"

    @property
    def authority_key(self) -> Path:
        """The key that everything rests on; only provisioning needs it."""
        return self.path / "ca" / "ca.key"

    @property
    def authority_certificate(self) -> Path:
        """The certificate that sites and server trust."""
        return self.path / "ca" / "ca.pem"

    @property
    def enrolment_key(self) -> Path:
        """The secret from which those of the kits are drawn."""
        return self.path / "ca" / "enrolment.key"

    @property
    def server(self) -> ServerHome:
        """The server's home, complete but for what the server itself makes."""
        return ServerHome(self.path / "server")

    def kit(self, site: str) -> Path:
        """The kit to send to a site."""
        return self.path / "kits" / f"{site}.zip"

    def answer(self, site: str) -> Path:
        """The site's certificate, to send back to it."""
        return self.path / f"{site}.answer.json"

    def recorded(self) -> Consortium:
        """The consortium that the folder was made for.

        Raises:
            ProvisionError: there is none here.
        """
        try:
            return Consortium.model_validate_json(self.record.read_bytes())
        except FileNotFoundError:
            raise ProvisionError(
                f"{self.path}: holds no consortium\n"
                "  fix: name its folder with --out, or make one with: fedmed provision consortium.toml"
            ) from None
        except (OSError, ValidationError):
            raise ProvisionError(
                f"{self.record}: cannot be read\n"
                "  fix: restore it, or delete it and run again: fedmed provision consortium.toml"
            ) from None

    def keep_record(self, consortium: Consortium) -> None:
        """Write down what the folder was made for."""
        write_atomically(self.record, (consortium.model_dump_json(indent=2) + "\n").encode(), mode=0o600)

    def authority(self) -> Authority:
        """The authority, whose key and certificate belong together.

        Raises:
            ProvisionError: one of the two is missing, or they are not of one authority.
        """
        key = identity.load_key(self.authority_key)
        certificate = identity.load_certificate(self.authority_certificate)
        try:
            certificate.verify_directly_issued_by(certificate)
            same = identity.public_bytes(key.public_key()) == identity.public_bytes(
                identity.public_key(certificate)
            )
        except (ValueError, TypeError, InvalidSignature):
            same = False
        if not same:
            raise ProvisionError(
                f"{self.authority_certificate}: is not the certificate of {self.authority_key}\n"
                "  fix: restore both from a backup"
            )
        return Authority(key=key, certificate=certificate)

    def kit_secret(self, site: str) -> bytes:
        """The secret in a site's kit, which no other site's kit has."""
        try:
            key = self.enrolment_key.read_bytes()
        except OSError as error:
            raise ProvisionError(
                f"{self.enrolment_key}: {error.strerror}\n  fix: restore it from a backup"
            ) from None
        return hmac.new(key, f"fedmed kit 1\n{site}".encode(), hashlib.sha256).hexdigest().encode()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other provisioning out of the folder meanwhile.

        Raises:
            ProvisionError: another process is at work in it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ProvisionError(
                    f"{self.path}: another 'fedmed provision' is at work here\n  fix: wait until it has ended"
                ) from None
            yield

"""A site's home: one folder with all that a hospital's fedmed keeps, and where each thing lies in it.

Whoever backs this folder up has everything; whoever deletes it has removed the site.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedmed_common import identity
from fedmed_common.config import Site
from fedmed_common.consortium import Connection, load_connection
from fedmed_common.errors import ProvisionError
from fedmed_common.loading import load_site

_LONGEST_SOCKET_PATH = 100
_LOOKED_AT_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """A site's home. Making one of these touches nothing on disk."""

    path: Path

    @property
    def site_file(self) -> Path:
        """The hospital's own settings: data, labels, policy."""
        return self.path / "site.toml"

    @property
    def connection_file(self) -> Path:
        """Where the coordinator is and how it is recognised."""
        return self.path / "connection.json"

    @property
    def authority_file(self) -> Path:
        """The certificate of the consortium's authority."""
        return self.path / "ca.pem"

    @property
    def key_file(self) -> Path:
        """The site's private key, which never leaves this folder."""
        return self.path / "site.key"

    @property
    def next_key_file(self) -> Path:
        """A new private key that waits for its certificate."""
        return self.path / "site.key.next"

    @property
    def certificate_file(self) -> Path:
        """The site's certificate."""
        return self.path / "site.pem"

    @property
    def request_file(self) -> Path:
        """What the coordinator is sent to be signed."""
        return self.path / "request.json"

    @property
    def instance_file(self) -> Path:
        """The random number that tells this home from a copy of it elsewhere."""
        return self.path / "instance"

    @property
    def approvals(self) -> Path:
        """One file for each run that was offered to the site, and what it decided."""
        return self.path / "approvals"

    @property
    def outbox(self) -> Path:
        """Sealed replies."""
        return self.path / "outbox"

    @property
    def received(self) -> Path:
        """The numbers that came with the last orders. Not worth a backup: they come again."""
        return self.path / "received"

    @property
    def audit_file(self) -> Path:
        """What was asked, permitted, refused and sent."""
        return self.path / "audit.log"

    @property
    def incidents_file(self) -> Path:
        """The details of faults, which never leave the site."""
        return self.path / "incidents.log"

    @property
    def status_file(self) -> Path:
        """How the connection and the work stand."""
        return self.path / "status.json"

    @property
    def run(self) -> Path:
        """Pid files, locks and sockets of running processes."""
        return self.path / "run"

    @property
    def log(self) -> Path:
        """What the processes print."""
        return self.path / "log"

    @property
    def worker_socket(self) -> Path:
        """The worker's Unix socket: in ``run``, or in the temporary folder where that path is too long for a socket."""
        beside = self.run / "worker.sock"
        if len(os.fsencode(beside.absolute())) <= _LONGEST_SOCKET_PATH:
            return beside
        mark = hashlib.sha256(os.fsencode(self.path.absolute())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fedmed-{os.getuid()}-{mark}" / "worker.sock"

    def connection(self) -> Connection:
        """Where the coordinator is.

        Raises:
            ConfigError: the folder is no site's home, or the file is damaged.
        """
        return load_connection(self.connection_file)

    def site(self) -> Site:
        """The hospital's own settings.

        Raises:
            ConfigError: names the file, the field and the fix.
        """
        return load_site(self.site_file)

    def key(self) -> EllipticCurvePrivateKey:
        """The site's private key.

        Raises:
            ProvisionError: there is none that can be used.
        """
        return identity.load_key(self.key_file)

    def certificate(self) -> x509.Certificate:
        """The site's certificate.

        Raises:
            ProvisionError: there is none, or it cannot be read.
        """
        if not self.certificate_file.exists():
            raise ProvisionError(
                f"{self.certificate_file}: is missing, so this site cannot connect yet\n"
                f"  fix: send {self.request_file} to the coordinator, then run: fedmed site join ANSWER"
            )
        return identity.load_certificate(self.certificate_file)

    def instance(self) -> str:
        """A random number of this home, made once: two machines with the same key are told apart by it."""
        with suppress(FileNotFoundError):
            return self.instance_file.read_text().strip()
        with suppress(ProvisionError):  # another process was faster; its number counts
            identity.write_secret(self.instance_file, secrets.token_hex(16).encode())
        return self.instance_file.read_text().strip()

    @contextmanager
    def locked(self, role: str) -> Iterator[None]:
        """Hold the only place of ``role`` in this home; the kernel frees it however the process ends.

        Raises:
            ProvisionError: another process has the role.
        """
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        end = time.monotonic() + _LOOKED_AT_SECONDS
        with (self.run / f"{role}.lock").open("a") as stream:
            while not _lock(stream, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise ProvisionError(
                        f"{self.path}: another process is at work here as '{role}'\n"
                        "  fix: stop it with 'fedmed site stop', or name another folder with --home"
                    )
                time.sleep(0.02)
            yield

    def is_held(self, role: str) -> bool:
        """Whether a process has the role. To ask takes a shared lock for a moment, which :meth:`locked` waits for."""
        try:
            with (self.run / f"{role}.lock").open() as stream:
                return not _lock(stream, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False


def _lock(stream: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""The server's folder: where each of its files lies, its settings, and the two secrets that its processes share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator

from fedmed_common.fields import Model
from fedmed_common.files import write_atomically
from fedmed_common.loading import load_file

Port = Annotated[int, Field(ge=1, le=65535)]

PRIVATE_HOST = "127.0.0.1"


class Public(Model):
    """Where sites connect."""

    host: str = Field("0.0.0.0", description="the address to listen on")  # noqa: S104
    port: Port = 8443
    behind_proxy: bool = Field(
        False, description="a reverse proxy in front asks sites for their certificates"
    )


class Private(Model):
    """Where the server's own processes meet, on this machine alone."""

    port: Port = 8444


class Health(Model):
    """gRPC health checking, without TLS."""

    host: str = "127.0.0.1"
    port: Port = 8445


class RequestLimits(Model):
    """What one request of a site may be."""

    body_mb: Annotated[int, Field(ge=6, le=1024)] = Field(8, description="Flower's parts are up to 5 MB each")
    skew_seconds: Annotated[int, Field(ge=1, le=300)] = Field(60, description="how far two clocks may differ")


class State(Model):
    """Where Flower keeps nodes, runs, and the messages that are on their way."""

    database: str = Field(
        "",
        repr=False,
        description="a PostgreSQL database as postgresql://user@host/name, without its password; empty: a SQLite file in state/",
    )

    @field_validator("database")
    @classmethod
    def _postgresql_without_a_password(cls, database: str) -> str:
        if not database:
            return database
        parts = urlsplit(database)
        if parts.scheme != "postgresql" or not parts.path.strip("/"):
            raise ValueError("it is no address of a PostgreSQL database, as postgresql://user@host/name")
        if parts.password is not None or "password" in parse_qs(parts.query):
            raise ValueError(
                "this file holds no passwords: put it into ~/.pgpass of the server's user, or the file that PGPASSFILE names"
            )
        return database


class Tracking(Model):
    """MLflow."""

    uri: str = Field("", description="any MLflow store; empty: a SQLite file beside the runs")


class ServerSettings(Model):
    """``server.toml``."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    public: Public = Public()
    private: Private = Private()
    health: Health = Health()
    limits: RequestLimits = RequestLimits()
    state: State = State()
    tracking: Tracking = Tracking()


def load_server(path: Path) -> ServerSettings:
    """Read a ``server.toml``.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    return load_file(ServerSettings, path)


@dataclass(frozen=True, slots=True)
class ServerHome:
    """The server's folder. Nothing is read or made before it is asked for."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "server.toml"

    @property
    def authority(self) -> Path:
        """The certificate of the consortium's authority."""
        return self.path / "tls" / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.path / "tls" / "server.pem"

    @property
    def key(self) -> Path:
        return self.path / "tls" / "server.key"

    @property
    def signing_key(self) -> Path:
        """Signs the bundles of runs."""
        return self.path / "signing.key"

    @property
    def registry(self) -> Path:
        """The sites and their certificates."""
        return self.path / "registry.json"

    @property
    def receipts(self) -> Path:
        """How far each site's privacy ledger has come."""
        return self.path / "receipts"

    @property
    def control_token(self) -> Path:
        """Who holds it may start and stop runs, over the private port."""
        return self.path / "secrets" / "control.token"

    @property
    def superexec_secret(self) -> Path:
        """Who holds it may take a run's task, over the private port."""
        return self.path / "secrets" / "superexec.secret"

    @property
    def database(self) -> Path:
        return self.path / "state" / "flower.db"

    @property
    def bulk(self) -> Path:
        """The numbers of orders and replies that are on their way. Not worth a backup."""
        return self.path / "state" / "bulk"

    @property
    def site_states(self) -> Path:
        """What the server knows about each site's connection."""
        return self.path / "state" / "sites.json"

    @property
    def flower(self) -> Path:
        """Flower's own folder."""
        return self.path / "flower"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def run(self, run: str) -> Path:
        """The folder of one run."""
        return self.runs / run

    def settings(self) -> ServerSettings:
        """The settings as they are in the file now.

        Raises:
            ConfigError: names the file, the field and the fix.
        """
        return load_server(self.settings_file)

    def private_address(self) -> str:
        """Where the server's own processes reach Flower: host and port."""
        return f"{PRIVATE_HOST}:{self.settings().private.port}"

    def prepare(self) -> None:
        """Make the folders and the secrets that are not there yet."""
        for folder in (self.control_token.parent, self.database.parent, self.flower, self.runs, self.log):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for secret in (self.control_token, self.superexec_secret):
            if not secret.exists():
                write_atomically(secret, secrets.token_hex(32).encode(), mode=0o600)


def read_secret(path: Path) -> str:
    """One of the server's secrets."""
    return path.read_text().strip()

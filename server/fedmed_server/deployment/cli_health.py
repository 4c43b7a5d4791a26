"""``fedmed health``: whether a server works, for container engines and for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def health_command(
    home: Annotated[
        Path, typer.Option(envvar="FEDMED_HOME", help="The server's folder.", show_default="this folder")
    ] = Path(),
) -> None:
    """Say whether the server of this folder serves sites; exit code 0 only when it does."""
    from fedmed_common import health
    from fedmed_server.deployment.home import ServerHome

    settings = ServerHome(home.absolute()).settings().health
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    health.check(f"{host}:{settings.port}")
    typer.echo("serving")

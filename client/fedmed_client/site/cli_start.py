"""``fedmed site start``, ``stop``, ``status``, ``health`` and ``audit``: a site from day to day."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fedmed_client.site.cli_join import HERE, Home


def start_command(home: Home = HERE) -> None:
    """Run this hospital's site until it is stopped; it connects, waits for orders, and trains under its own policy."""
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.start import start

    code = start(SiteFolder(home.absolute()))
    if code:
        raise typer.Exit(code)


def stop_command(home: Home = HERE) -> None:
    """Stop this hospital's site. What it was training is done again when it comes back; nothing is lost."""
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.start import stop

    typer.echo("stopped" if stop(SiteFolder(home.absolute())) else "no site runs here")


def status_command(
    home: Home = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show how this hospital's site is: its processes, its connection, its certificate, whether it takes orders now."""
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.status import status

    found = status(SiteFolder(home.absolute()))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    lines = [(name.replace("_", " "), value) for name, value in _lines(found) if value not in {"", "-"}]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}")


def health_command(home: Home = HERE) -> None:
    """Say whether this hospital's site runs as it should; exit code 0 only when it does."""
    from fedmed_client.site.health import socket_of
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.work.frames import address
    from fedmed_common import health

    health.check(address(socket_of(SiteFolder(home.absolute()))))
    typer.echo("serving")


def audit_command(home: Home = HERE) -> None:
    """Check that nothing in this site's audit log was changed, removed or put in; names the first line that was."""
    from fedmed_client.site.audit import AuditLog

    head = AuditLog(home.absolute()).verify()
    typer.echo(f"{head.lines} lines, whole; the last has SHA-256 {head.sha256}")


def _lines(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name} ")
        else:
            lines.append((prefix + name, _said(value)))
    return lines


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)

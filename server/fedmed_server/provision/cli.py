"""``fedmed provision``: the coordinator's commands on the consortium's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedmed_server.provision.certify import Certified

Out = Annotated[Path, typer.Option("--out", help="The consortium's folder.", envvar="FEDMED_CONSORTIUM")]
_OUT = Path("consortium")


def create_command(
    file: Annotated[Path, typer.Argument(help="The consortium's file.", show_default=False)],
    out: Out = _OUT,
    change: Annotated[
        bool, typer.Option("--change", help="Accept that the file differs from what the folder was made for.")
    ] = False,
) -> None:
    """Make what a consortium file asks for: the authority, the server's home, a signed kit for each site.

    What is there is kept, so that the same command adds a site later. The folder holds the authority's private key: only the
    coordinator may read it, and it is worth a backup.
    """
    from fedmed_common.identity import fingerprint
    from fedmed_server.provision.create import create
    from fedmed_server.provision.folder import ConsortiumFolder

    folder = ConsortiumFolder(out)
    for made in create(file, folder, change=change):
        typer.echo(f"{made.state:8}{made.path}" + (f"  ({made.note})" if made.note else ""))
    typer.echo(f"authority: {fingerprint(folder.authority().certificate)}")
    typer.echo("Tell each site this fingerprint by another way than its kit, as by telephone.")


def sign_command(
    request: Annotated[Path, typer.Argument(help="The request.json that a site sent.", show_default=False)],
    out: Out = _OUT,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="The site has told you that it made a new key.")
    ] = False,
    reinstate: Annotated[bool, typer.Option("--reinstate", help="Let a revoked site in again.")] = False,
) -> None:
    """Certify a site: check its request, register its key, and write the answer to send back."""
    from fedmed_server.provision.certify import sign
    from fedmed_server.provision.folder import ConsortiumFolder

    certified = sign(ConsortiumFolder(out), request, new_key=new_key, reinstate=reinstate)
    _tell(certified, "is certified already" if certified.again else "is certified")


def renew_command(
    name: Annotated[str, typer.Argument(help="A site, or 'server'.", show_default=False)],
    out: Out = _OUT,
) -> None:
    """Make a new certificate for the key that a site, or the server, has."""
    from fedmed_server.provision.certify import SERVER, renew
    from fedmed_server.provision.folder import ConsortiumFolder

    certified = renew(ConsortiumFolder(out), name)
    if certified.name == SERVER:
        typer.echo(
            f"the server's certificate is valid until {certified.certificate.not_valid_after_utc:%Y-%m-%d}"
        )
        typer.echo("next: start 'fedmed serve' again")
    else:
        _tell(certified, "is certified anew")


def revoke_command(
    name: Annotated[str, typer.Argument(help="The site to shut out.", show_default=False)],
    out: Out = _OUT,
) -> None:
    """Shut a site out at once, also from runs that are under way."""
    from fedmed_server.provision.certify import revoke
    from fedmed_server.provision.folder import ConsortiumFolder

    folder = ConsortiumFolder(out)
    site = revoke(folder, name)
    typer.echo(f"{site.name} is revoked since {site.revoked}")
    typer.echo(f"A server that runs from {folder.server.path} refuses its next request.")


def show_command(
    out: Out = _OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List the certificates: whose, until when, and what is to be done."""
    import json
    from dataclasses import asdict

    from fedmed_server.provision.folder import ConsortiumFolder
    from fedmed_server.provision.overview import overview

    entries = overview(ConsortiumFolder(out))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("certificate", "state", "expires", "days left", "to do"):
        table.add_column(heading, justify="right" if heading == "days left" else "left", overflow="fold")
    for entry in entries:
        left = "" if entry.days_left is None else str(entry.days_left)
        table.add_row(entry.name, entry.state, entry.expires[:10], left, entry.todo)
    Console().print(table, highlight=False, markup=False)


def _tell(certified: Certified, done: str) -> None:
    from fedmed_common.identity import key_fingerprint, public_key

    certificate = certified.certificate
    typer.echo(f"{certified.name} {done}, until {certificate.not_valid_after_utc:%Y-%m-%d}")
    typer.echo(f"key: {key_fingerprint(public_key(certificate))}")
    typer.echo(f"next: send {certified.file} to the site, which runs: fedmed site join {certified.file.name}")

"""``fedmed site init``, ``join`` and ``rotate``: how a hospital gets its certificate, and a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option("--home", help="The site's folder.", envvar="FEDMED_HOME")]
"""Where a command finds the site: ``--home``, the environment, or the folder it is run in."""

HERE = Path()


def init_command(
    kit: Annotated[Path, typer.Argument(help="The .zip file that the coordinator sent.", show_default=False)],
    home: Home = HERE,
    fingerprint: Annotated[
        str,
        typer.Option(help="The authority's fingerprint, as the coordinator told it; any other is refused."),
    ] = "",
    change: Annotated[
        bool, typer.Option("--change", help="Accept a new address or signer from the same consortium.")
    ] = False,
) -> None:
    """Open a kit: check it, make this site's private key, and write the request to send to the coordinator.

    The private key never leaves the folder. What is there is kept.
    """
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.joining import open_home
    from fedmed_common.identity import fingerprint as fingerprint_of
    from fedmed_common.identity import key_fingerprint

    folder = SiteFolder(home)
    opened = open_home(kit, folder, fingerprint=fingerprint, change=change)
    typer.echo(f"{opened.connection.site} in {opened.connection.consortium}, at {opened.connection.address}")
    typer.echo(f"authority: {fingerprint_of(opened.authority)}")
    if not fingerprint:
        typer.echo("Compare this with the fingerprint that your coordinator tells you by telephone.")
    typer.echo(f"key: {key_fingerprint(folder.key().public_key())}")
    if folder.certificate_file.exists():
        typer.echo(f"certificate: valid until {folder.certificate().not_valid_after_utc:%Y-%m-%d}")
    else:
        typer.echo(
            f"next: send {folder.request_file} to the coordinator, and install the answer: fedmed site join ANSWER"
        )


def join_command(
    answer: Annotated[
        Path, typer.Argument(help="The .answer.json file that the coordinator sent.", show_default=False)
    ],
    home: Home = HERE,
) -> None:
    """Install this site's certificate, or its successor."""
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.joining import join

    folder = SiteFolder(home)
    joined = join(answer, folder)
    until = f"{joined.certificate.not_valid_after_utc:%Y-%m-%d}"
    typer.echo(
        f"the certificate {'was installed already' if joined.again else 'is installed'}, and is valid until {until}"
    )
    if joined.new_key:
        typer.echo("The new key is in use, and the old one is deleted.")
    typer.echo(f"next: say in {folder.site_file} where the data lie, then run: fedmed site check")


def rotate_command(home: Home = HERE) -> None:
    """Make a new private key beside the present one, and the request to have it certified."""
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.joining import rotate
    from fedmed_common.identity import key_fingerprint, load_key

    folder = SiteFolder(home)
    request = rotate(folder)
    typer.echo(f"key: {key_fingerprint(load_key(folder.next_key_file).public_key())}")
    typer.echo(f"next: send {request} to the coordinator, and install the answer: fedmed site join ANSWER")
    typer.echo(
        "The present key stays in use until then, and the server accepts it until it has signed the new one."
    )

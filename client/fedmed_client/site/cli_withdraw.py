"""``fedmed site withdraw``: a patient who withdrew consent is left out from the next order on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from fedmed_client.site.cli_join import HERE, Home


def withdraw_command(
    patient: Annotated[
        str,
        typer.Argument(
            help="PatientID; for other files than DICOM, the patient's part of their names. '-' reads it from standard input, "
            "so that no list of processes and no history of a shell has it.",
            show_default=False,
        ),
    ],
    issuer: Annotated[
        str | None,
        typer.Option(help="IssuerOfPatientID, where several use the same.", show_default="any"),
    ] = None,
    home: Home = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Leave a patient who withdrew consent out of all training and testing at this site, from the next order on.

    What is prepared of the patient's images is deleted in this home; the images themselves stay where they are. The runs that had
    trained on the patient are listed here. The coordinator is told how many there are, and nothing else.
    """
    from fedmed_client.data.prepared import delete_prepared
    from fedmed_client.site.audit import AuditLog
    from fedmed_client.site.home import SiteFolder
    from fedmed_client.site.withdrawals import Withdrawals
    from fedmed_common.errors import ConfigError

    folder = SiteFolder(home.absolute())
    folder.site()
    identifier = (typer.get_text_stream("stdin").readline() if patient == "-" else patient).strip()
    if not identifier:
        raise ConfigError("is empty", field="PATIENT", fix="give the patient's PatientID")
    uses = Withdrawals(folder.path).add(identifier, issuer)
    AuditLog(folder.path).append("withdrawn", affected=len(uses))
    found = delete_prepared(folder.path, Withdrawals(folder.path).holds)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "known": bool(found or uses),
                    "prepared_images_deleted": found,
                    "runs": [asdict(use) for use in uses],
                },
                indent=2,
            )
        )
        return
    if found or uses:
        typer.echo("withdrawn: the next order is carried out without the patient")
        typer.echo(f"prepared images deleted here: {found}")
    else:
        typer.echo(
            "noted, but no patient of this identifier was prepared or trained on here: check how images spell it; wherever it "
            "turns up, orders leave it out"
        )
    for use in uses:
        typer.echo(f"had been trained on: {use.run} ({use.experiment}), since {use.first[:16]}")
    told = f"the coordinator will be told that {len(uses)} runs are affected"
    typer.echo(told if uses else "no run had trained on the patient")

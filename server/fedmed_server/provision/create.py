"""``fedmed provision consortium.toml``: make what the file asks for, keep what is there, change nothing silently."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature

from fedmed_common import identity, kits
from fedmed_common.consortium import Consortium, load_consortium
from fedmed_common.errors import ProvisionError
from fedmed_common.files import write_atomically
from fedmed_server.provision import authority as authorities
from fedmed_server.provision.authority import Authority
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.kit import connection_for, kit_files, server_settings
from fedmed_server.provision.registry import load_registry, save_registry

State = Literal["made", "kept", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One thing that was asked for: where it lies, and whether it was there before. ``note``: what is to be known of it."""

    path: Path
    state: State
    note: str = ""


def create(
    file: Path, folder: ConsortiumFolder, *, change: bool = False, now: datetime | None = None
) -> list[Made]:
    """Bring the folder up to the file. ``change``: accept that the file differs from what the folder was made for.

    Raises:
        ConfigError: the file is wrong.
        ProvisionError: the file would change what was made, or the folder holds something else or is damaged.
    """
    consortium = load_consortium(file)
    _check_is_ours(folder)
    with folder.locked():
        if folder.record.exists():
            _check_changes(folder, consortium, file, change=change)
        made = [_authority(folder, consortium, now), *_server(folder, consortium, now, change=change)]
        made += _kits(folder, consortium, change=change)
        folder.keep_record(consortium)
    return made


def differences(before: Consortium, after: Consortium) -> list[str]:
    """What a new consortium file would change of what was made for the old one; new sites change nothing."""
    found = [
        f"coordinator.{name}: was {old!r}, is {new!r}"
        for name, old in before.coordinator.model_dump().items()
        if (new := after.coordinator.model_dump()[name]) != old
    ]
    kept = {site.name for site in after.sites}
    return found + [f"sites: '{name}' is left out" for name in before.names if name not in kept]


def renew_server(folder: ConsortiumFolder, consortium: Consortium, now: datetime | None = None) -> None:
    """Certify the server's key anew, under the consortium's present names."""
    home = folder.server
    certificate = folder.authority().certify_server(
        consortium, identity.load_key(home.key).public_key(), now=now
    )
    write_atomically(home.certificate, identity.certificate_text(certificate).encode())


def _check_is_ours(folder: ConsortiumFolder) -> None:
    """A first run that was cut short leaves ``ca`` and no record; it is gone on with."""
    if folder.path.is_dir() and not folder.record.exists() and not folder.authority_key.parent.exists():
        if any(entry.name != ".lock" for entry in folder.path.iterdir()):
            raise ProvisionError(
                f"{folder.path}: is not empty, and was not made by 'fedmed provision'\n  fix: name another folder with --out"
            )
    elif folder.path.exists() and not folder.path.is_dir():
        raise ProvisionError(f"{folder.path}: is not a folder\n  fix: name a folder with --out")


def _check_changes(folder: ConsortiumFolder, consortium: Consortium, file: Path, *, change: bool) -> None:
    recorded = folder.recorded()
    if recorded.name != consortium.name:
        raise ProvisionError(
            f"{file}: name: is '{consortium.name}', but {folder.path} is of the consortium '{recorded.name}'\n"
            "  fix: name another folder with --out; a consortium keeps its name, which is in every certificate"
        )
    registered = load_registry(folder.server.registry)
    for name in recorded.names:
        if name not in consortium.names and name in registered and not registered[name].revoked:
            raise ProvisionError(
                f"{file}: sites: '{name}' is left out, but may still connect\n  fix: fedmed provision revoke {name}"
            )
    found = differences(recorded, consortium)
    if found and not change:
        raise ProvisionError(
            f"{file}: differs from what {folder.path} was made for:\n"
            + "".join(f"    {line}\n" for line in found)
            + "  fix: put the file back, or accept this with --change; sites then need the new kits"
        )


def _authority(folder: ConsortiumFolder, consortium: Consortium, now: datetime | None) -> Made:
    folder.authority_key.parent.mkdir(mode=0o700, exist_ok=True)
    if not folder.enrolment_key.exists():
        identity.write_secret(folder.enrolment_key, secrets.token_hex(32).encode())
    if folder.authority_certificate.exists():
        name = authorities.organization(folder.authority().certificate)
        if name != consortium.name:
            raise ProvisionError(
                f"{folder.authority_certificate}: is of the consortium '{name}', not of '{consortium.name}'\n"
                "  fix: name another folder with --out"
            )
        return Made(path=folder.authority_certificate, state="kept")
    if not folder.authority_key.exists():
        identity.save_key(folder.authority_key, identity.new_key())
    key = identity.load_key(folder.authority_key)
    certificate = authorities.new_authority_certificate(consortium, key, now=now)
    write_atomically(folder.authority_certificate, identity.certificate_text(certificate).encode())
    return Made(path=folder.authority_certificate, state="made")


def _server(
    folder: ConsortiumFolder, consortium: Consortium, now: datetime | None, *, change: bool
) -> Iterator[Made]:
    home = folder.server
    home.path.mkdir(mode=0o700, exist_ok=True)
    home.key.parent.mkdir(mode=0o700, exist_ok=True)
    if not home.key.exists():
        identity.save_key(home.key, identity.new_key())
    if not home.signing_key.exists():
        identity.save_key(home.signing_key, identity.new_signing_key())
    text = identity.certificate_text(folder.authority().certificate).encode()
    if not home.authority.exists():
        write_atomically(home.authority, text)
    elif home.authority.read_bytes() != text:
        raise ProvisionError(
            f"{home.authority}: is not the authority in {folder.authority_certificate}\n"
            f"  fix: delete {home.authority} and run again, which copies it"
        )
    if not home.registry.exists():
        save_registry(home.registry, {})
    yield _server_certificate(folder, consortium, now, change=change)
    yield _server_settings(folder, consortium)


def _server_certificate(
    folder: ConsortiumFolder, consortium: Consortium, now: datetime | None, *, change: bool
) -> Made:
    file = folder.server.certificate
    if not file.exists():
        renew_server(folder, consortium, now)
        return Made(path=file, state="made")
    certificate = identity.load_certificate(file)
    try:
        certificate.verify_directly_issued_by(folder.authority().certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise ProvisionError(
            f"{file}: is not from the authority in {folder.authority_certificate}\n  fix: fedmed provision renew server"
        ) from None
    certified, wanted = authorities.certified_names(certificate), authorities.server_names(consortium)
    if authorities.same_names(certified, wanted):
        return Made(path=file, state="kept")
    if not change:
        raise ProvisionError(
            f"{file}: is for {', '.join(certified)}, and the consortium file asks for {', '.join(wanted)}\n"
            "  fix: run again with --change"
        )
    renew_server(folder, consortium, now)
    return Made(path=file, state="changed", note="start the server again")


def _server_settings(folder: ConsortiumFolder, consortium: Consortium) -> Made:
    home = folder.server
    if not home.settings_file.exists():
        write_atomically(home.settings_file, server_settings(consortium).encode())
        return Made(path=home.settings_file, state="made")
    port, asked = home.settings().public.port, consortium.coordinator.port
    note = "" if port == asked else f"listens on port {port}; sites are told {asked}"
    return Made(path=home.settings_file, state="kept", note=note)


def _kits(folder: ConsortiumFolder, consortium: Consortium, *, change: bool) -> Iterator[Made]:
    authority = folder.authority()
    signer = identity.load_signing_key(folder.server.signing_key).public_key()
    folder.kit("any").parent.mkdir(mode=0o700, exist_ok=True)
    for site in consortium.names:
        connection = connection_for(consortium, site, authority.certificate, signer)
        files = kit_files(consortium, connection, authority.certificate, folder.kit_secret(site))
        yield _kit(folder.kit(site), files, authority, change=change)


def _kit(path: Path, files: dict[str, bytes], authority: Authority, *, change: bool) -> Made:
    state: State = "made"
    if path.exists():
        try:
            present = kits.open_kit(path, fingerprint=identity.fingerprint(authority.certificate))
        except ProvisionError as error:
            raise ProvisionError(
                f"{str(error).partition(chr(10))[0]}\n  fix: delete {path} and run again, which makes it anew"
            ) from None
        if kits.manifest_of(present.files) == kits.manifest_of(files):
            return Made(path=path, state="kept")
        if not change:
            return Made(
                path=path, state="kept", note="as an earlier fedmed made it; delete it to have it made anew"
            )
        state = "changed"
    write_atomically(path, kits.pack(files, authority.key), mode=0o600)
    return Made(
        path=path, state=state, note="send it to the site" if state == "made" else "send it to the site again"
    )

"""How a hospital comes into a consortium: its kit, its own key, the request that leaves, the certificate that comes back.

The private key is made here and stays here. Nothing that is there is overwritten silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedmed_client.site.home import SiteFolder
from fedmed_common import identity, kits
from fedmed_common.consortium import Connection
from fedmed_common.enrolment import check_certificate, load_answer, request_with_key, request_with_kit
from fedmed_common.errors import ProvisionError
from fedmed_common.files import write_atomically
from fedmed_common.kits import Kit, open_kit


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What joining did. ``again``: the very certificate was there already. ``new_key``: a new key came into use with it."""

    certificate: x509.Certificate
    again: bool = False
    new_key: bool = False


def open_home(kit_file: Path, home: SiteFolder, *, fingerprint: str = "", change: bool = False) -> Kit:
    """Make a site's home of a kit: its files, a new private key, the request to send. Again, it makes what is missing.

    ``fingerprint``: that of the authority as the coordinator told it. ``change``: accept another address, signer or contact
    for the same site of the same consortium.

    Raises:
        ProvisionError: the kit is damaged or not what it should be, or the home is another site's.
    """
    kit = open_kit(kit_file, fingerprint=fingerprint)
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with home.locked("enrolment"):
        if home.connection_file.exists():
            _check_same_site(home, kit, kit_file, change=change)
        _write_kit(home, kit)
        if not home.key_file.exists():
            _check_no_certificate(home)
            identity.save_key(home.key_file, identity.new_key())
        if not home.request_file.exists() and not home.certificate_file.exists():
            request = request_with_kit(kit.connection, home.key(), kit.files[kits.SECRET])
            write_atomically(home.request_file, request.text())
    return kit


def join(answer_file: Path, home: SiteFolder, *, now: datetime | None = None) -> Joined:
    """Install the certificate in an answer, and with it the new key that it is for, where there is one.

    Raises:
        ConfigError: the file is no answer, or the home is none.
        ProvisionError: the certificate is not for this site and its key, is not from its authority, or is not valid now.
    """
    connection, answer = home.connection(), load_answer(answer_file)
    certificate = identity.read_certificate(answer.certificate.encode(), f"{answer_file}: certificate")
    with home.locked("enrolment"):
        authority = identity.load_certificate(home.authority_file)
        wrong = check_certificate(certificate, authority, connection.site, now=now)
        if wrong:
            raise ProvisionError(
                f"{answer_file}: the certificate {wrong}\n  fix: ask the coordinator for the answer to this site's request.json"
            )
        new_key = _is_for(certificate, home.next_key_file)
        if not new_key and not _is_for(certificate, home.key_file):
            raise ProvisionError(
                f"{answer_file}: the certificate is for another key than {home.key_file}\n"
                f"  fix: send {home.request_file} to the coordinator, and use the answer to it"
            )
        again = not new_key and _is_installed(home, certificate, answer_file)
        if new_key:
            # The old certificate goes first: were this cut short, joining again finds a key that matches.
            home.certificate_file.unlink(missing_ok=True)
            home.next_key_file.replace(home.key_file)
        if not again:
            write_atomically(home.certificate_file, identity.certificate_text(certificate).encode())
    return Joined(certificate=certificate, again=again, new_key=new_key)


def rotate(home: SiteFolder) -> Path:
    """Make a new key beside the present one, and the request to certify it. The present one is used until the answer is here.

    Raises:
        ProvisionError: this site has no certificate yet.
    """
    connection = home.connection()
    with home.locked("enrolment"):
        home.certificate()
        present = home.key()
        if not home.next_key_file.exists():
            identity.save_key(home.next_key_file, identity.new_key())
        request = request_with_key(connection, identity.load_key(home.next_key_file), present)
        write_atomically(home.request_file, request.text())
    return home.request_file


def _check_same_site(home: SiteFolder, kit: Kit, kit_file: Path, *, change: bool) -> None:
    present, offered = home.connection(), kit.connection
    kept: list[Callable[[Connection], str]] = [
        lambda c: c.consortium,
        lambda c: c.site,
        lambda c: c.fingerprint,
    ]
    if any(field(present) != field(offered) for field in kept):
        raise ProvisionError(
            f"{home.path}: is the home of '{present.site}' in '{present.consortium}', and {kit_file} is another's kit\n"
            "  fix: name another folder with --home"
        )
    differing = [name for name, value in present.model_dump().items() if offered.model_dump()[name] != value]
    if differing and not change:
        raise ProvisionError(
            f"{kit_file}: would change {', '.join(differing)} in {home.connection_file}\n"
            "  fix: if your coordinator said so, accept it with --change"
        )


def _write_kit(home: SiteFolder, kit: Kit) -> None:
    """The hospital's own ``site.toml`` is never touched; the other files are the consortium's."""
    authority = identity.certificate_text(kit.authority).encode()
    wanted = {
        home.authority_file: authority,
        home.path / kits.PAGE: kit.files[kits.PAGE],
        home.connection_file: kit.files[kits.CONNECTION],
    }
    if not home.site_file.exists():
        write_atomically(home.site_file, kit.files[kits.SITE], mode=0o600)
    for file, content in wanted.items():
        if not file.exists() or file.read_bytes() != content:
            write_atomically(file, content)


def _check_no_certificate(home: SiteFolder) -> None:
    if home.certificate_file.exists():
        raise ProvisionError(
            f"{home.key_file}: is missing, but its certificate is there\n"
            f"  fix: restore the key from a backup, or delete {home.certificate_file} and run again, which makes a new key"
        )


def _is_for(certificate: x509.Certificate, key_file: Path) -> bool:
    if not key_file.exists():
        return False
    own = identity.load_key(key_file).public_key()
    return identity.public_bytes(own) == identity.public_bytes(identity.public_key(certificate))


def _is_installed(home: SiteFolder, certificate: x509.Certificate, answer_file: Path) -> bool:
    """Whether this certificate is installed; an older one does not take the place of a newer one."""
    if not home.certificate_file.exists():
        return False
    present = home.certificate()
    if present == certificate:
        return True
    if not _is_for(present, home.key_file):
        return False
    if present.not_valid_after_utc > certificate.not_valid_after_utc:
        raise ProvisionError(
            f"{answer_file}: the certificate ends on {certificate.not_valid_after_utc:%Y-%m-%d}, before the installed one\n"
            "  fix: use the newest answer; this one is out of date"
        )
    return False

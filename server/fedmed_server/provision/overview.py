"""How a consortium's certificates stand: what ``fedmed provision show`` lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cryptography import x509

from fedmed_common import identity
from fedmed_common.consortium import Consortium
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.registry import RegisteredSite, load_registry

State = Literal["valid", "expires soon", "expired", "revoked", "invited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One certificate. ``todo``: what the coordinator is to do about it; empty where nothing is."""

    name: str
    kind: Literal["authority", "server", "site"]
    state: State
    expires: str = ""
    days_left: int | None = None
    fingerprint: str = ""
    key: str = ""
    revoked: str = ""
    contact: str = ""
    todo: str = ""


def overview(folder: ConsortiumFolder, now: datetime | None = None) -> list[Entry]:
    """All certificates: the authority's, the server's, and each site's.

    Raises:
        ProvisionError: there is no consortium in the folder, or a file of it cannot be read.
    """
    moment = now or datetime.now(UTC)
    consortium = folder.recorded()
    authority = identity.load_certificate(folder.authority_certificate)
    server = identity.load_certificate(folder.server.certificate)
    warn_days = consortium.certificates.warn_days
    first = [
        _entry(
            "authority", "authority", authority, warn_days, moment, "make a new consortium in a new folder"
        ),
        _entry("server", "server", server, warn_days, moment, "fedmed provision renew server"),
    ]
    return first + list(_sites(consortium, load_registry(folder.server.registry), moment))


def _sites(
    consortium: Consortium, registered: dict[str, RegisteredSite], moment: datetime
) -> Iterator[Entry]:
    contacts = {site.name: site.contact for site in consortium.sites}
    warn_days = consortium.certificates.warn_days
    for name in [*consortium.names, *(name for name in registered if name not in contacts)]:
        contact, site = contacts.get(name, ""), registered.get(name)
        if site is None:
            todo = "send its kit, and sign the request that comes back"
            yield Entry(name=name, kind="site", state="invited", contact=contact, todo=todo)
        else:
            renew = f"fedmed provision renew {name}"
            yield _entry(
                name,
                "site",
                site.certificate,
                warn_days,
                moment,
                renew,
                revoked=site.revoked,
                contact=contact,
            )


def _entry(
    name: str,
    kind: Literal["authority", "server", "site"],
    certificate: x509.Certificate,
    warn_days: int,
    moment: datetime,
    todo: str,
    *,
    revoked: str = "",
    contact: str = "",
) -> Entry:
    left = identity.days_left(certificate, moment)
    state: State = "valid"
    if revoked:
        state = "revoked"
    elif moment >= certificate.not_valid_after_utc:
        state = "expired"
    elif left < warn_days:
        state = "expires soon"
    return Entry(
        name=name,
        kind=kind,
        state=state,
        expires=certificate.not_valid_after_utc.isoformat(timespec="seconds"),
        days_left=left,
        fingerprint=identity.fingerprint(certificate),
        key=identity.key_fingerprint(identity.public_key(certificate)),
        revoked=revoked,
        contact=contact,
        todo=todo if state in {"expired", "expires soon"} else "",
    )

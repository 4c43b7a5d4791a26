"""Signing a site's request, renewing, revoking. Each changes the registry, which the server reads again at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common import identity
from fedmed_common.consortium import Consortium
from fedmed_common.enrolment import Answer, Request, is_proved, load_request, requested_key
from fedmed_common.errors import ProvisionError
from fedmed_common.files import write_atomically
from fedmed_server.provision.create import renew_server
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.registry import RegisteredSite, load_registry, save_registry

SERVER = "server"
"""What the coordinator's own certificate is called where sites are called by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A certificate and where it lies. ``state``: whether it was made, or is that of an earlier time."""

    name: str
    certificate: x509.Certificate
    file: Path
    again: bool = False


def sign(
    folder: ConsortiumFolder,
    file: Path,
    *,
    new_key: bool = False,
    reinstate: bool = False,
    now: datetime | None = None,
) -> Certified:
    """Certify the site whose request is in ``file``, and write the answer for it.

    A request that was signed before is answered with the same certificate while that is not about to end. ``new_key``:
    accept a key other than the registered one on the kit's word alone. ``reinstate``: certify a revoked site again.

    Raises:
        ConfigError: the file is no request.
        ProvisionError: the request is not of this consortium or of one of its sites, or its proof does not hold.
    """
    consortium, request = folder.recorded(), load_request(file)
    with folder.locked():
        sites = load_registry(folder.server.registry)
        key = _checked_key(folder, consortium, sites, request, file)
        present = sites.get(request.site)
        if present is not None:
            _check_may_replace(present, request, key, file, new_key=new_key, reinstate=reinstate)
            if (
                not present.revoked
                and _same(present.public_key, key)
                and not _ends_soon(present, consortium, now)
            ):
                return _answer(folder, consortium, present, again=True)
        certificate = folder.authority().certify_site(consortium, request.site, key, now=now)
        return _register(
            folder, consortium, sites, RegisteredSite(name=request.site, certificate=certificate)
        )


def renew(folder: ConsortiumFolder, name: str, *, now: datetime | None = None) -> Certified:
    """A new certificate for a registered site's key, or for the server's.

    Raises:
        ProvisionError: the site is not registered, or is revoked.
    """
    consortium = folder.recorded()
    with folder.locked():
        if name == SERVER:
            renew_server(folder, consortium, now)
            home = folder.server
            return Certified(
                name=SERVER, certificate=identity.load_certificate(home.certificate), file=home.certificate
            )
        sites = load_registry(folder.server.registry)
        present = _registered(sites, consortium, name)
        if present.revoked:
            raise ProvisionError(
                f"the site '{name}' was revoked on {present.revoked[:10]}\n"
                "  fix: to let it in again, sign a request of it with: fedmed provision sign REQUEST --reinstate"
            )
        certificate = folder.authority().certify_site(consortium, name, present.public_key, now=now)
        return _register(folder, consortium, sites, replace(present, certificate=certificate))


def revoke(folder: ConsortiumFolder, name: str, *, now: datetime | None = None) -> RegisteredSite:
    """Shut a site out; a server that runs refuses its next request. A site that is revoked stays so since when it was.

    Raises:
        ProvisionError: the site is not registered.
    """
    consortium = folder.recorded()
    with folder.locked():
        sites = load_registry(folder.server.registry)
        present = _registered(sites, consortium, name)
        if present.revoked:
            return present
        revoked = replace(present, revoked=(now or datetime.now(UTC)).isoformat(timespec="seconds"))
        save_registry(folder.server.registry, {**sites, name: revoked})
        folder.answer(name).unlink(missing_ok=True)
        return revoked


def _checked_key(
    folder: ConsortiumFolder,
    consortium: Consortium,
    sites: Mapping[str, RegisteredSite],
    request: Request,
    file: Path,
) -> ec.EllipticCurvePublicKey:
    """The key to certify, once everything that the request says holds."""
    if request.consortium != consortium.name:
        raise ProvisionError(
            f"{file}: consortium: is '{request.consortium}', and this is '{consortium.name}'\n"
            "  fix: name the folder of the other consortium with --out"
        )
    if request.site not in consortium.names:
        raise ProvisionError(
            f"{file}: site: '{request.site}' is no site of this consortium{_nearest(request.site, consortium.names)}\n"
            "  fix: add it to consortium.toml and run: fedmed provision consortium.toml"
        )
    key = requested_key(request, file)
    owner = _owner(folder, sites, key)
    if owner not in {"", request.site}:
        raise ProvisionError(
            f"{file}: csr: its key is that of '{owner}'\n  fix: do not sign it; each site makes a key of its own"
        )
    present = sites.get(request.site)
    if not is_proved(request, folder.kit_secret(request.site), present.public_key if present else None):
        by = "the kit of this site" if request.proof_by == "kit" else "the site's present key"
        raise ProvisionError(
            f"{file}: proof: was not made with {by}\n"
            f"  fix: do not sign it; ask '{request.site}' for a request made with the kit that was sent to it"
        )
    return key


def _check_may_replace(
    present: RegisteredSite,
    request: Request,
    key: ec.EllipticCurvePublicKey,
    file: Path,
    *,
    new_key: bool,
    reinstate: bool,
) -> None:
    if present.revoked and not reinstate:
        raise ProvisionError(
            f"{file}: the site '{request.site}' was revoked on {present.revoked[:10]}\n"
            "  fix: to let it in again, add --reinstate"
        )
    if not _same(present.public_key, key) and request.proof_by == "kit" and not new_key:
        raise ProvisionError(
            f"{file}: the site '{request.site}' is registered with another key\n"
            "  fix: ask the site, by telephone, whether it made a new key with the fingerprint "
            f"{identity.key_fingerprint(key)}; if so, add --new-key"
        )


def _owner(
    folder: ConsortiumFolder, sites: Mapping[str, RegisteredSite], key: ec.EllipticCurvePublicKey
) -> str:
    for site in sites.values():
        if _same(site.public_key, key):
            return site.name
    own = {
        "the authority": folder.authority().key.public_key(),
        "the server": identity.load_key(folder.server.key).public_key(),
    }
    return next((name for name, other in own.items() if _same(other, key)), "")


def _same(one: identity.PublicKey, other: identity.PublicKey) -> bool:
    return identity.public_bytes(one) == identity.public_bytes(other)


def _ends_soon(site: RegisteredSite, consortium: Consortium, now: datetime | None) -> bool:
    return identity.days_left(site.certificate, now) < consortium.certificates.warn_days


def _register(
    folder: ConsortiumFolder,
    consortium: Consortium,
    sites: Mapping[str, RegisteredSite],
    site: RegisteredSite,
) -> Certified:
    save_registry(folder.server.registry, {**sites, site.name: site})
    return _answer(folder, consortium, site)


def _answer(
    folder: ConsortiumFolder, consortium: Consortium, site: RegisteredSite, *, again: bool = False
) -> Certified:
    file = folder.answer(site.name)
    text = identity.certificate_text(site.certificate)
    write_atomically(file, Answer(consortium=consortium.name, site=site.name, certificate=text).text())
    return Certified(name=site.name, certificate=site.certificate, file=file, again=again)


def _registered(sites: Mapping[str, RegisteredSite], consortium: Consortium, name: str) -> RegisteredSite:
    if name in sites:
        return sites[name]
    if name in consortium.names:
        raise ProvisionError(
            f"the site '{name}' has no certificate yet\n  fix: sign its request with: fedmed provision sign REQUEST"
        )
    raise ProvisionError(
        f"'{name}' is no site of this consortium{_nearest(name, (*consortium.names, *sites))}\n"
        "  fix: 'fedmed provision show' lists its sites"
    )


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""

"""Signing, renewing and revoking: only a site's own request is signed, and the registry shows what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ExtendedKeyUsage, ExtendedKeyUsageOID

from fedmed_common import identity, kits
from fedmed_common.enrolment import check_certificate, load_answer, request_with_key, request_with_kit
from fedmed_common.errors import ConfigError, ProvisionError
from fedmed_server.provision.certify import renew, revoke, sign
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.overview import overview
from fedmed_server.provision.registry import RegisteredSite, Revocations, load_registry, save_registry

from .conftest import Coordinator


def _registry(coordinator: Coordinator) -> dict[str, RegisteredSite]:
    return load_registry(coordinator.folder.server.registry)


def _later(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _edited(file: Path, **fields: object) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return file


def test_a_request_is_answered_with_a_certificate_for_its_key(coordinator: Coordinator) -> None:
    key = identity.new_key()
    certified = sign(coordinator.folder, coordinator.request("north", key))
    authority = coordinator.folder.authority().certificate
    assert check_certificate(certified.certificate, authority, "north") == ""
    assert certified.certificate.public_key() == key.public_key()
    usage = certified.certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certified.file == coordinator.folder.path / "north.answer.json"
    answer = load_answer(certified.file)
    assert answer.certificate == identity.certificate_text(certified.certificate)
    assert list(_registry(coordinator)) == ["north"]
    assert _registry(coordinator)["north"].public_key == key.public_key()


def test_the_same_request_again_gets_the_same_answer(coordinator: Coordinator) -> None:
    request = coordinator.request("north")
    first = sign(coordinator.folder, request)
    again = sign(coordinator.folder, request)
    assert (first.again, again.again) == (False, True)
    assert again.certificate == first.certificate
    assert again.file.read_bytes() == first.file.read_bytes()


def test_a_request_close_to_the_end_gets_a_new_certificate(coordinator: Coordinator) -> None:
    request = coordinator.request("north")
    first = sign(coordinator.folder, request)
    again = sign(coordinator.folder, request, now=_later(75))
    assert not again.again
    assert again.certificate.not_valid_after_utc > first.certificate.not_valid_after_utc
    assert again.certificate.public_key() == first.certificate.public_key()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"consortium": "Other"}, "consortium: is 'Other', and this is 'Trial'"),
        ({"site": "nort"}, "site: 'nort' is no site of this consortium; did you mean 'north'"),
        ({"site": "south"}, "csr: is for 'north', but the request is for 'south'"),
        ({"proof": "00" * 32}, "proof: was not made with the kit of this site"),
        ({"proof": "ü" * 32}, "proof: was not made with the kit of this site"),
        ({"proof_by": "key"}, "proof: was not made with the site's present key"),
        ({"csr": "no csr"}, "csr: is not a signing request by a P-256 key"),
    ],
)
def test_a_request_that_does_not_hold_is_refused(
    fields: dict[str, str], said: str, coordinator: Coordinator
) -> None:
    request = _edited(coordinator.request("north"), **fields)
    with pytest.raises(ProvisionError, match=said):
        sign(coordinator.folder, request)
    assert _registry(coordinator) == {}
    assert not list(coordinator.folder.path.glob("*.answer.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "not a JSON object"), ("{}", "is missing"), ('{"version": 2}', "version|missing")],
)
def test_a_file_that_is_no_request_is_named(content: str, said: str, coordinator: Coordinator) -> None:
    file = coordinator.request("north")
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        sign(coordinator.folder, file)
    with pytest.raises(ConfigError, match="cannot be read"):
        sign(coordinator.folder, file.with_name("nowhere"))


def test_a_site_cannot_ask_in_another_site_s_name(coordinator: Coordinator) -> None:
    """North has its own kit and everything public of south's; the secret of south's kit it has not."""
    kit, south = (kits.open_kit(coordinator.folder.kit(name)) for name in ("north", "south"))
    forged = request_with_kit(south.connection, identity.new_key(), kit.files[kits.SECRET])
    file = coordinator.request("north")
    file.write_bytes(forged.text())
    with pytest.raises(ProvisionError, match="proof: was not made with the kit of this site"):
        sign(coordinator.folder, file)


def test_a_csr_that_was_altered_is_refused(coordinator: Coordinator) -> None:
    """The proof is over the very CSR: one of another key does not pass with it."""
    other = json.loads(coordinator.request("north").read_text())["csr"]
    request = _edited(coordinator.request("north"), csr=other)
    with pytest.raises(ProvisionError, match="proof: "):
        sign(coordinator.folder, request)


def test_a_key_serves_one_site_only(coordinator: Coordinator) -> None:
    key = identity.new_key()
    sign(coordinator.folder, coordinator.request("north", key))
    with pytest.raises(ProvisionError, match="its key is that of 'north'"):
        sign(coordinator.folder, coordinator.request("south", key))
    for file, owner in (
        (coordinator.folder.server.key, "the server"),
        (coordinator.folder.authority_key, "the authority"),
    ):
        with pytest.raises(ProvisionError, match=f"its key is that of '{owner}'"):
            sign(coordinator.folder, coordinator.request("south", identity.load_key(file)))


def test_another_key_on_the_kit_s_word_alone_needs_a_person(coordinator: Coordinator) -> None:
    sign(coordinator.folder, coordinator.request("north"))
    before = coordinator.contents()
    key = identity.new_key()
    request = coordinator.request("north", key)
    with pytest.raises(ProvisionError, match=identity.key_fingerprint(key.public_key())):
        sign(coordinator.folder, request)
    assert coordinator.contents() == before
    assert sign(coordinator.folder, request, new_key=True).certificate.public_key() == key.public_key()


def test_a_new_key_is_taken_on_the_present_one_s_word_and_its_request_works_once(
    coordinator: Coordinator,
) -> None:
    keys = [identity.new_key() for _ in range(3)]
    connection = kits.open_kit(coordinator.folder.kit("north")).connection
    sign(coordinator.folder, coordinator.request("north", keys[0]))
    requests = []
    for number in (1, 2):
        file = coordinator.file.with_name(f"rotation{number}.json")
        file.write_bytes(request_with_key(connection, keys[number], keys[number - 1]).text())
        assert sign(coordinator.folder, file).certificate.public_key() == keys[number].public_key()
        requests.append(file)
    with pytest.raises(ProvisionError, match="proof: was not made with the site's present key"):
        sign(coordinator.folder, requests[0])


def test_renewing_keeps_the_key(coordinator: Coordinator) -> None:
    first = sign(coordinator.folder, coordinator.request("north"))
    again = renew(coordinator.folder, "north", now=_later(80))
    assert again.certificate.public_key() == first.certificate.public_key()
    assert identity.days_left(again.certificate, _later(80)) == 89
    assert _registry(coordinator)["north"].certificate == again.certificate
    assert load_answer(again.file).certificate == identity.certificate_text(again.certificate)


def test_renewing_the_server_keeps_its_key_and_names(coordinator: Coordinator) -> None:
    home = coordinator.folder.server
    before, key = identity.load_certificate(home.certificate), home.key.read_bytes()
    renewed = renew(coordinator.folder, "server", now=_later(300)).certificate
    assert identity.load_certificate(home.certificate) == renewed
    assert home.key.read_bytes() == key
    assert renewed.public_key() == before.public_key()
    assert renewed.not_valid_after_utc > before.not_valid_after_utc
    assert set(coordinator.create().values()) == {"kept"}


def test_a_revoked_site_is_shut_out_until_a_person_lets_it_in(coordinator: Coordinator) -> None:
    request = coordinator.request("north")
    answer = sign(coordinator.folder, request).file
    moment = datetime(2030, 5, 1, 12, tzinfo=UTC)
    revoke(coordinator.folder, "north", now=moment)
    assert _registry(coordinator)["north"].revoked == "2030-05-01T12:00:00+00:00"
    assert not answer.exists()
    assert revoke(coordinator.folder, "north").revoked == "2030-05-01T12:00:00+00:00"
    with pytest.raises(ProvisionError, match="was revoked on 2030-05-01"):
        sign(coordinator.folder, request)
    with pytest.raises(ProvisionError, match="was revoked on 2030-05-01"):
        renew(coordinator.folder, "north")
    assert _registry(coordinator)["north"].revoked
    sign(coordinator.folder, request, reinstate=True)
    assert not _registry(coordinator)["north"].revoked


@pytest.mark.parametrize(
    ("name", "said"),
    [("north", "has no certificate yet"), ("nroth", "is no site of this consortium; did you mean 'north'")],
)
def test_only_a_registered_site_is_renewed_or_revoked(name: str, said: str, coordinator: Coordinator) -> None:
    for do in (renew, revoke):
        with pytest.raises(ProvisionError, match=said):
            do(coordinator.folder, name)


def test_a_folder_without_consortium_is_named(tmp_path: Path) -> None:
    folder = ConsortiumFolder(tmp_path / "empty")
    with pytest.raises(ProvisionError, match="holds no consortium\n  fix: name its folder with --out"):
        revoke(folder, "north")
    assert not folder.path.exists()


def test_a_running_server_sees_at_once_who_is_revoked(coordinator: Coordinator) -> None:
    for name in ("north", "south"):
        sign(coordinator.folder, coordinator.request(name))
    registry = coordinator.folder.server.registry
    is_revoked = Revocations(registry)
    assert not is_revoked("north")
    revoke(coordinator.folder, "north")
    assert [is_revoked(name) for name in ("north", "south", "elsewhere")] == [True, False, False]
    registry.write_text("{")
    assert [is_revoked(name) for name in ("north", "south")] == [True, False]
    registry.unlink()
    assert is_revoked("north")


def test_the_overview_tells_who_is_to_do_what(coordinator: Coordinator) -> None:
    sign(coordinator.folder, coordinator.request("north"))
    told = {entry.name: (entry.state, entry.todo) for entry in overview(coordinator.folder)}
    assert told == {
        "authority": ("valid", ""),
        "server": ("valid", ""),
        "north": ("valid", ""),
        "south": ("invited", "send its kit, and sign the request that comes back"),
    }
    for days, state in ((70, "expires soon"), (91, "expired")):
        entry = {entry.name: entry for entry in overview(coordinator.folder, now=_later(days))}["north"]
        assert (entry.state, entry.todo) == (state, "fedmed provision renew north")
        assert entry.key == identity.key_fingerprint(_registry(coordinator)["north"].public_key)
    revoke(coordinator.folder, "north")
    entry = {entry.name: entry for entry in overview(coordinator.folder, now=_later(91))}["north"]
    assert (entry.state, entry.todo, bool(entry.revoked)) == ("revoked", "", True)


def test_the_registry_survives_its_file(coordinator: Coordinator, tmp_path: Path) -> None:
    sign(coordinator.folder, coordinator.request("north"))
    sites = _registry(coordinator)
    save_registry(tmp_path / "again.json", sites)
    assert load_registry(tmp_path / "again.json") == sites


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not a registry"),
        ("[]", "is not a registry"),
        ('{"version": 9, "sites": {}}', "version: is 9, not 1"),
        ('{"version": 1, "sites": {"north": {}}}', "is not a registry"),
        (
            '{"version": 1, "sites": {"north": {"certificate": "?", "revoked": ""}}}',
            "north: holds no certificate",
        ),
    ],
)
def test_a_damaged_registry_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text(content)
    with pytest.raises(ProvisionError, match=said):
        load_registry(tmp_path / "registry.json")


def test_a_registry_never_gives_a_certificate_another_name(coordinator: Coordinator) -> None:
    sign(coordinator.folder, coordinator.request("north"))
    file = coordinator.folder.server.registry
    file.write_text(file.read_text().replace('"north"', '"south"'))
    with pytest.raises(ProvisionError, match="south: the certificate is for another name"):
        load_registry(file)
    with pytest.raises(ProvisionError, match="No such file"):
        load_registry(file.with_name("none.json"))


def test_an_answer_cut_short_is_made_from_the_registry(coordinator: Coordinator) -> None:
    request = coordinator.request("north")
    first = sign(coordinator.folder, request)
    first.file.unlink()
    assert sign(coordinator.folder, request).certificate == first.certificate
    assert first.file.exists()


def test_two_consortia_do_not_share_what_they_made(coordinator: Coordinator, tmp_path: Path) -> None:
    other = ConsortiumFolder(tmp_path / "other")
    create(coordinator.file, other)
    with pytest.raises(ProvisionError, match="proof: "):
        sign(other, coordinator.request("north"))
    fingerprint = identity.fingerprint(other.authority().certificate)
    with pytest.raises(ProvisionError, match="not of the one given"):
        kits.open_kit(coordinator.folder.kit("north"), fingerprint=fingerprint)

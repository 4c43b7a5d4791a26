"""Provisioning from the consortium's file: the same again changes nothing, and nothing changes silently."""

from __future__ import annotations

import json
import stat
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedmed_common import identity, kits
from fedmed_common.errors import ConfigError, ProvisionError
from fedmed_server.provision.authority import certified_names, same_names
from fedmed_server.provision.certify import revoke, sign
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder
from fedmed_server.provision.registry import load_registry

from .conftest import FILE, Coordinator

ALL = {"ca/ca.pem", "server/tls/server.pem", "server/server.toml", "kits/north.zip", "kits/south.zip"}
NORTH = '[[sites]]\nname = "north"\ncontact = "it@north.example"\n'


def test_the_server_s_home_is_complete(coordinator: Coordinator) -> None:
    home = coordinator.folder.server
    settings = home.settings()
    assert (settings.name, settings.public.port, settings.public.behind_proxy) == ("Trial", 9443, False)
    assert len({settings.public.port, settings.private.port, settings.health.port}) == 3
    assert load_registry(home.registry) == {}
    certificate = identity.load_certificate(home.certificate)
    certificate.verify_directly_issued_by(identity.load_certificate(home.authority))
    assert identity.load_key(home.key).public_key() == certificate.public_key()
    names = ("127.0.0.1", "fedmed.example.org", "10.0.0.5", "localhost")
    assert same_names(certified_names(certificate), names)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("port", [8443, 8444, 8445])
def test_the_server_s_ports_differ_whatever_the_address_says(port: int, tmp_path: Path) -> None:
    file, folder = tmp_path / "consortium.toml", ConsortiumFolder(tmp_path / "out")
    file.write_text(FILE.replace(":9443", f":{port}"))
    create(file, folder)
    settings = folder.server.settings()
    assert settings.public.port == port
    assert len({settings.public.port, settings.private.port, settings.health.port}) == 3


def test_a_name_with_quotes_is_the_server_s_as_well(tmp_path: Path) -> None:
    file, folder = tmp_path / "consortium.toml", ConsortiumFolder(tmp_path / "out")
    file.write_text(FILE.replace('"Trial"', r'"Herz \"A\" & Köln \\ 1"'))
    create(file, folder)
    assert folder.server.settings().name == 'Herz "A" & Köln \\ 1' == folder.recorded().name


def test_the_same_file_again_changes_nothing(coordinator: Coordinator) -> None:
    before = coordinator.contents()
    assert coordinator.create() == dict.fromkeys(ALL, "kept")
    assert coordinator.contents() == before


def test_a_new_site_gets_a_kit_and_nothing_else_changes(coordinator: Coordinator) -> None:
    before = coordinator.contents()
    coordinator.rewrite(NORTH, NORTH + '[[sites]]\nname = "east"\n')
    assert coordinator.create() == dict.fromkeys(ALL, "kept") | {"kits/east.zip": "made"}
    after = coordinator.contents()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"kits/east.zip", "consortium.json"}


def test_secrets_are_their_owner_s_alone(coordinator: Coordinator) -> None:
    folder = coordinator.folder
    secret = [
        folder.authority_key,
        folder.enrolment_key,
        folder.server.key,
        folder.server.signing_key,
        folder.kit("north"),
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
    folders = [folder.path, folder.authority_key.parent, folder.server.path, folder.kit("north").parent]
    assert {stat.S_IMODE(one.stat().st_mode) for one in folders} == {0o700}


def test_a_kit_holds_no_private_key_and_no_other_site_s_secret(coordinator: Coordinator) -> None:
    north, south = (kits.open_kit(coordinator.folder.kit(name)) for name in ("north", "south"))
    assert not any(b"PRIVATE KEY" in content for content in north.files.values())
    assert north.files[kits.SECRET] != south.files[kits.SECRET]
    signer = identity.load_signing_key(coordinator.folder.server.signing_key).public_key()
    assert north.connection.signer_key() == signer
    assert (north.connection.site, north.connection.address) == ("north", "127.0.0.1:9443")
    assert north.connection.fingerprint == identity.fingerprint(coordinator.folder.authority().certificate)


def test_a_kit_that_was_deleted_is_made_the_same(coordinator: Coordinator) -> None:
    before = dict(kits.open_kit(coordinator.folder.kit("north")).files)
    coordinator.folder.kit("north").unlink()
    assert coordinator.create()["kits/north.zip"] == "made"
    assert dict(kits.open_kit(coordinator.folder.kit("north")).files) == before


def test_a_kit_that_was_changed_is_named(coordinator: Coordinator) -> None:
    kit = coordinator.folder.kit("north")
    kit.write_bytes(kit.read_bytes()[:-30])
    with pytest.raises(ProvisionError, match=r"north.zip: .*\n  fix: delete .*north.zip"):
        coordinator.create()


def test_a_kit_of_an_earlier_fedmed_is_kept(coordinator: Coordinator) -> None:
    kit, authority = coordinator.folder.kit("north"), coordinator.folder.authority()
    older = {**kits.open_kit(kit).files, kits.PAGE: b"an older page"}
    kit.write_bytes(kits.pack(older, authority.key))
    before = kit.read_bytes()
    made = create(coordinator.file, coordinator.folder)
    assert [(one.state, "earlier fedmed" in one.note) for one in made if one.path == kit] == [("kept", True)]
    assert kit.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("127.0.0.1:9443", "fedmed.example.org:443", "coordinator.address: was '127.0.0.1:9443', is"),
        ('"10.0.0.5"', '"10.0.0.6"', "coordinator.names: was"),
        ("Ada <ada@example.org>", "Bob", "coordinator.contact: was"),
        (NORTH, "", "sites: 'north' is left out"),
    ],
)
def test_a_change_is_listed_and_refused_until_it_is_accepted(
    old: str, new: str, said: str, coordinator: Coordinator
) -> None:
    before = coordinator.contents()
    coordinator.rewrite(old, new)
    with pytest.raises(ProvisionError, match=said):
        coordinator.create()
    assert coordinator.contents() == before
    coordinator.create(change=True)
    assert "changed" not in coordinator.create().values()


def test_an_accepted_address_reaches_certificate_and_kits(coordinator: Coordinator) -> None:
    key = coordinator.folder.server.key.read_bytes()
    coordinator.rewrite("127.0.0.1:9443", "fed.example.org:443")
    states = coordinator.create(change=True)
    assert {name for name, state in states.items() if state == "changed"} == {
        "server/tls/server.pem",
        "kits/north.zip",
        "kits/south.zip",
    }
    assert coordinator.folder.server.key.read_bytes() == key
    certificate = identity.load_certificate(coordinator.folder.server.certificate)
    assert "fed.example.org" in certified_names(certificate)
    assert kits.open_kit(coordinator.folder.kit("south")).connection.address == "fed.example.org:443"
    notes = [one.note for one in create(coordinator.file, coordinator.folder)]
    assert "listens on port 9443; sites are told 443" in notes


def test_a_consortium_keeps_its_name(coordinator: Coordinator) -> None:
    coordinator.rewrite('"Trial"', '"Other"')
    with pytest.raises(ProvisionError, match=r"name: is 'Other', but .* is of the consortium 'Trial'"):
        coordinator.create(change=True)


def test_a_site_that_may_connect_is_revoked_before_it_is_left_out(coordinator: Coordinator) -> None:
    sign(coordinator.folder, coordinator.request("north"))
    coordinator.rewrite(NORTH, "")
    with pytest.raises(ProvisionError, match="may still connect\n  fix: fedmed provision revoke north"):
        coordinator.create(change=True)
    revoke(coordinator.folder, "north")
    coordinator.create(change=True)
    assert load_registry(coordinator.folder.server.registry)["north"].revoked


def test_the_coordinator_s_own_settings_stay(coordinator: Coordinator) -> None:
    file = coordinator.folder.server.settings_file
    file.write_text(file.read_text().replace("behind_proxy = false", "behind_proxy = true"))
    before = file.read_bytes()
    coordinator.create()
    assert file.read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, coordinator: Coordinator) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ProvisionError, match="is not empty, and was not made by"):
        create(coordinator.file, ConsortiumFolder(other))
    assert [file.name for file in other.iterdir()] == ["cat.jpg"]
    with pytest.raises(ProvisionError, match="is not a folder"):
        create(coordinator.file, ConsortiumFolder(other / "cat.jpg"))


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_first_run_that_was_cut_short_is_gone_on_with(lost: int, coordinator: Coordinator) -> None:
    """Files are made in this order: what a crash leaves out is the end of it."""
    folder = coordinator.folder
    order = [folder.authority_certificate, folder.server.certificate, folder.kit("south"), folder.record]
    key = folder.authority_key.read_bytes()
    for file in order[-lost:]:
        file.unlink()
    if lost == 4:  # the server's home comes after the authority
        folder.server.authority.unlink()
        folder.server.certificate.unlink(missing_ok=True)
        folder.kit("north").unlink()
    coordinator.create()
    assert folder.authority_key.read_bytes() == key
    assert coordinator.create() == dict.fromkeys(ALL, "kept")


def test_a_damaged_authority_is_named(coordinator: Coordinator, tmp_path: Path) -> None:
    other = ConsortiumFolder(tmp_path / "other")
    create(coordinator.file, other)
    coordinator.folder.authority_certificate.write_bytes(other.authority_certificate.read_bytes())
    with pytest.raises(ProvisionError, match=r"ca.pem: is not the certificate of .*ca.key"):
        coordinator.create()


def test_another_authority_s_server_certificate_is_named(coordinator: Coordinator, tmp_path: Path) -> None:
    other = ConsortiumFolder(tmp_path / "other")
    create(coordinator.file, other)
    coordinator.folder.server.certificate.write_bytes(other.server.certificate.read_bytes())
    with pytest.raises(ProvisionError, match="is not from the authority"):
        coordinator.create()
    coordinator.folder.server.authority.write_bytes(other.server.authority.read_bytes())
    with pytest.raises(ProvisionError, match=r"server/tls/ca.pem: is not the authority"):
        coordinator.create()


def test_a_wrong_file_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "consortium.toml").write_text('name = "Trial"')
    with pytest.raises(ConfigError, match="coordinator: is missing"):
        create(tmp_path / "consortium.toml", ConsortiumFolder(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_only_one_provisions_at_a_time(coordinator: Coordinator) -> None:
    with coordinator.folder.locked(), pytest.raises(ProvisionError, match="is at work here"):
        coordinator.create()


def test_certificates_last_as_the_file_says_and_never_longer_than_the_authority(tmp_path: Path) -> None:
    file, folder, now = tmp_path / "consortium.toml", ConsortiumFolder(tmp_path / "out"), datetime.now(UTC)
    file.write_text(FILE + "[certificates]\nauthority_days = 100\nserver_days = 300\nsite_days = 30\n")
    create(file, folder, now=now)
    authority, consortium = folder.authority(), folder.recorded()
    key = identity.new_key().public_key()
    server = identity.load_certificate(folder.server.certificate)
    assert identity.days_left(server, now - timedelta(hours=1)) == 100
    assert (
        identity.days_left(
            authority.certify_site(consortium, "north", key, now=now), now - timedelta(hours=1)
        )
        == 30
    )
    with pytest.raises(ProvisionError, match="the consortium's authority expired"):
        authority.certify_site(consortium, "north", key, now=now + timedelta(days=100))


def test_a_kit_is_an_ordinary_zip_with_a_manifest(coordinator: Coordinator) -> None:
    with zipfile.ZipFile(coordinator.folder.kit("north")) as archive:
        assert sorted(archive.namelist()) == sorted([*kits.FILES, "manifest.json", "manifest.sig"])
        assert set(json.loads(archive.read("manifest.json"))["files"]) == set(kits.FILES)

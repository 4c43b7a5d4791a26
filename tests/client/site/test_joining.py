"""A hospital joins: its key stays, a kit or an answer that is not for it is refused, and nothing there is overwritten."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fedmed_client.site.home import SiteFolder
from fedmed_client.site.joining import join, open_home, rotate
from fedmed_common import identity, kits
from fedmed_common.enrolment import Answer
from fedmed_common.errors import ConfigError, ProvisionError
from fedmed_common.kits import open_kit
from fedmed_server.provision.certify import renew, sign
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder

FILE = """
name = "Trial"
[coordinator]
address = "fedmed.example.org:9443"
[[sites]]
name = "north"
[[sites]]
name = "south"
"""


@pytest.fixture
def consortium(tmp_path: Path) -> ConsortiumFolder:
    return _consortium(tmp_path / "coordinator")


@pytest.fixture
def home(tmp_path: Path, consortium: ConsortiumFolder) -> SiteFolder:
    """North, which opened its kit."""
    folder = SiteFolder(tmp_path / "north")
    open_home(consortium.kit("north"), folder)
    return folder


@pytest.fixture
def joined(home: SiteFolder, consortium: ConsortiumFolder) -> SiteFolder:
    """North, which has its certificate."""
    join(sign(consortium, home.request_file).file, home)
    return home


def _consortium(folder: Path, text: str = FILE) -> ConsortiumFolder:
    folder.mkdir(exist_ok=True)
    (folder / "consortium.toml").write_text(text)
    made = ConsortiumFolder(folder / "consortium")
    create(folder / "consortium.toml", made, change=True)
    return made


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rezipped(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    changed = path.with_name("changed.zip")
    changed.write_bytes(content.getvalue())
    return changed


def _resigned(files: dict[str, bytes]) -> None:
    """Digests that fit again, as whoever changes a kit would make them; the signature they cannot make."""
    document = json.loads(files["manifest.json"])
    document["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in document["files"]}
    files["manifest.json"] = json.dumps(document).encode()


def test_a_kit_makes_a_home(home: SiteFolder, consortium: ConsortiumFolder) -> None:
    assert {path.name for path in home.path.iterdir()} == {
        "ca.pem", "connection.json", "for-it.html", "request.json", "run", "site.key", "site.toml",
    }  # fmt: skip
    for secret in (home.key_file, home.site_file):  # the latter may come to hold a proxy's password
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home.path, home.run)} == {0o700}
    assert home.connection().address == "fedmed.example.org:9443"
    assert identity.load_certificate(home.authority_file) == consortium.authority().certificate


def test_a_kit_that_was_damaged_on_the_way_is_said_to_be(
    consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    """Wherever a byte is another, and whichever way the file then fails to be read."""
    whole, damaged = consortium.kit("north").read_bytes(), tmp_path / "damaged.zip"
    for place in range(0, len(whole), 97):
        content = bytearray(whole)
        content[place] ^= 0xFF
        damaged.write_bytes(content)
        with suppress(ProvisionError):
            open_kit(damaged)


def test_the_settings_it_begins_with_can_be_read_and_ask_a_person(home: SiteFolder) -> None:
    site = home.site()
    assert (site.name, site.approve, site.labels) == ("north", "ask", {})


def test_a_kit_again_changes_nothing(home: SiteFolder, consortium: ConsortiumFolder) -> None:
    home.site_file.write_text(home.site_file.read_text() + "# ours\n")
    before = _contents(home.path)
    open_home(consortium.kit("north"), home)
    assert _contents(home.path) == before


def test_a_kit_again_makes_what_a_first_time_left_out(home: SiteFolder, consortium: ConsortiumFolder) -> None:
    key = home.key_file.read_bytes()
    home.request_file.unlink()
    home.site_file.unlink()
    open_home(consortium.kit("north"), home)
    assert home.key_file.read_bytes() == key
    certified = sign(consortium, home.request_file).certificate
    assert certified.public_key() == home.key().public_key()


def test_nothing_that_is_sent_holds_the_key(joined: SiteFolder, consortium: ConsortiumFolder) -> None:
    """Neither as PEM, nor as the bare number in whatever notation."""
    key = joined.key()
    number = key.private_numbers().private_value
    raw = number.to_bytes(32, "big")
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    forms = [raw, raw.hex().encode(), str(number).encode(), der]
    for file in (joined.request_file, consortium.answer("north"), consortium.server.registry):
        text = file.read_bytes()
        decoded = [text, *(base64.b64decode(block) for block in _pem_blocks(text.decode()))]
        assert not any(form in part for form in forms for part in decoded)
        assert b"PRIVATE" not in text
    everything = [*_contents(consortium.path).values()]
    assert not any(form in content for form in forms for content in everything)


def _pem_blocks(text: str) -> list[str]:
    blocks = text.replace("\\n", "\n").split("-----BEGIN ")[1:]
    return ["".join(block.split("-----")[1].split()) for block in blocks]


@pytest.mark.parametrize("name", [*kits.FILES, "manifest.json", "manifest.sig"])
@pytest.mark.parametrize("thorough", [False, True])
def test_a_kit_that_was_changed_is_refused(
    name: str, thorough: bool, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    def change(files: dict[str, bytes]) -> None:
        signature = name == "manifest.sig"
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1]) if signature else files[name] + b" "
        if name == kits.AUTHORITY:
            files[name] = identity.certificate_text(
                _consortium(tmp_path / "other").authority().certificate
            ).encode()
        if thorough and name != "manifest.sig":
            _resigned(files)

    kit = _rezipped(consortium.kit("north"), change)
    with pytest.raises(ProvisionError, match="was changed after the kit was signed"):
        open_home(kit, SiteFolder(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.pop(kits.PAGE), "for-it.html"),
        (lambda files: files.update({"../../evil.pth": b"import os"}), "evil.pth"),
        (lambda files: files.update({"run.py": b""}), "run.py"),
        (lambda files: files.update({kits.SITE: b" " * 2_000_000}), "site.toml is too large"),
    ],
)
def test_a_kit_holds_its_files_and_no_others(
    change: Callable[[dict[str, bytes]], None], said: str, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    kit = _rezipped(consortium.kit("north"), change)
    with pytest.raises(ProvisionError, match=said):
        open_home(kit, SiteFolder(tmp_path / "home"))
    assert not (tmp_path / "home").exists()
    assert not list(tmp_path.rglob("*.pth"))


def test_a_file_that_is_no_kit_is_named(tmp_path: Path) -> None:
    (tmp_path / "kit.zip").write_text("not a zip")
    with pytest.raises(ProvisionError, match=r"kit.zip: .* cannot be read as a zip"):
        open_home(tmp_path / "kit.zip", SiteFolder(tmp_path / "home"))
    with pytest.raises(ProvisionError, match=r"none.zip: No such file"):
        open_home(tmp_path / "none.zip", SiteFolder(tmp_path / "home"))


def test_the_fingerprint_decides(consortium: ConsortiumFolder, tmp_path: Path) -> None:
    """A kit that is whole, but of an authority that somebody else made, is refused by the fingerprint alone."""
    true = identity.fingerprint(consortium.authority().certificate)
    spoken = " ".join(true[at : at + 2].upper() for at in range(0, 64, 2)).replace(" ", ":", 5)
    open_home(consortium.kit("north"), SiteFolder(tmp_path / "home"), fingerprint=spoken)
    forged = _consortium(tmp_path / "forger").kit("north")
    for wrong in (true, true[:32]):
        with pytest.raises(ProvisionError, match="not of the one given\n  fix: do not use this kit"):
            open_home(forged, SiteFolder(tmp_path / "other"), fingerprint=wrong)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("whose", ["another site's", "another consortium's"])
def test_a_home_stays_one_site_s(
    whose: str, home: SiteFolder, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    kit = (
        consortium.kit("south") if whose == "another site's" else _consortium(tmp_path / "other").kit("north")
    )
    before = _contents(home.path)
    with pytest.raises(ProvisionError, match="is the home of 'north' in 'Trial'"):
        open_home(kit, home, change=True)
    assert _contents(home.path) == before


def test_a_new_address_is_taken_when_it_is_accepted(
    joined: SiteFolder, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    _consortium(tmp_path / "coordinator", FILE.replace("9443", "443"))
    before = _contents(joined.path)
    with pytest.raises(ProvisionError, match=r"would change address in .*\n.*--change"):
        open_home(consortium.kit("north"), joined)
    assert _contents(joined.path) == before
    open_home(consortium.kit("north"), joined, change=True)
    after = _contents(joined.path)
    assert {name for name in after if after[name] != before.get(name)} == {"connection.json", "for-it.html"}
    assert joined.connection().port == 443


def test_an_answer_is_installed_once(joined: SiteFolder, consortium: ConsortiumFolder) -> None:
    assert joined.certificate().public_key() == joined.key().public_key()
    before = _contents(joined.path)
    assert join(consortium.answer("north"), joined).again
    assert _contents(joined.path) == before


def test_an_answer_that_is_not_for_this_site_is_refused(
    home: SiteFolder, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    authority, names = consortium.authority(), consortium.recorded()
    other = _consortium(tmp_path / "other")
    own, foreign = home.key().public_key(), identity.new_key().public_key()
    long_ago, later = datetime.now(UTC) - timedelta(days=100), datetime.now(UTC) + timedelta(days=2)
    wrong = {
        "is not from this consortium's authority": other.authority().certify_site(names, "north", own),
        "is for another key": authority.certify_site(names, "north", foreign),
        "is for the site 'south', and this is 'north'": authority.certify_site(names, "south", own),
        "expired on": authority.certify_site(names, "north", own, now=long_ago),
        "is not valid before": authority.certify_site(names, "north", own, now=later),
        "is for the site 'fedmed.example.org'": authority.certify_server(names, own),
        "is for the site 'fedmed certificate authority'": authority.certificate,
    }
    before = _contents(home.path)
    for number, (said, certificate) in enumerate(wrong.items()):
        text = identity.certificate_text(certificate)
        file = tmp_path / f"{number}.answer.json"
        file.write_bytes(Answer(consortium="Trial", site="north", certificate=text).text())
        with pytest.raises(ProvisionError, match=said):
            join(file, home)
    assert _contents(home.path) == before | {"run/enrolment.lock": b""}


def test_a_server_s_certificate_is_no_site_s(home: SiteFolder, tmp_path: Path) -> None:
    """Also where the server's host has the site's name."""
    made = _consortium(tmp_path / "coordinator", FILE.replace("fedmed.example.org", "north"))
    certificate = made.authority().certify_server(made.recorded(), home.key().public_key())
    file = tmp_path / "north.answer.json"
    text = identity.certificate_text(certificate)
    file.write_bytes(Answer(consortium="Trial", site="north", certificate=text).text())
    with pytest.raises(ProvisionError, match="is not a certificate for a site"):
        join(file, home)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}'])
def test_a_file_that_is_no_answer_is_named(content: str, home: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a.json: .*\n  fix: "):
        join(tmp_path / "a.json", home)


def test_a_folder_that_is_no_home_is_named(
    consortium: ConsortiumFolder, home: SiteFolder, tmp_path: Path
) -> None:
    answer = sign(consortium, home.request_file).file
    with pytest.raises(ConfigError, match="not a site's home yet"):
        join(answer, SiteFolder(tmp_path))


def test_a_renewed_certificate_takes_the_place_of_the_old_one_and_not_the_reverse(
    joined: SiteFolder, consortium: ConsortiumFolder, tmp_path: Path
) -> None:
    old, key = tmp_path / "old.json", joined.key_file.read_bytes()
    old.write_bytes(consortium.answer("north").read_bytes())
    renewed = renew(consortium, "north", now=datetime.now(UTC) + timedelta(minutes=30))
    result = join(renewed.file, joined)
    assert (result.again, result.new_key) == (False, False)
    assert joined.certificate() == renewed.certificate
    assert joined.key_file.read_bytes() == key
    with pytest.raises(ProvisionError, match="before the installed one"):
        join(old, joined)
    assert joined.certificate() == renewed.certificate


def test_a_key_is_rotated(joined: SiteFolder, consortium: ConsortiumFolder) -> None:
    old = joined.key_file.read_bytes()
    rotate(joined)
    waiting = joined.next_key_file.read_bytes()
    assert stat.S_IMODE(joined.next_key_file.stat().st_mode) == 0o600
    assert joined.key_file.read_bytes() == old != waiting
    rotate(joined)
    assert joined.next_key_file.read_bytes() == waiting
    answer = sign(consortium, joined.request_file).file
    assert join(answer, joined).new_key
    assert joined.key_file.read_bytes() == waiting
    assert not joined.next_key_file.exists()
    assert stat.S_IMODE(joined.key_file.stat().st_mode) == 0o600
    assert joined.certificate().public_key() == joined.key().public_key()
    assert join(answer, joined).again


def test_a_rotation_that_was_cut_short_is_gone_on_with(
    joined: SiteFolder, consortium: ConsortiumFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key changed places and the certificate was not written yet."""
    rotate(joined)
    answer = sign(consortium, joined.request_file).file
    waiting = joined.next_key_file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("fedmed_client.site.joining.write_atomically", _cut_short)
        with pytest.raises(KeyboardInterrupt):
            join(answer, joined)
    assert join(answer, joined).certificate.public_key() == joined.key().public_key()
    assert joined.key_file.read_bytes() == waiting


def _cut_short(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_site_without_certificate_has_nothing_to_rotate(home: SiteFolder) -> None:
    with pytest.raises(ProvisionError, match=r"site.pem: is missing.*\n  fix: send .*request.json"):
        rotate(home)
    assert not home.next_key_file.exists()


def test_a_lost_key_is_not_replaced_silently(joined: SiteFolder, consortium: ConsortiumFolder) -> None:
    joined.key_file.unlink()
    with pytest.raises(ProvisionError, match=r"site.key: is missing, but its certificate is there"):
        open_home(consortium.kit("north"), joined)
    assert not joined.key_file.exists()

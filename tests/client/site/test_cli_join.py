"""The hospital's side of joining as it is typed, with the home named or in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmed_client.site.home import SiteFolder
from fedmed_common.cli import root_command, run
from fedmed_common.identity import fingerprint, key_fingerprint

FILE = '[coordinator]\naddress = "localhost:9443"\n[[sites]]\nname = "north"\n'


def _fedmed(*words: object) -> int:
    return run(root_command(), [str(word) for word in words])


def test_from_the_kit_to_a_rotated_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("consortium.toml").write_text(f'name = "Trial"\n{FILE}')
    home, request, answer = SiteFolder(Path("north")), "north/request.json", "consortium/north.answer.json"
    assert _fedmed("provision", "consortium.toml") == 0
    assert _fedmed("site", "init", "consortium/kits/north.zip", "--home", "north") == 0
    told = capsys.readouterr().out
    authority = SiteFolder(Path("north")).authority_file
    assert authority.read_bytes() == Path("consortium/ca/ca.pem").read_bytes()
    first = key_fingerprint(home.key().public_key())
    assert f"key: {first}" in told
    assert "by telephone" in told
    assert _fedmed("provision", "sign", request) == 0
    assert f"key: {first}" in capsys.readouterr().out
    monkeypatch.setenv("FEDMED_HOME", "north")
    assert _fedmed("site", "join", answer) == 0
    assert "is installed, and is valid until" in capsys.readouterr().out
    assert _fedmed("site", "rotate") == 0
    assert _fedmed("provision", "sign", request) == 0
    assert _fedmed("site", "join", answer) == 0
    assert "The new key is in use" in capsys.readouterr().out
    assert key_fingerprint(home.key().public_key()) != first
    assert fingerprint(home.certificate()) != ""


def test_a_wrong_fingerprint_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("consortium.toml").write_text(f'name = "Trial"\n{FILE}')
    assert _fedmed("provision", "consortium.toml") == 0
    words = ("site", "init", "consortium/kits/north.zip", "--home", "north", "--fingerprint", "00:11")
    assert _fedmed(*words) == 2
    assert "not of the one given" in capsys.readouterr().err
    assert not Path("north").exists()

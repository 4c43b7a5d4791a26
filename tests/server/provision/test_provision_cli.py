"""The coordinator's commands as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmed_common.cli import root_command, run
from fedmed_common.identity import fingerprint

from .conftest import FILE, Coordinator


def _fedmed(*words: object) -> int:
    return run(root_command(), [str(word) for word in words])


@pytest.mark.parametrize("words", [["provision"], ["provision", "create"]])
@pytest.mark.parametrize("out_first", [True, False])
def test_a_file_is_provisioned(
    words: list[str], out_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "consortium.toml", tmp_path / "out"
    file.write_text(FILE)
    rest = ["--out", out, file] if out_first else [file, "--out", out]
    assert _fedmed(*words, *rest) == 0
    assert (out / "kits" / "north.zip").is_file()
    assert "authority: " in capsys.readouterr().out


def test_sign_renew_show_and_revoke(coordinator: Coordinator, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", coordinator.folder.path)
    assert _fedmed("provision", "sign", coordinator.request("north"), *out) == 0
    assert "north is certified, until " in capsys.readouterr().out
    assert _fedmed("provision", "renew", "north", *out) == 0
    assert "north is certified anew" in capsys.readouterr().out
    assert _fedmed("provision", "renew", "server", *out) == 0
    assert "start 'fedmed serve' again" in capsys.readouterr().out
    assert _fedmed("provision", "revoke", "north", *out) == 0
    assert "north is revoked since" in capsys.readouterr().out
    assert _fedmed("provision", "show", "--json", *out) == 0
    shown = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert [entry["state"] for entry in shown.values()] == ["valid", "valid", "revoked", "invited"]
    assert shown["authority"]["fingerprint"] == fingerprint(coordinator.folder.authority().certificate)
    assert _fedmed("provision", "show", *out) == 0
    assert "invited" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sgin"], "Did you mean 'sign'"),
        (["nowhere.toml"], "nowhere.toml: no such file"),
        (["--out", "x"], "Missing argument 'FILE'"),
        (["renew", "norht"], "did you mean 'north'"),
    ],
)
def test_what_is_typed_wrong_is_named(
    words: list[str],
    said: str,
    coordinator: Coordinator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDMED_CONSORTIUM", str(coordinator.folder.path))
    assert _fedmed("provision", *words) == 2
    assert said in capsys.readouterr().err

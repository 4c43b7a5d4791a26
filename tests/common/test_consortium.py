"""The consortium's file and a site's connection: what is right is read, what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmed_common.consortium import load_connection, load_consortium, split_address
from fedmed_common.errors import ConfigError

LEAST = """
name = "Trial"
[coordinator]
address = "fedmed.example.org:9443"
[[sites]]
name = "north"
"""

CONNECTION = {
    "version": 1,
    "consortium": "Trial",
    "site": "north",
    "address": "fedmed.example.org:9443",
    "fingerprint": "0a" * 32,
    "signer": "A" * 43 + "=",
}


def test_the_least_that_a_file_needs(tmp_path: Path) -> None:
    file = tmp_path / "consortium.toml"
    file.write_text(LEAST)
    consortium = load_consortium(file)
    assert (consortium.coordinator.host, consortium.coordinator.port) == ("fedmed.example.org", 9443)
    assert consortium.names == ("north",)
    days = consortium.certificates
    assert (days.authority_days, days.server_days, days.site_days, days.warn_days) == (3650, 365, 90, 21)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (":9443", "", "coordinator.address: is not of the form host:port"),
        (":9443", ":0", "coordinator.address: is not of the form host:port"),
        (":9443", ":65536", "coordinator.address: is not of the form host:port"),
        ("fedmed.example.org", "https://fedmed", "coordinator.address: 'https://fedmed' is neither"),
        ("fedmed.example.org", "10.0.0.500", "coordinator.address: '10.0.0.500' is neither"),
        ("fedmed.example.org", "::1", "coordinator.address: '::1' is neither"),
        ('"north"', '"../north"', r"sites\[0\].name: "),
        ('"north"', '"server"', "sites: the name 'server' is taken"),
        ('"north"', '"north"\n[[sites]]\nname = "North"', "sites: the name 'North' is taken"),
        ('"Trial"', '""', "name: "),
        ("[coordinator]", '[coordinator]\nadress = "x"', "did you mean 'address'"),
        (
            "[coordinator]",
            "[certificates]\nsite_days = 7\n[coordinator]",
            "certificates: warn_days must be less",
        ),
        ("[coordinator]", '[coordinator]\nnames = ["a b"]', "coordinator.names: 'a b' is neither"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "consortium.toml"
    file.write_text(LEAST.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said) as caught:
        load_consortium(file)
    assert str(file) in str(caught.value)
    assert "fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.5:9443", ("10.0.0.5", 9443)),
        ("[fd00::5]:9443", ("fd00::5", 9443)),
        ("a-b.c_d.example:443", ("a-b.c_d.example", 443)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_a_connection_is_read_and_its_signer_is_a_key(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    file.write_text(json.dumps(CONNECTION))
    connection = load_connection(file)
    assert (connection.site, connection.host, connection.port) == ("north", "fedmed.example.org", 9443)
    assert connection.signer_key().public_bytes_raw() == bytes(32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "0A" * 32}, "fingerprint"),
        ({"signer": "AAAA"}, "signer: is not an Ed25519 public key"),
        ({"signer": "?"}, "signer: is not an Ed25519 public key"),
        ({"version": 2}, "version"),
        ({"adress": "x"}, "did you mean 'address'"),
        ({"site": ""}, "site"),
    ],
)
def test_a_damaged_connection_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    file.write_text(json.dumps(CONNECTION | change))
    with pytest.raises(ConfigError, match=said):
        load_connection(file)


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_connection_that_is_no_json_object(content: str, tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="is not a JSON object"):
        load_connection(file)


def test_a_folder_without_connection_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a site's home yet\n  fix: fedmed site init"):
        load_connection(tmp_path / "connection.json")

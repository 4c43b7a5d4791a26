"""What a site carries out is decided at the site, once for each experiment, and a rejection stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmed_client.link import approvals
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_common import bundle, identity
from fedmed_common.bundle import Approved
from fedmed_common.cli import root_command, run
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import FedmedError, PolicyRefusal

KEY = identity.new_signing_key()


def offered(name: str = "discs", **changes: Any) -> Approved:
    document: dict[str, Any] = {
        "name": name,
        "rounds": 2,
        "task": {"classes": ["disc", "ring"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "train": {"steps": 7, "batch_size": 3},
    }
    content = bundle.build(Experiment.model_validate(document | changes), KEY)
    return bundle.check(content, KEY.public_key())


@pytest.fixture
def home(tmp_path: Path) -> SiteFolder:
    return SiteFolder(tmp_path)


@pytest.fixture
def site() -> Callable[[str], Site]:
    def make(approve: str) -> Site:
        return Site.model_validate(
            {"name": "alpha", "approve": approve, "data": {"format": "images", "root": "/d"}, "labels": {}}
        )

    return make


def rule(home: SiteFolder, site: Site, what: Approved) -> str:
    """The rule by which it is refused; empty where it is let in."""
    try:
        approvals.check(home, site, what)
    except PolicyRefusal as refusal:
        return refusal.rule
    return ""


def test_a_new_experiment_waits_until_a_person_permits_it(
    home: SiteFolder, site: Callable[[str], Site]
) -> None:
    what = offered()
    assert [rule(home, site("ask"), what) for _ in range(2)] == ["approval_pending"] * 2
    assert [approval.state for approval in approvals.load(home)] == ["pending"]
    approvals.approve(home, what.hash[:6])
    assert rule(home, site("ask"), what) == ""


def test_a_changed_experiment_asks_anew(home: SiteFolder, site: Callable[[str], Site]) -> None:
    assert rule(home, site("ask"), offered()) == "approval_pending"
    approvals.approve(home, offered().hash)
    assert rule(home, site("ask"), offered()) == ""
    assert rule(home, site("ask"), offered(rounds=3)) == "approval_pending"
    assert sorted(approval.state for approval in approvals.load(home)) == ["approved", "pending"]


@pytest.mark.parametrize("policy", ["ask", "consortium-signed", "never"])
def test_what_was_rejected_stays_rejected(home: SiteFolder, site: Callable[[str], Site], policy: str) -> None:
    rule(home, site("ask"), offered())
    approvals.reject(home, offered().hash)
    with pytest.raises(FedmedError, match="stays so"):
        approvals.approve(home, offered().hash)
    assert rule(home, site(policy), offered()) == "approval"
    assert approvals.is_rejected(home, offered().hash)


def test_the_consortiums_signature_is_enough_where_the_site_says_so(
    home: SiteFolder, site: Callable[[str], Site]
) -> None:
    assert rule(home, site("consortium-signed"), offered()) == ""
    assert [(one.state, one.by) for one in approvals.load(home)] == [("approved", "signature")]


def test_a_stricter_policy_holds_at_once(home: SiteFolder, site: Callable[[str], Site]) -> None:
    assert rule(home, site("consortium-signed"), offered()) == ""
    assert rule(home, site("ask"), offered()) == "approval_pending"
    assert rule(home, site("never"), offered()) == "approval"
    approvals.approve(home, offered().hash)
    assert [rule(home, site(policy), offered()) for policy in ("ask", "never")] == ["", ""]


def test_nothing_new_is_let_in_where_nobody_may_approve(
    home: SiteFolder, site: Callable[[str], Site]
) -> None:
    assert rule(home, site("never"), offered()) == "approval"
    assert [approval.state for approval in approvals.load(home)] == ["pending"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": "approved"}'])
def test_a_damaged_file_lets_nothing_in(
    home: SiteFolder, site: Callable[[str], Site], content: bytes
) -> None:
    rule(home, site("consortium-signed"), offered())
    (home.approvals / f"{offered().hash}.json").write_bytes(content)
    assert rule(home, site("consortium-signed"), offered()) == "approval"


def test_a_file_of_another_name_approves_nothing(home: SiteFolder, site: Callable[[str], Site]) -> None:
    rule(home, site("consortium-signed"), offered())
    other = offered("rings")
    (home.approvals / f"{offered().hash}.json").rename(home.approvals / f"{other.hash}.json")
    assert rule(home, site("ask"), other) == "approval"


def test_decisions_are_in_the_audit_log(home: SiteFolder, site: Callable[[str], Site]) -> None:
    rule(home, site("ask"), offered())
    rule(home, site("consortium-signed"), offered("rings"))
    approvals.approve(home, offered().hash)
    approvals.reject(home, offered().hash)
    approvals.reject(home, offered().hash)
    AuditLog(home.path).verify()
    events = [json.loads(line) for line in home.audit_file.read_text().splitlines()]
    assert [(event["event"], event["experiment"], event["by"]) for event in events] == [
        ("approved", "rings", "signature"),
        ("approved", "discs", "person"),
        ("rejected", "discs", "person"),
    ]


@pytest.mark.parametrize("prefix", ["", "zz", "0" * 64])
def test_a_hash_that_nobody_offered_is_an_error(
    home: SiteFolder, site: Callable[[str], Site], prefix: str
) -> None:
    rule(home, site("ask"), offered())
    with pytest.raises(FedmedError, match="'fedmed site runs' lists them"):
        approvals.find(home, prefix)


def test_a_prefix_must_be_unique(home: SiteFolder, site: Callable[[str], Site]) -> None:
    for number in range(20):  # of 17 hexadecimal numbers two begin alike
        rule(home, site("ask"), offered(f"run-{number}"))
    first = [approval.hash[0] for approval in approvals.load(home)]
    double = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(FedmedError, match="more than one"):
        approvals.approve(home, double)


def test_the_commands_show_and_decide(
    home: SiteFolder, site: Callable[[str], Site], capsys: pytest.CaptureFixture[str]
) -> None:
    def fedmed(*line: str) -> str:
        assert run(root_command(), ["site", *line, "--home", str(home.path)]) == 0
        return capsys.readouterr().out

    assert "no experiment" in fedmed("runs")
    rule(home, site("ask"), offered())
    short = offered().hash[:12]
    assert fedmed("runs").startswith(f"{short}  pending")
    shown = fedmed("runs", short)
    for told in (
        offered().hash,
        "segmentation in 2D of disc, ring",
        "2 rounds of 7 steps with 3 patches",
        "fedavg",
        "unet",
        "leaves",
    ):
        assert told in shown
    assert "approved by person" in fedmed("approve", short)
    assert json.loads(fedmed("runs", "--json"))[0]["state"] == "approved"
    assert "rejected by person" in fedmed("reject", short)
    assert run(root_command(), ["site", "approve", short, "--home", str(home.path)]) == 1
    assert "stays so" in capsys.readouterr().err

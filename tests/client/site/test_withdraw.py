"""``fedmed site withdraw``: the patient is gone from the next order on, others stay where they were, only a number leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from PIL import Image

from fedmed_client.app import home_of, make_client_app
from fedmed_client.data.cohort import Cohort
from fedmed_client.site.audit import AuditLog
from fedmed_client.site.withdrawals import FILE, KEY, Withdrawals
from fedmed_common import cli, params, wire
from fedmed_common.config import Experiment
from fedmed_common.errors import DataError
from fedmed_common.models import build_model
from fedmed_simulations.grid import LocalGrid

EXPERIMENT = Experiment.model_validate(
    {
        "name": "discs",
        "rounds": 3,
        "seed": 3,
        "task": {"classes": ["disc"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "model": {"channels": [4, 8], "residual_units": 0},
        "train": {"steps": 1, "batch_size": 2, "threads": 1},
    }
)
PATIENTS = 8


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(PATIENTS):
        for view in "ab":
            disc = np.zeros((24, 24), np.uint8)
            disc[6:14, 6:14] = 255
            image = (rng.normal(60, 10, (24, 24)) + disc / 3).clip(0, 255).astype(np.uint8)
            for kind, array in (("images", image), ("labels", disc)):
                Image.fromarray(array).save(tmp_path / "data" / kind / f"Pat{number}_{view}.png")
    (tmp_path / "site.toml").write_text(
        'name = "mercy"\n[labels]\ndisc = ["1"]\n[policy]\nleast_patients = 1\n'
        '[data]\nformat = "images"\nroot = "data"\npatient_pattern = "^(.*)_"\n'
    )
    return tmp_path


def cohort(home: Path) -> Cohort:
    return home_of(home).cohort(EXPERIMENT)


def splits(cohort: Cohort) -> dict[str, str]:
    return {cohort.keys[case.patient]: case.split for case in cohort.cases}


def ask(home: Path, kind: wire.Kind, run: str = "run", round_number: int = 1) -> wire.Reply:
    model = params.from_model(build_model(EXPERIMENT)) if kind is wire.Kind.TRAIN else {}
    order = wire.Order(
        kind=kind,
        run=run,
        round=round_number,
        attempt=0,
        experiment=EXPERIMENT.order_text(),
        parameters=model,
    )
    grid = LocalGrid(make_client_app(lambda _context: home_of(home)), 1)
    grid.push_messages([Message(wire.pack_order(order), 100, kind.value)])
    (reply,) = grid.pull_messages(list(grid._pending))
    return wire.unpack_reply(reply.content, model or None)


def run(*words: object) -> int:
    return cli.run(cli.root_command(), ["site", "withdraw", *map(str, words)])


def test_the_patient_is_gone_and_the_others_keep_their_splits(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cohort(home)
    gone = before.keys[before.of("train")[0].patient]
    assert run(gone.swapcase(), "--home", home) == 0
    assert "prepared images deleted here: 2" in capsys.readouterr().out
    after = cohort(home)
    assert splits(after) == {key: split for key, split in splits(before).items() if key != gone}
    assert after.manifest_hash != before.manifest_hash
    assert after.patients("train") == before.patients("train") - 1
    left = sorted(file.name for file in (home / "cache").glob("*/*.image.npy"))
    assert len(left) == 2 * (PATIENTS - 1)
    for case, old in zip(
        after.cases, [c for c in before.cases if before.keys[c.patient] != gone], strict=True
    ):
        np.testing.assert_array_equal(case.label, old.label)
        np.testing.assert_array_equal(case.points[0], old.points[0])


def test_from_the_next_order_on_nothing_is_trained_or_counted_on_the_patient(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = ask(home, wire.Kind.FACTS).facts
    assert facts is not None
    first = ask(home, wire.Kind.TRAIN)
    ask(home, wire.Kind.TRAIN, run="other")
    opened = cohort(home)
    train = {opened.keys[case.patient] for case in opened.of("train")}
    gone, kept = sorted(train)[0], sorted({*opened.keys} - train)[0]
    assert run(gone, "--home", home, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {use["run"] for use in told["runs"]} == {"run", "other"}
    assert run(kept, "--home", home) == 0
    assert "no run had trained on the patient" in capsys.readouterr().out
    after = ask(home, wire.Kind.FACTS).facts
    assert after is not None
    assert after.patients["train"] == facts.patients["train"] - 1
    assert after.withdrawn_from == 2
    again = ask(home, wire.Kind.TRAIN)
    assert any(not np.array_equal(first.delta[name], again.delta[name]) for name in first.delta)
    AuditLog(home).verify()


def test_no_file_of_it_holds_the_identifier_and_a_run_that_comes_later_is_not_affected(home: Path) -> None:
    withdrawals = Withdrawals(home)
    assert withdrawals.add("Pat3") == ()
    ask(home, wire.Kind.TRAIN)
    assert Withdrawals(home).affected_runs == 0
    for file in (home / FILE, *(home / "uses").iterdir()):
        assert b"pat3" not in file.read_bytes().lower()
        assert file.stat().st_mode & 0o777 == 0o600


def test_identifiers_are_equal_where_spellings_are_and_an_issuer_tells_them_apart(tmp_path: Path) -> None:
    Withdrawals(tmp_path).add(" 0047 A ")
    Withdrawals(tmp_path).add("99", "North")
    found = Withdrawals(tmp_path)
    assert [found.holds(key) for key in ("0047 a|", "0047 a|north", "0047 A", "99|north", "99|south", "99|", "4|")] == [
        True, True, True, True, False, False, False
    ]  # fmt: skip


def test_it_is_read_from_standard_input(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Pat1\n")))
    assert run("-", "--home", home) == 0
    assert Withdrawals(home).holds("Pat1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert run("-", "--home", home) == 2
    assert "PATIENT: is empty" in capsys.readouterr().err


def test_a_patient_who_is_not_there_is_said_to_be_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort(home)
    assert run("nobody", "--home", home) == 0
    assert "check how images spell it" in capsys.readouterr().out


def test_a_list_that_is_damaged_or_without_its_key_stops_the_site(home: Path) -> None:
    Withdrawals(home).add("Pat1")
    (home / KEY).rename(home / "elsewhere")
    with pytest.raises(DataError, match=r"withdrawn\.key: is gone"):
        cohort(home)
    (home / "elsewhere").rename(home / KEY)
    (home / FILE).write_text("{")
    with pytest.raises(DataError, match=r"withdrawn\.json: is damaged"):
        cohort(home)
    assert ask(home, wire.Kind.TRAIN).code == "data"


def test_when_all_have_gone_the_site_says_so(home: Path) -> None:
    for number in range(PATIENTS):
        Withdrawals(home).add(f"Pat{number}")
    with pytest.raises(DataError, match="all patients of 'mercy' withdrew"):
        cohort(home)

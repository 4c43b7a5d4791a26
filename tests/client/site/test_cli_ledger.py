"""``fedmed site ledger``: what was spent, by whom, what is left, and a page for those who have to decide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedmed_client.ledger import LEDGER, Ledger, Reservation
from fedmed_client.site import ledger_page
from fedmed_client.site.spending import spending
from fedmed_common import cli
from fedmed_common.privacy import epsilon
from fedmed_common.site_config import Policy

ROW = Reservation(
    run="liver-1",
    round=1,
    attempt=0,
    noise_multiplier=2.0,
    sampling_rate=0.1,
    steps=5,
    experiment="<b>liver</b>",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(
        'name = "mercy"\n[data]\nformat = "dicom"\nroot = "images"\n[labels]\nliver = ["liver"]\n'
        "[policy]\nmaximum_epsilon = 3.0\n"
    )
    return tmp_path


@pytest.fixture
def spent(home: Path) -> Path:
    for row in (ROW, replace(ROW, attempt=1), replace(ROW, run="liver-2", noise_multiplier=1.5)):
        Ledger(home).reserve(row)
    return home


def _run(*words: object) -> int:
    return cli.run(cli.root_command(), ["site", "ledger", *map(str, words)])


def test_runs_and_the_whole_are_what_the_accountant_says(spent: Path) -> None:
    found = spending(spent, "mercy", Policy(maximum_epsilon=3.0), points=3)
    rows = Ledger(spent).read()
    assert [(run.run, run.rounds, run.reservations, run.steps) for run in found.runs] == [
        ("liver-1", 1, 2, 10),
        ("liver-2", 1, 1, 5),
    ]
    assert [run.epsilon for run in found.runs] == [
        epsilon([row.spent for row in rows[:2]], 1e-5),
        epsilon([rows[2].spent], 1e-5),
    ]
    assert found.epsilon == epsilon([row.spent for row in rows], 1e-5)
    assert found.left == 3.0 - found.epsilon
    assert [time for time, _ in found.growth] == [row.time for row in rows]
    assert found.growth[-1][1] == found.epsilon
    assert spending(spent, "mercy", Policy(maximum_epsilon=0.01)).left == 0.0


def test_the_command_says_what_is_left(spent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--home", spent) == 0
    shown = capsys.readouterr().out
    assert "liver-1" in shown
    assert "the ceiling is 3" in shown
    assert _run("--home", spent, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"][0]["experiment"] == "<b>liver</b>"
    assert document["left"] == pytest.approx(3.0 - document["epsilon"])


def test_a_site_that_spent_nothing_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--home", home, "--export", home / "page.html") == 0
    assert (
        "nothing was sent under differential privacy from this folder yet; the ceiling is 3"
        in capsys.readouterr().out
    )
    assert "Nothing was sent" in (home / "page.html").read_text()


def test_the_page_holds_the_numbers_and_no_markup_of_others(spent: Path) -> None:
    found = spending(spent, "mercy", Policy(maximum_epsilon=3.0), points=3)
    page = ledger_page.page(found, "The <consortium>")
    assert f"{found.epsilon:.3f}" in page
    assert "&lt;b&gt;liver&lt;/b&gt;" in page
    assert "The &lt;consortium&gt;" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<svg"), ("a.html", b"<!doctype")])
def test_it_is_written_as_its_name_says(spent: Path, name: str, magic: bytes) -> None:
    assert _run("--home", spent, "--export", spent / name) == 0
    assert (spent / name).read_bytes().startswith(magic)


def test_another_ending_is_refused_by_name(spent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--home", spent, "--export", spent / "a.docx") == 2
    assert "--export" in capsys.readouterr().err


def test_a_changed_ledger_is_named_and_nothing_is_written(
    spent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spent / LEDGER).write_bytes(b"SQLite format 3\0" + bytes(2000))
    assert _run("--home", spent, "--export", spent / "a.html") == 1
    assert LEDGER in capsys.readouterr().err
    assert not (spent / "a.html").exists()


@pytest.mark.parametrize("ceiling", [None, 0.001, 0.9, 1.0, 5.5, 8.0, 9.99, 300.0])
def test_the_picture_has_a_few_round_numbers_whatever_the_ceiling(spent: Path, ceiling: float | None) -> None:
    drawn = ledger_page.picture(spending(spent, "mercy", Policy(maximum_epsilon=ceiling), points=3))
    assert 3 <= drawn.count("<text") - (ceiling is not None) - 3 <= 8
    assert "nan" not in drawn
    assert drawn.endswith("</svg>")

"""What the coordinator's commands print stays readable, also of many sites."""

from __future__ import annotations

import io

from rich.console import Console

from fedmed_server.deployment.status import RunStatus, SitePart
from fedmed_server.deployment.tables import run_page


def _printed(parts: list[SitePart]) -> str:
    one = RunStatus(
        run="run", experiment="e", state="running", status="", round=1, rounds=3, best_round=0, criterion=None,
        restarts=0, report="", sites=tuple(parts),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    for line in run_page(one):
        console.print(line)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_of_many_sites_those_with_a_problem_and_those_at_work_come_first() -> None:
    parts = [
        SitePart(
            site=f"site-{number:04d}", connection="connected", phase="asked" if number == 700 else "ok",
            since="2026-01-01T00:00:00+00:00", answered=1, asked=1, problem="late" if number == 900 else "",
        )
        for number in range(1000)
    ]  # fmt: skip
    lines = [line.split()[0] for line in _printed(parts).splitlines() if line.startswith(("site-", "and"))]
    assert lines[:3] == ["site-0900", "site-0700", "site-0000"]
    assert (len(lines), lines[-1]) == (61, "and")
    assert "and 940 more sites" in _printed(parts)
    assert "more sites" not in _printed(parts[:60])

"""The report says what the history says, in one page that needs nothing else."""
from __future__ import annotations

from fedmed_server.report import write_report


def test_page_is_made(make_run):
    path = write_report(make_run().all())
    assert path.read_text().startswith("\n<!doctype html>") or "<!doctype html>" in path.read_text()

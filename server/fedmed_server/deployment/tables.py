"""What the coordinator's commands print for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from fedmed_common.identity import WARN_DAYS
from fedmed_server.deployment.status import RunStatus, SitePart, SiteStatus

_COLOURS = {
    "completed": "green", "connected": "green", "ok": "green", "running": "cyan", "testing": "cyan",
    "degraded": "yellow", "interrupted": "yellow", "waiting": "yellow", "away": "yellow", "late": "yellow",
    "failed": "red", "damaged": "red", "refused": "red", "rejected": "red", "revoked": "red",
}  # fmt: skip
_MOST_SITES = 60
_AT_WORK = {"asked": "at work", "awaited": "at work, awaited"}


def runs_table(found: Sequence[RunStatus]) -> Table:
    """One line a run."""
    table = _table("run", "state", "rounds", "best", "sites")
    for one in found:
        if one.state == "damaged":
            table.add_row(one.run, _coloured(one.state), "-", "-", one.status)
            continue
        table.add_row(
            one.run, _coloured(one.state), f"{one.round}/{one.rounds}", _best(one), str(len(one.sites))
        )
    return table


def run_page(one: RunStatus) -> list[Table | Text]:
    """A run's state in sentences, and one line a site; of many, those with a problem and those at work come first."""
    head = Text.assemble(
        (one.run, "bold"), "  ", _coloured(one.state), f"  {one.round} of {one.rounds} rounds done"
    )
    lines = [head]
    if one.status:
        lines.append(Text(one.status))
    if one.best_round:
        lines.append(Text(f"best round so far: {_best(one)}"))
    if one.restarts:
        lines.append(Text(f"started again {one.restarts} times since its last round", "yellow"))
    if one.report:
        lines.append(Text(f"report: {one.report}"))
    table = _table("site", "connection", "now", "rounds answered", "last problem")
    parts = list(one.sites)
    if len(parts) > _MOST_SITES:
        parts.sort(key=lambda part: (not part.problem, part.phase not in _AT_WORK))
    for part in parts[:_MOST_SITES]:
        rounds = f"{part.answered} of {part.asked}" if part.asked else "-"
        table.add_row(part.site, _coloured(part.connection), _now(part), rounds, part.problem or "-")
    more = len(parts) - _MOST_SITES
    return [*lines, table, *([Text(f"and {more:,} more sites; with --json all")] if more > 0 else [])]


def sites_table(found: Sequence[SiteStatus]) -> Table:
    """One line a site."""
    table = _table("site", "connection", "version", "last seen", "clock", "last refused", "certificate")
    for site in found:
        refused = f"{site.refused}, {_ago(site.refused_at)}" if site.refused else "-"
        clock = f"{site.clock_skew_seconds:+.1f} s" if site.last_seen else "-"
        table.add_row(
            site.site,
            _coloured(site.connection),
            site.version or "-",
            _ago(site.last_seen),
            clock,
            refused,
            _days(site.certificate_days_left),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _coloured(word: str) -> Text:
    return Text(word, _COLOURS.get(word, ""))


def _now(part: SitePart) -> Text:
    if not part.phase:
        return Text("-")
    word = Text(_AT_WORK.get(part.phase, part.phase), _COLOURS.get(part.phase, ""))
    return word.append(f", {_ago(part.since)}", "")


def _best(one: RunStatus) -> str:
    return f"round {one.best_round}" if one.best_round else "-"


def _days(left: int) -> Text:
    if left < 0:
        return Text("expired", "red")
    return Text(f"{left} days left", "yellow" if left <= WARN_DAYS else "")


def _ago(moment: str) -> str:
    """How long ago, in the largest unit that fits."""
    if not moment:
        return "never"
    seconds = max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

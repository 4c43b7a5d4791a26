"""The tables of a comparison: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from fedmed_simulations.compare.columns import COLUMNS, LOWER_IS_BETTER, Array
from fedmed_simulations.compare.plan import LAST
from fedmed_simulations.compare.results import Results
from fedmed_simulations.compare.statistics import Interval
from fedmed_simulations.compare.study import Choice, Study

Rows = list[list[str]]
_SHORT = {
    "worst_site": "worst\nsite",
    "site_sd": "site\nSD",
    "false_positives": "false\npos.",
    "tail_false_positives": "tail\nf. pos.",
}
_IN_TERMINAL = ("mean", "head", "tail", "worst_site", "tail_false_positives")
"""Of the differences, for which a terminal has room; the files have all."""
PICTURES = {
    "differences": "Differences to the reference, with 95 % intervals.",
    "classes": "By class, from the most frequent to the rarest.",
    "tail": "What the rare classes gain, and what it costs: false positives where they are absent.",
}


def budget_table(study: Study) -> Table:
    """Who tries how much."""
    table = _table(
        f"{study.budget} configurations each, chosen on validation under seeds {_listed(study.comparison.tuned_under)}",
        ["competitor", "trains", "own +\nfilled", "configurations"],
    )
    trains = {"federation": "all sites", "pooled": "pooled data", "local": "each site alone"}
    for one in study.competitors:
        tried = "\n".join(configuration.text for configuration in one.configurations)
        own = len(one.configurations) - one.filled
        table.add_row(one.name, trains[one.kind], f"{own} + {one.filled}", escape(tried))
    return table


def run_lines(study: Study) -> list[str]:
    """Every run with its folder and whether it is done. What is not chosen yet has no folder."""
    lines, states = [], Counter[str]()
    for arm in study.arms:
        tuning = [run for seeds in study.tuning(arm) for run in seeds]
        chosen = all(run.is_done() for run in tuning)
        for run in [*tuning, *(study.final(study.choose(arm)) if chosen else [])]:
            state = "done" if run.is_done() else "begun" if run.folder.exists() else "to do"
            states[state] += 1
            lines.append(f"{state:5}  {run.folder.name}  {run.text}")
        if not chosen:
            states["to do"] += len(study.comparison.seeds)
            lines += [
                f"to do  {'(once it is chosen)':20}  {arm.label}, seed {seed}"
                for seed in study.comparison.seeds
            ]
    return [*lines, ", ".join(f"{count} {state}" for state, count in states.items())]


def choices_table(choices: Sequence[Choice]) -> Table:
    """What each tried, and what it took."""
    table = _table("chosen on validation patients", ["competitor", "settings", "validation", ""])
    for choice in choices:
        for place, configuration in enumerate(choice.arm.competitor.configurations):
            score = f"{choice.scores[place]:.3f}" if choice.scores else "-"
            mark = "chosen" if configuration is choice.configuration else ""
            table.add_row(choice.arm.label, escape(configuration.text), score, mark)
    return table


def scores_table(found: Results) -> Table:
    """Mean over seeds, and below it the standard deviation."""
    _, rows = _scores(found)
    table = _table(_title(found), ["", *(_SHORT.get(column, COLUMNS[column]) for column in found.columns)])
    for name, *cells in rows:
        table.add_row(name, *(cell.replace(" ± ", "\n±") for cell in cells))
    return table


def differences_table(found: Results) -> Table:
    """To the reference, and below it the interval; the columns that a claim needs."""
    shown = [column for column in _IN_TERMINAL if column in found.columns]
    table = _table(
        f"Differences to {found.reference}, 95 % intervals",
        ["", *(_SHORT.get(column, COLUMNS[column]) for column in shown), "p\n(Holm)"],
    )
    for name, columns in found.differences.items():
        cells = [_signed(columns[column]).replace(" [", "\n[") for column in shown]
        table.add_row(name, *map(escape, cells), _p(found.p_values[name]))
    return table


def markdown(found: Results, pictures: Sequence[str]) -> str:
    """``comparison.md``."""
    groups = [
        f"- {group}: " + ", ".join(f"{name} ({found.presence[name]:g})" for name in names)
        for group, names in found.classes.groups.items()
        if names
    ]
    chosen = [
        [choice.arm.label, choice.configuration.text, f"{max(choice.scores):.3f}" if choice.scores else "-"]
        for choice in found.choices
    ]
    parts = [
        f"# {found.name}",
        f"{_title(found)}. Each competitor takes {found.steps} at a site and tries {found.budget} configurations; what "
        f"counts is the mean of the last {LAST} evaluation rounds, under seeds {_listed(found.seeds)}.",
        _markdown_table(*_scores(found)),
        f"## Differences to {found.reference}",
        _markdown_table(*_differences(found)),
        *(f"![{PICTURES[name]}](figures/{name}.png)\n\n{PICTURES[name]}" for name in pictures),
        "## Classes\n\nIn brackets: training patients of all sites who show the class.",
        "\n".join(groups),
        "## Settings\n\nChosen on the sites' validation patients, before any test patient was looked at; all that was tried is "
        "in `choices.json`.",
        _markdown_table(["competitor", "settings", "validation"], chosen),
        "## Notes",
        "\n".join(f"- {note}" for note in found.notes),
    ]
    return "\n\n".join(parts) + "\n"


def columns_csv(found: Results) -> str:
    """A line for each competitor and column."""
    rows = []
    for name, columns in found.points.items():
        for column in found.columns:
            interval = found.differences.get(name, {}).get(column, Interval(math.nan, math.nan, math.nan))
            mean, deviation = _mean_and_deviation(columns[column])
            numbers = (mean, deviation, interval.value, interval.low, interval.high)
            rows.append([name, column, *(_plain(value) for value in numbers)])
    return _csv(["competitor", "column", "mean", "sd_over_seeds", "difference", "low", "high"], rows)


def sites_csv(found: Results) -> str:
    """A line for each competitor, seed and site: the leading metric, mean over the site's classes."""
    rows = [
        [name, str(seed), site, _plain(value)]
        for name, values in found.sites.items()
        for (seed, site), value in values.items()
    ]
    return _csv(["competitor", "seed", "site", found.classes.lead.name], rows)


def _scores(found: Results) -> tuple[list[str], Rows]:
    head = ["", *(_heading(column) for column in found.columns)]
    rows = []
    for name, columns in found.points.items():
        cells = []
        for column in found.columns:
            mean, deviation = _mean_and_deviation(columns[column])
            spread = f" ± {deviation:.3f}" if math.isfinite(deviation) else ""
            cells.append(f"{mean:.3f}{spread}" if math.isfinite(mean) else "-")
        rows.append([name, *cells])
    return head, rows


def _differences(found: Results) -> tuple[list[str], Rows]:
    head = ["", *(_heading(column) for column in found.columns), "p (Holm)"]
    rows = []
    for name, columns in found.differences.items():
        cells = [_signed(columns[column]) for column in found.columns]
        rows.append([name, *cells, _p(found.p_values[name])])
    return head, rows


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _heading(column: str) -> str:
    return COLUMNS[column] + (" (less is better)" if column in LOWER_IS_BETTER else "")


def _signed(interval: Interval) -> str:
    if not math.isfinite(interval.value):
        return "-"
    if not math.isfinite(interval.low):
        return f"{interval.value:+.3f}"
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _title(found: Results) -> str:
    return f"{found.classes.lead.title} on held-out test patients, mean over seeds ± standard deviation"


def _mean_and_deviation(values: Array) -> tuple[float, float]:
    """Over seeds; of one seed there is no deviation."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return math.nan, math.nan
    return float(finite.mean()), float(finite.std(ddof=1)) if finite.size > 1 else math.nan


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _plain(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _table(title: str, head: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, heading in enumerate(head):
        table.add_column(escape(heading), overflow="fold", min_width=7 if place else None)
    return table


def _markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _csv(head: Sequence[str], rows: Rows) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue()

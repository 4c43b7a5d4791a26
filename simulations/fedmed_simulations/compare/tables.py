"""The tables of a comparison: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from fedmed_simulations.compare.carry import Choice, Study
from fedmed_simulations.compare.columns import COLUMNS, LOWER_IS_BETTER, Array
from fedmed_simulations.compare.plan import LAST
from fedmed_simulations.compare.results import Results
from fedmed_simulations.compare.statistics import Interval

Rows = list[list[str]]
PICTURES = {
    "differences": "Differences to the reference, with 95 % intervals.",
    "classes": "By class, from the most frequent to the rarest.",
    "tail": "What the rare classes gain, and what it costs: false positives where they are absent.",
}


def budget_table(study: Study) -> Table:
    """Who tries how much."""
    table = _table(
        f"{study.budget} configurations each, chosen on validation under seeds {_listed(study.comparison.tuned_under)}",
        ["competitor", "trains", "own", "from [grid]", "configurations"],
    )
    trains = {"federation": "all sites", "pooled": "pooled data", "local": "each site alone"}
    for one in study.competitors:
        tried = "; ".join(configuration.text for configuration in one.configurations)
        own = len(one.configurations) - one.filled
        table.add_row(one.name, trains[one.kind], str(own), str(one.filled), escape(tried))
    return table


def runs_table(study: Study) -> Table:
    """Every run, whether it is done, and the folder it is or will be in. What is not chosen yet has none."""
    table = _table("runs", ["run", "state", "folder"])
    for arm in study.arms:
        tuning = [run for seeds in study.tuning(arm) for run in seeds]
        for run in tuning:
            table.add_row(escape(run.text), _state(run.is_done(), run.folder.exists()), run.folder.name)
        if all(run.is_done() for run in tuning):
            for run in study.final(study.choose(arm)):
                table.add_row(escape(run.text), _state(run.is_done(), run.folder.exists()), run.folder.name)
        else:
            for seed in study.comparison.seeds:
                table.add_row(f"{escape(arm.label)}, seed {seed}", "to do", "after the choice")
    return table


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
    """Mean and standard deviation over seeds."""
    head, rows = _scores(found)
    return _filled(_table(_title(found), head), rows)


def differences_table(found: Results) -> Table:
    """To the reference, with intervals."""
    head, rows = _differences(found)
    return _filled(_table(f"Differences to {found.reference}, 95 % intervals", head), rows)


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
        p = found.p_values[name]
        told = "-" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
        rows.append([name, *(_signed(columns[column]) for column in found.columns), told])
    return head, rows


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


def _state(done: bool, begun: bool) -> str:
    return "done" if done else "begun" if begun else "to do"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _plain(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _table(title: str, head: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for place, heading in enumerate(head):
        table.add_column(heading, no_wrap=place == 0)
    return table


def _filled(table: Table, rows: Rows) -> Table:
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
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

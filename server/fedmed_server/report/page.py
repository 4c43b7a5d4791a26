"""Lays the tables and charts out as HTML. Everything in it that a site or a user named is escaped."""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Literal

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from fedmed_common.metrics import Metrics, class_mean
from fedmed_common.templates import environment
from fedmed_server.report import comparison, effort, tables
from fedmed_server.report.charts import COLOURS, Chart, Curve, line_chart, site_style, stack_chart
from fedmed_server.report.figures import Figure
from fedmed_server.report.sites import SITES
from fedmed_server.report.source import RunHistory, merged, shareable_experiment
from fedmed_server.report.told import TASKS_TOLD, caveats

_MOST_PANELS, _MOST_INCIDENTS, _MOST_LEGEND = 48, 100, COLOURS
_WIDE, _PANEL = (540.0, 250.0), (250.0, 150.0)
_ASSETS = files("fedmed_server.report")

Measured = tuple[int, Metrics, dict[str, Metrics]]
"""A round with the metrics of all sites together and of each."""

FACTS_TOLD: dict[tuple[str, ...], str] = {
    ("patients",): "how many are for training, validation and test",
    (
        "presence",
    ): "for each class that the site annotates, how many training patients show it; a small count is only said to be small",
    ("version",): "of the site's software",
    ("withdrawn_from",): "how many runs had trained on patients who withdrew there afterwards",
    (
        "held_out",
    ): "whether metrics of validation and test patients leave as measured, with noise, or not at all",
}
REPLY_TOLD: dict[tuple[str, ...], str] = {
    ("site",): "the site's name",
    ("run", "round", "attempt"): "which order is answered",
    ("delta",): "after training only: the change of each of the model's parameters",
    (
        "sums",
    ): "arrays that the strategy declares, of which the sum over sites is used; none over few patients, or with noise",
    ("scalars",): "numbers that the strategy declares, as the site's loss on the global model; none for most",
    (
        "metrics",
    ): "sums and the number of patients or steps behind them; none over fewer patients than the site's policy asks",
    ("seconds",): "how long each phase took",
    (
        "code",
        "rule",
        "incident",
    ): "after a fault only: a fixed code, the policy's rule that refused, and a random number for the site's own log",
    ("facts",): "once, when the run begins: the list on the left",
    (
        "epsilon_spent",
    ): "after private training, or a sum or metrics with noise, only: what the run has cost each of those patients there so far",
    (
        "receipt",
    ): "with it: how many rows the site's privacy ledger has, and a code by which the site knows it again",
    (
        "masked",
    ): "where the sum over sites is computed securely: the change and the sums under masks, random numbers to the coordinator",
    (
        "secure",
    ): "for such a sum: public keys, signatures, shares that only other sites can read, and what unmasks the sum alone",
    (
        "region",
    ): "never of a hospital: where regions answer for sites, how many were asked and are missing, and the others' patients",
}
"""Fields of the wire's Facts and Reply, in words."""

BASELINES_TOLD = {
    "federated": "this run; each site trained on its own patients, and only changes of the model left it",
    "pooled": "one model trained on the training patients of all sites in one place, as if the data could be brought together",
    "local": "at each site a model of its own, trained and tested on that site's patients alone; numbers over all sites",
}
"""What each column of a comparison is, in words."""


def render(run: RunHistory, figures: Sequence[Figure], *, shareable: bool) -> str:
    """The page. ``shareable``: without the folders of this machine that the command and the experiment file name."""
    measured = tables.scores(run)
    rows = tables.class_rows(run, measured)
    names = [row.name for row in rows]
    start = run.starts[-1] if run.starts else None
    sites = tables.shown(run, measured)
    rounds, participation = effort.participation(run, sites)
    costs = effort.costs(run)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            state=_state(run, shareable),
            start=start,
            measured=measured,
            headline=tables.headline(rows),
            last_value=_last_value(run, rows),
            lead=run.experiment.task.scores[0],
            columns=[one for one in run.experiment.task.scores[1:] if one.by_class],
            overall=_overall(run, measured),
            told=TASKS_TOLD[run.experiment.task.name],
            caveats=caveats(run.experiment),
            rows=rows,
            enough=tables.ENOUGH_PATIENTS,
            most_presence=max((row.presence.patients for row in rows), default=0),
            site_matrix=tables.site_matrix(run, measured, names, sites) if measured else None,
            comparison=comparison.compare(run.comparison, names, run.experiment.task.scores),
            baselines_told=BASELINES_TOLD,
            presence_matrix=tables.presence_matrix(run, names, sites) if run.facts else None,
            charts=_wide_charts(run, sites),
            panels=_panels(run, names[:_MOST_PANELS], sites),
            panels_left=max(0, len(names) - _MOST_PANELS),
            best=tables.best_round(run),
            last=tables.last_round(run),
            seconds=effort.phase_seconds(run),
            costs=costs,
            shown_costs=[cost for name in sites for cost in costs if cost.name == name],
            some=_some(run, sites),
            buffered=any(cost.staleness for cost in costs),
            clock=run.rounds[-1].clock if run.rounds else None,
            most_sites=tables.MOST_SITES,
            legend=[(name, site_style(i)) for i, name in enumerate(sites[:_MOST_LEGEND])],
            legend_left=max(0, len(sites) - _MOST_LEGEND),
            phases=_phases(run),
            rounds=rounds,
            participation=participation,
            incidents=effort.incidents(run),
            most_incidents=_MOST_INCIDENTS,
            missing=effort.missing_rounds(run),
            received=sorted(
                {name for done in run.rounds for r in (*done.train, *done.evaluation) for name in r.metrics}
            ),
            reply_told=REPLY_TOLD,
            facts_told=FACTS_TOLD,
            spent=effort.spent(run),
            held_out=effort.held_out(run),
            of_sites=effort.spent_of_sites(run),
            command=_without_folders(start.command)
            if start and shareable
            else start.command
            if start
            else "",
            experiment_text=shareable_experiment(run) if shareable else run.experiment_text,
            figures=[(figure, base64.b64encode(figure.png).decode()) for figure in figures],
        )
    )
    return page.lstrip()


def chart_files(run: RunHistory) -> dict[str, str]:
    """Each chart as an SVG file of its own, by name."""
    macro = _environment().get_template("charts.html").module
    sites = tables.shown(run, tables.scores(run))
    style = Markup((_ASSETS / "charts.css").read_text(encoding="utf-8"))  # noqa: S704
    charts = {name: chart for name, chart in _wide_charts(run, sites).items() if chart is not None}
    charts |= {
        f"validation_{run.experiment.task.scores[0].name}_{name}": chart
        for name, _, _, chart in _panels(run, run.experiment.task.classes[:_MOST_PANELS], sites)
    }
    return {name: str(macro.chart(chart, style)) for name, chart in charts.items()}  # type: ignore[attr-defined]


def _environment() -> Environment:
    pages = environment(FunctionLoader(lambda name: (_ASSETS / name).read_text(encoding="utf-8")))
    pages.filters |= {"score": score, "seconds": seconds, "bytes": size, "time": _time}
    pages.globals["asset"] = lambda name: Markup((_ASSETS / name).read_text(encoding="utf-8"))  # noqa: S704
    return pages


def _state(run: RunHistory, shareable: bool) -> dict[str, str]:
    if run.ended is None:
        return {
            "tone": "open",
            "sign": "…",
            "word": "not ended",
            "text": "The history has no last line yet: the run goes on, or it was killed and can be resumed.",
        }
    word, _, detail = run.ended.status.partition(":")
    tone, sign, text = {
        "completed": ("good", "✓", "Every site answered every round."),
        "degraded": (
            "warn",
            "▲",
            "The run reached its end, but not every site answered everything that was asked of it.",
        ),
        "interrupted": ("warn", "‖", "The run was stopped before its end and can be resumed."),
        "failed": ("bad", "✕", "The run could not go on; it can be resumed once the cause is mended."),
    }.get(word, ("open", "?", ""))
    return {
        "tone": tone,
        "sign": sign,
        "word": word,
        "text": text if word != "failed" or shareable else f"{text} {detail.strip()}",
    }


def _last_value(run: RunHistory, rows: Sequence[tables.ClassRow]) -> float:
    """The headline's mean with the last round's model instead; NaN where it was not tested."""
    lead = run.experiment.task.scores[0].name
    last = merged(run.ended.test.get("last", ())) if run.ended else {}
    counted = {f"{lead}/{row.name}" for row in rows if row.enough}
    return class_mean({name: mean for name, mean in last.items() if name in counted}, lead)


def _overall(run: RunHistory, measured: tables.Scores | None) -> list[tuple[str, float, float]]:
    """Metrics that are not of one class: title, value, patients."""
    metrics = measured.metrics if measured else {}
    return [
        (one.title, metrics[one.name].value, metrics[one.name].weight)
        for one in run.experiment.task.scores
        if not one.by_class and one.name in metrics
    ]


def _some(run: RunHistory, sites: Sequence[str]) -> str:
    """Which sites are shown, where not all are."""
    if len(sites) == len(run.sites):
        return ""
    lead = run.experiment.task.scores[0].title
    return (
        f"Of {len(run.sites):,} sites these are shown one by one: those with the lowest, the middle and the highest {lead}, as "
        f"far as it was measured, the lowest first. All are in every other number, and in {SITES} of the run's folder."
    )


def _wide_charts(run: RunHistory, sites: Sequence[str]) -> dict[str, Chart | None]:
    best, lead = tables.best_round(run), run.experiment.task.scores[0]
    means = _curves(sites, _measured(run, "evaluation"), lambda metrics: class_mean(metrics, lead.name))
    loss = _curves(sites, _measured(run, "train"), lambda metrics: _value(metrics, "loss"))
    stacks = {done.round: {k: v for k, v in done.seconds.items() if k != "total"} for done in run.rounds}
    return {
        f"validation_{lead.name}": line_chart(
            means,
            title=f"Mean validation {lead.title} over the classes, by round",
            size=_WIDE,
            y_range=(0.0, 1.0),
            mark=best,
        ),
        "training_loss": line_chart(loss, title="Training loss, by round", size=_WIDE, mark=best),
        "seconds": stack_chart(stacks, _phases(run), title="Seconds by round and phase", size=_WIDE),
    }


def _panels(
    run: RunHistory, classes: Sequence[str], sites: Sequence[str]
) -> list[tuple[str, float, float, Chart]]:
    """By class: name, last value, patients who show it, chart of the leading validation metric, over all and at ``sites``."""
    best, measured = tables.best_round(run), _measured(run, "evaluation")
    scores = run.experiment.task.scores
    panels = []
    for name in classes:
        key = f"{scores[0].name}/{name}"
        curves = _curves(sites, measured, lambda metrics, key=key: _value(metrics, key))  # type: ignore[misc]
        title = f"Validation {scores[0].title} of {name}, by round"
        chart = line_chart(curves, title=title, size=_PANEL, y_range=(0.0, 1.0), mark=best)
        if chart is not None:
            last = [everyone for _, everyone, _ in measured if _finite(everyone, key)][-1]
            panels.append((name, last[key].value, tables.groups(last, name, scores).least, chart))
    return panels


def _measured(run: RunHistory, phase: Literal["train", "evaluation"]) -> list[Measured]:
    return [
        (done.round, merged(results), {r.site: r.means() for r in results if r.outcome == "ok"})
        for done in run.rounds
        if (results := done.train if phase == "train" else done.evaluation)
    ]


def _curves(
    sites: Sequence[str], measured: Sequence[Measured], value: Callable[[Metrics], float]
) -> list[tuple[str, str, Curve]]:
    """One curve per site, the last ones in grey first, and the federation's over all of them."""
    curves: list[tuple[str, str, Curve]] = []
    for index, name in enumerate(sites):
        curve = {number: value(by_site[name]) for number, _, by_site in measured if name in by_site}
        curves.append((name, site_style(index), _without_gaps(curve)))
    everyone = {number: value(metrics) for number, metrics, _ in measured}
    return [*reversed(curves), ("all sites", "all", _without_gaps(everyone))]


def _without_gaps(curve: Curve) -> Curve:
    return {number: value for number, value in curve.items() if math.isfinite(value)}


def _value(metrics: Metrics, name: str) -> float:
    return metrics[name].value if name in metrics else math.nan


def _finite(metrics: Metrics, name: str) -> bool:
    return math.isfinite(_value(metrics, name))


def _phases(run: RunHistory) -> list[str]:
    return [phase for phase in effort.phase_seconds(run) if phase != "total"]


def _without_folders(command: str) -> str:
    """The command with each path cut down to its last part."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(re.sub(r"^(-[^=]*=)?.*/", r"\1", word.rstrip("/")) for word in words)


def score(value: float | None, digits: int = 3) -> str:
    """A score, or a dash where there is none."""
    return "\N{EN DASH}" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """'0.42 s', '12.3 s', '3 min 20 s', '2 h 05 min'."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 99.5:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """Decimal units: '0 B', '12.3 kB', '4.5 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _time(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%d %b %Y, %H:%M UTC")

"""The run's report: one self-contained HTML page, drawn from the run's folder and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmed_common.files import write_atomically
from fedmed_server.report.figures import Figure, load_figures, save_figures
from fedmed_server.report.page import chart_files, render
from fedmed_server.report.sites import SITES, sites_table
from fedmed_server.report.source import COMPARISON, RunHistory, read_run, shareable_experiment
from fedmed_server.survey import sheet
from fedmed_server.survey.page import survey_page

__all__ = ["COMPARISON", "REPORT", "SITES", "Figure", "artifacts", "write_report"]

REPORT = "report.html"


def write_report(run: Path, *, figures: Sequence[Figure] = ()) -> Path:
    """Draw ``run/report.html``, with a table of all sites beside it; of a survey, its data sheet. ``figures`` replace those
    of an earlier call; with none given, those stay in the page.

    Raises:
        ConfigError: ``run`` is not the folder of a run that has begun.
        CheckpointError: its history or its comparison with baselines is damaged.
    """
    history = read_run(run)
    if figures:
        save_figures(run, figures)
    page = _page(run, history, load_figures(run), shareable=False)
    write_atomically(run / SITES, sites_table(history))
    write_atomically(run / REPORT, page.encode())
    return run / REPORT


def artifacts(run: Path, *, shareable: bool) -> dict[str, bytes]:
    """What a tracking store keeps beside the numbers, by name: experiment, report, table of sites, charts and figures.

    ``shareable``: fit to leave this machine: without its folders and without pictures of patients.

    Raises:
        ConfigError: ``run`` is not the folder of a run that has begun.
        CheckpointError: its history or its comparison with baselines is damaged.
    """
    history = read_run(run)
    figures = [figure for figure in load_figures(run) if not (shareable and figure.of_patients)]
    experiment = shareable_experiment(history) if shareable else history.experiment_text
    files = {
        "experiment.json" if experiment.startswith("{") else "experiment.toml": experiment.encode(),
        REPORT: _page(run, history, figures, shareable=shareable).encode(),
        SITES: sites_table(history),
    }
    files |= {f"figures/{name}.svg": drawing.encode() for name, drawing in chart_files(history).items()}
    return files | {f"figures/{number:03d}.png": figure.png for number, figure in enumerate(figures, start=1)}


def _page(run: Path, history: RunHistory, figures: Sequence[Figure], *, shareable: bool) -> str:
    """A survey's page is its data sheet."""
    if (run / sheet.FILE).exists():
        return survey_page(sheet.read_sheet(run))
    return render(history, figures, shareable=shareable)

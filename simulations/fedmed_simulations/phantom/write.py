"""A whole federation on disk, patient by patient in parallel; writing that was interrupted is continued.

``OUT/phantom.json`` holds the settings and is written last: a folder without it is not a finished federation. Until then the same
record lies in ``OUT/.unfinished/``.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedmed_common.errors import ConfigError, Interrupted
from fedmed_common.files import remove_leftovers, write_atomically
from fedmed_common.processes import cores
from fedmed_simulations.phantom.labels import OVERLAPPING
from fedmed_simulations.phantom.patient import write_patient
from fedmed_simulations.phantom.plan import BODY_NAME, PatientPlan, SitePlan, plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.workers import prepare

RECORD = "phantom.json"
UNFINISHED = ".unfinished"


def write_federation(
    out: Path, settings: PhantomSettings, *, workers: int = 0, progress: bool = False
) -> bool:
    """Write ``out/<site>/{site.toml,dicom/}``. ``workers``: processes, 0 for one per core.

    Returns:
        Whether anything was written: False when ``out`` already holds this very federation.

    Raises:
        ConfigError: ``out`` holds something else.
        Interrupted: Ctrl-C; the same call continues.
    """
    if _is_finished(out, settings):
        return False
    workspace = out / UNFINISHED
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "choose a folder you may write to"
        raise ConfigError(f"cannot be written: {error.strerror}", file=out, fix=fix) from None
    try:
        _write(workspace / RECORD, settings.text())
        plans = plan_federation(settings)
        missing = [
            (site, patient, folder)
            for site in plans
            for patient in site.patients
            if not (folder := out / site.name / "dicom" / patient.id).exists()
        ]
        _write_patients(settings, missing, workspace, workers=workers or cores(), progress=progress)
        for site in plans:
            _write(out / site.name / "site.toml", site_text(site))
        _write(out / RECORD, settings.text())
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command continues where it stopped") from None
    shutil.rmtree(workspace)
    return True


def site_text(site: SitePlan) -> str:
    """The site's ``site.toml``."""
    lines = [
        f"# A synthetic hospital: {site.scanner.modality} images, labels as {site.label_format}.",
        f"name = {_toml(site.name)}",
        f"ignore_labels = {_toml([BODY_NAME] if site.label_format == 'rtstruct' else [])}",
        "",
        "[data]",
        'format = "dicom"',
        'root = "dicom"',
        f"modality = {_toml(site.scanner.modality)}",
        "",
        "# Class -> the names it has here. A class that is absent is not annotated at this site.",
    ]
    if site.label_format in OVERLAPPING:
        lines.append(
            "# An organ's label includes its lesions: name lesions after organs in the experiment's classes."
        )
    lines.append("[labels]")
    lines += [f"{klass} = {_toml(list(names))}" for klass, names in site.label_map().items()]
    lines += [
        "",
        "[policy]",
        "least_patients = 1  # synthetic patients need no suppression of small groups",
        "",
    ]
    return "\n".join(lines)


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_finished(out: Path, settings: PhantomSettings) -> bool:
    """Whether ``out`` holds this federation; False when it may be written or continued."""
    if out.exists() and not out.is_dir():
        raise ConfigError("is not a folder", file=out, fix="name a folder that is empty or does not exist")
    for record, finished in ((out / RECORD, True), (out / UNFINISHED / RECORD, False)):
        if record.exists():
            if record.read_text(encoding="utf-8") != settings.text():
                raise ConfigError(
                    "holds a federation with other settings",
                    file=out,
                    fix="name another folder, or delete this one",
                )
            return finished
    leftovers = [path for path in out.iterdir() if path.name != UNFINISHED] if out.exists() else []
    if leftovers:
        raise ConfigError("is not empty", file=out, fix="name a folder that is empty or does not exist")
    return False


def _write_patients(
    settings: PhantomSettings,
    missing: list[tuple[SitePlan, PatientPlan, Path]],
    workspace: Path,
    *,
    workers: int,
    progress: bool,
) -> None:
    with _bar(len(missing), progress) as bar:
        if min(workers, len(missing)) <= 1:
            for site, patient, folder in missing:
                write_patient(settings, site, patient, folder, workspace)
                bar.advance(bar.task_ids[0])
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(missing)), mp_context=context, initializer=prepare)
        try:
            tasks = [pool.submit(write_patient, settings, *task, workspace) for task in missing]
            for task in tasks:
                task.add_done_callback(partial(_advance, bar))
            for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _advance(bar: Progress, _: object) -> None:
    bar.advance(bar.task_ids[0])


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not shown) as bar:
        bar.add_task("patients", total=total)
        yield bar


def _write(file: Path, text: str) -> None:
    remove_leftovers(file)
    write_atomically(file, text.encode())

"""A site's cohort, case by case, and what is to be said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedmed_client.data.cases import find_cases
from fedmed_client.data.index import Skipped
from fedmed_client.data.rawcase import RawCase
from fedmed_client.data.splits import Split, split_patients
from fedmed_client.data.text import printable
from fedmed_client.data.workers import in_order
from fedmed_client.preflight.machine import machine
from fedmed_client.preflight.measures import CaseFacts, Unread, measure
from fedmed_client.preflight.rules import Finding, few_patients, look
from fedmed_common.config import Experiment, Site

_OF_NO_INTEREST = frozenset({"not-dicom"})
_ORDER = ("fail", "warn", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found. ``splits``: patients of each; ``presence``: patients by class."""

    site: str
    experiment: str
    cases: tuple[CaseFacts, ...]
    unread: tuple[Unread, ...]
    skipped: tuple[Skipped, ...]
    findings: tuple[Finding, ...]
    splits: dict[str, int]
    presence: dict[str, int]

    @property
    def level(self) -> str:
        """The worst."""
        return min((finding.level for finding in self.findings), key=_ORDER.index, default="pass")


def preflight(site: Site, experiment: Experiment, home: Path, *, progress: bool = False) -> Preflight:
    """Read every case once and look for what is wrong.

    Raises:
        DataError: a folder that the site names is missing.
        LabelError: a label name is unmapped or ambiguous.
    """
    found = find_cases(site, experiment, progress=progress)
    work = partial(measure, experiment=experiment, oriented=site.data.format != "images")
    outcomes = in_order(work, found.cases, _crashed, title="looking at cases", progress=progress)
    cases = [one for one in outcomes if isinstance(one, CaseFacts)]
    unread = [one for one in outcomes if isinstance(one, Unread)]
    skipped = [one for one in found.skipped if one.code not in _OF_NO_INTEREST]
    splits = Counter(_splits(cases, experiment).values())
    findings = [
        *look(cases, unread, site, experiment.task.classes),
        *few_patients(splits["train"], site),
        *_skipped(skipped),
        *machine(home, site, experiment, cases),
    ]
    return Preflight(
        site=site.name,
        experiment=experiment.name,
        cases=tuple(cases),
        unread=tuple(unread),
        skipped=tuple(skipped),
        findings=tuple(sorted(findings, key=lambda one: _ORDER.index(one.level))),
        splits={str(name): count for name, count in splits.items()},
        presence={
            name: len({case.patient for case in cases if name in case.shows})
            for name in experiment.task.classes
        },
    )


def _splits(cases: Sequence[CaseFacts], experiment: Experiment) -> dict[str, Split]:
    number = {name: k for k, name in enumerate(experiment.task.classes)}
    shows: dict[str, set[int]] = {}
    for case in cases:
        shows.setdefault(case.patient, set()).update(number[name] for name in case.shows)
    return split_patients(shows, experiment.data.splits, experiment.seed) if shows else {}


def _skipped(skipped: Sequence[Skipped]) -> list[Finding]:
    """A line for each kind of what was left out."""
    findings = []
    for code, count in sorted(Counter(one.code for one in skipped).items()):
        first = next(one for one in skipped if one.code == code)
        findings.append(
            Finding(
                level="warn",
                code=code,
                what=f"{count} files or series are left out, as {printable(first.path.name)}: {printable(first.reason)}",
                fix="'fedmed site scan' lists all of them" if code != "data" else "",
            )
        )
    return findings


def _crashed(case: RawCase) -> Unread:
    return Unread(
        patient=case.patient, path=case.path, code="reader-crashed", reason="no process survived reading it"
    )

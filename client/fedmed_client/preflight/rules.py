"""What is odd in a cohort: each case against what must be, and against the other cases of the same site."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmed_client.data.text import printable
from fedmed_client.preflight.measures import CaseFacts, ClassFacts, Unread
from fedmed_common.config import Experiment, Site

Level = Literal["pass", "warn", "fail"]

LEAST_CASES = 6
"""From how many cases on one is compared with the others."""
_DEVIATIONS = 6.0
_GAIN = 0.08
_LEAST_SHIFT_VOXELS = 0.9
_SIDE = 0.08
_ELSEWHERE = 0.12
_SIZE = math.log(1.6)
_BODY = math.log(1.35)
_OUTSIDE = 0.03
_SPECKS = 5
_ALIKE = 0.9995
_NEARLY_ALL = 0.9
_AIR_HU = -500.0
_LEAST_CONTRAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``what`` is wrong or fine, where, and the ``fix``; ``code`` names the rule. ``case``: None where it is of the whole
    site."""

    level: Level
    code: str
    what: str
    fix: str = ""
    case: Path | None = None


def look(
    cases: Sequence[CaseFacts], unread: Sequence[Unread], site: Site, experiment: Experiment
) -> Iterator[Finding]:
    """All that is odd, worst first within a rule."""
    yield from _left_out(unread)
    is_ct = site.data.modality == "CT" or (
        bool(cases) and float(np.median([case.levels[0] for case in cases])) < _AIR_HU
    )
    for case in cases:
        yield from _alone(case, is_ct=is_ct)
    yield from _copies(cases)
    if site.data.labels_from == "masks":
        yield from _empty(cases)
    if len(cases) >= LEAST_CASES:
        yield from _beside_the_others(cases, experiment.task.dimensions)
    yield from _counts(cases, site)


def _left_out(unread: Sequence[Unread]) -> Iterator[Finding]:
    for one in unread:
        yield Finding(
            level="fail",
            code=one.code,
            what=f"cannot be used: {printable(one.reason.splitlines()[0])}",
            fix=one.reason.partition("fix: ")[2] or "export it again, or take it out of the folder",
            case=one.path,
        )


def _empty(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """A case without any label where nearly all others have some; of lesions many patients may show none."""
    labelled = sum(case.labelled > 0 for case in cases)
    if labelled < _NEARLY_ALL * len(cases):
        return
    for case in cases:
        if not case.labelled:
            yield Finding(
                level="fail",
                code="empty-label",
                what=f"its label has no voxel, and {labelled} of {len(cases)} cases have some",
                fix="annotate it, or take the label out of the folder",
                case=case.path,
            )


def _alone(case: CaseFacts, *, is_ct: bool) -> Iterator[Finding]:
    """What no case may be."""
    if is_ct and case.levels[0] > _AIR_HU:
        yield Finding(
            level="fail",
            code="not-hounsfield",
            what=f"its darkest values are about {case.levels[0]:.0f}, and air in CT is -1000 HU",
            fix="see to RescaleIntercept and RescaleSlope; export the original series",
            case=case.path,
        )
    if case.levels[2] - case.levels[0] < _LEAST_CONTRAST:
        yield Finding(
            level="fail",
            code="no-contrast",
            what="all voxels are alike",
            fix="export it again",
            case=case.path,
        )
    for one in case.classes:
        if one.outside > _OUTSIDE:
            yield Finding(
                level="fail",
                code="outside-body",
                what=f"{one.outside:.0%} of '{one.name}' lies outside the body",
                fix="see whether the label belongs to this image, and was drawn on it",
                case=case.path,
            )


def _copies(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """The same image under two patients, or twice of one."""
    first: dict[str, CaseFacts] = {}
    pictures = (
        np.array([case.picture for case in cases]) if _of_one_size(cases) else np.zeros((len(cases), 1))
    )
    alike = pictures @ pictures.T if len(cases) else pictures
    for number, case in enumerate(cases):
        other = first.setdefault(case.digest, case)
        if other is case:
            near = [k for k in range(number) if alike[k, number] > _ALIKE]
            other = cases[near[0]] if near else case
        if other is case:
            continue
        patients = "another patient" if case.patient != other.patient else "the same patient"
        yield Finding(
            level="fail" if case.patient != other.patient else "warn",
            code="copy",
            what=f"is the image of {printable(str(other.path))}, under {patients}"
            + ("; training and test could share it" if case.patient != other.patient else ""),
            fix="keep one of them; give both the same PatientID if it is one person",
            case=case.path,
        )


def _of_one_size(cases: Sequence[CaseFacts]) -> bool:
    return len({len(case.picture) for case in cases}) == 1


def _beside_the_others(cases: Sequence[CaseFacts], dimensions: int) -> Iterator[Finding]:
    yield from _moved(cases)
    if dimensions == 3:
        yield from _places(cases)
        yield from _sizes(cases)
    yield from _levels(cases)
    yield from _specks(cases)
    yield from _missing(cases)


def _moved(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Labels that lie beside the edges of their image."""
    for case in cases:
        voxels = [abs(mm) / step for mm, step in zip(case.shift_mm, case.spacing_mm, strict=True)]
        if case.gain < _GAIN or max(voxels) < _LEAST_SHIFT_VOXELS:
            continue
        x, y, z = case.shift_mm
        yield Finding(
            level="fail",
            code="shifted-label",
            what=f"its labels lie beside the image's edges: {x:+.1f}, {y:+.1f}, {z:+.1f} mm to right, front and top would fit",
            fix="export the label again; a shift by one slice comes from counting slices from 0 and from 1",
            case=case.path,
        )


def _places(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Classes on the other side, or elsewhere in the body, than in the other cases."""
    by_class = _by_class(cases)
    for case in cases:
        swapped, elsewhere = [], []
        for one in case.classes:
            others = np.array([other.centre for other in by_class[one.name]])
            if len(others) < LEAST_CASES:
                continue
            usual = np.median(others, axis=0)
            x = one.centre[0]
            if abs(usual[0] - 0.5) > _SIDE and abs(x - (1 - usual[0])) + _SIDE < abs(x - usual[0]):
                swapped.append(one.name)
                continue
            apart = np.abs(np.array(one.centre) - usual)
            if (apart > np.maximum(_ELSEWHERE, _DEVIATIONS * _spread(others))).any():
                elsewhere.append(one.name)
        if swapped:
            yield Finding(
                level="fail",
                code="swapped-sides",
                what=f"left and right seem swapped: {', '.join(swapped)} on the other side than in the other cases",
                fix="see to the image's orientation, and to the program that wrote the label",
                case=case.path,
            )
        elif elsewhere:
            yield Finding(
                level="warn",
                code="elsewhere",
                what=f"{', '.join(elsewhere)} elsewhere in the body than in the other cases",
                fix="look at the picture: a label of another image, a flipped axis, or an unusual patient",
                case=case.path,
            )


def _sizes(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """All classes larger or smaller than elsewhere by about one factor: a wrong voxel size."""
    by_class = _by_class(cases)
    bodies = np.log([case.body_mm for case in cases])
    usual_body, spread_body = np.median(bodies, axis=0), _spread(bodies)
    for case, body in zip(cases, bodies, strict=True):
        factors = [
            math.log(one.ml / float(np.median([other.ml for other in by_class[one.name]])))
            for one in case.classes
            if len(by_class[one.name]) >= LEAST_CASES
        ]
        apart = np.abs(body - usual_body)
        grown = factors and abs(float(np.median(factors))) > _SIZE and min(map(abs, factors)) > _SIZE / 2
        if grown or (apart[:2] > np.maximum(_BODY, _DEVIATIONS * spread_body[:2])).any():
            sizes = " x ".join(f"{side:.0f}" for side in case.body_mm)
            usual = " x ".join(f"{side:.0f}" for side in np.exp(usual_body))
            yield Finding(
                level="fail" if grown else "warn",
                code="wrong-size",
                what=f"the body measures {sizes} mm, in the other cases about {usual}"
                + (
                    f", and its structures have {math.exp(float(np.median(factors))):.1f} times their volume"
                    if grown
                    else ""
                ),
                fix="see to PixelSpacing, ImagePositionPatient and the spacing between slices",
                case=case.path,
            )


def _levels(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Intensities of another scale or offset than the other cases'."""
    levels = np.array([case.levels for case in cases])
    usual, spread = np.median(levels, axis=0), _spread(levels)
    width = max(float(usual[2] - usual[0]), 1e-9)
    for case, own in zip(cases, levels, strict=True):
        apart = np.abs(own - usual)
        if (apart > np.maximum(0.25 * width, _DEVIATIONS * spread)).sum() >= 2:
            yield Finding(
                level="warn",
                code="intensity",
                what=f"its intensities are {own[0]:.0f} to {own[2]:.0f}, the other cases' {usual[0]:.0f} to {usual[2]:.0f}",
                fix="another sequence, unit or rescaling: leave it out with data.series_description, or export it again",
                case=case.path,
            )


def _specks(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    by_class = _by_class(cases)
    for case in cases:
        found = [
            one
            for one in case.classes
            if one.specks >= _SPECKS + 2 * float(np.median([other.specks for other in by_class[one.name]]))
        ]
        if found:
            yield Finding(
                level="warn",
                code="specks",
                what="; ".join(f"'{one.name}' has {one.specks} specks apart from the rest" for one in found),
                fix="remove them in the program that made the label",
                case=case.path,
            )


def _missing(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """A class that all other cases show."""
    shown = {name: len(some) for name, some in _by_class(cases).items()}
    for case in cases:
        own = {one.name for one in case.classes}
        lost = [name for name, count in shown.items() if count == len(cases) - 1 and name not in own]
        if lost and case.labelled:
            yield Finding(
                level="warn",
                code="missing-class",
                what=f"{', '.join(lost)} is in every other case and not here",
                fix="see whether it was forgotten, or named otherwise",
                case=case.path,
            )


def _counts(cases: Sequence[CaseFacts], site: Site) -> Iterator[Finding]:
    patients = {case.patient for case in cases}
    least = site.policy.least_patients
    if len(patients) < least:
        yield Finding(
            level="fail",
            code="few-patients",
            what=f"{len(patients)} patients can be used, and policy.least_patients is {least}",
            fix="add patients, or lower policy.least_patients",
        )


def _by_class(cases: Sequence[CaseFacts]) -> Mapping[str, list[ClassFacts]]:
    found: dict[str, list[ClassFacts]] = defaultdict(list)
    for case in cases:
        for one in case.classes:
            found[one.name].append(one)
    return found


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A standard deviation that one odd case does not move (1.4826 times the median absolute deviation), by column."""
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))

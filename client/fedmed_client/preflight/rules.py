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
from fedmed_common.config import Site

Level = Literal["pass", "warn", "fail"]

LEAST_CASES = 6
"""From how many cases on one is compared with the others."""
_DEVIATIONS = 6.0
_USUAL = 0.9
"""The share of cases that makes something usual at a site."""
_GAIN = 0.08
_LEAST_SHIFT_VOXELS = 0.9
_SIDE = 0.08
_ELSEWHERE = 0.12
_RANGE_ALIKE = 1.2
_SIZE, _AGREE = math.log(1.6), math.log(1.4)
_LEAST_CLASSES = 3
_BODY = math.log(1.35)
_OUTSIDE = 0.03
_SPECKS = 5
_ALIKE = 0.9995
_MOST_COMPARED = 4_000
_AIR_HU, _NO_AIR_HU = -500.0, -20.0
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
    cases: Sequence[CaseFacts], unread: Sequence[Unread], site: Site, classes: Sequence[str]
) -> Iterator[Finding]:
    """All that is odd in the cases of a site. ``classes``: the experiment's."""
    yield from _left_out(unread)
    is_ct = site.data.modality == "CT" or (
        bool(cases) and float(np.median([case.levels[0] for case in cases])) < _AIR_HU
    )
    photographs = site.data.format == "images"
    for case in cases:
        yield from _alone(case, is_ct=is_ct, photograph=photographs)
    yield from _copies(cases)
    if site.data.labels_from == "masks":
        yield from _empty(cases)
        yield from _nobody_shows(cases, site, classes)
    if len(cases) < LEAST_CASES:
        return
    if not photographs:
        yield from _moved(cases)
        yield from _places(cases)
        yield from _sizes(cases)
    yield from _levels(cases)
    yield from _specks(cases)
    yield from _missing(cases)


def _left_out(unread: Sequence[Unread]) -> Iterator[Finding]:
    for one in unread:
        yield Finding(
            level="fail",
            code=one.code,
            what=f"cannot be used: {printable(one.reason.splitlines()[0])}",
            fix=one.reason.partition("fix: ")[2] or "export it again, or take it out of the folder",
            case=one.path,
        )


def _alone(case: CaseFacts, *, is_ct: bool, photograph: bool) -> Iterator[Finding]:
    """What no case may be."""
    if is_ct and case.levels[0] > _NO_AIR_HU:
        yield Finding(
            level="fail",
            code="not-hounsfield",
            what=f"its darkest values are about {case.levels[0]:.0f}; in CT fat is about -100 HU, and air -1000",
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
        if one.outside > _OUTSIDE and not photograph:
            yield Finding(
                level="fail",
                code="outside-body",
                what=f"{one.outside:.0%} of '{one.name}' lies outside the body",
                fix="see whether the label belongs to this image, and was drawn on it",
                case=case.path,
            )


def _empty(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Cases without any label where nearly all others have some; of lesions many patients may show none."""
    labelled = sum(case.labelled > 0 for case in cases)
    if cases and not labelled:
        yield Finding(
            level="fail",
            code="no-labels",
            what="no case has a voxel of any class",
            fix="see to the names under [labels] in site.toml, and to what the labels hold",
        )
    elif labelled >= _USUAL * len(cases):
        for case in cases:
            if not case.labelled:
                yield Finding(
                    level="warn",
                    code="empty-label",
                    what=f"its label has no voxel, and {labelled} of {len(cases)} cases have some",
                    fix="see whether the patient shows nothing, or the label was lost",
                    case=case.path,
                )


def _nobody_shows(cases: Sequence[CaseFacts], site: Site, classes: Sequence[str]) -> Iterator[Finding]:
    """Classes of the experiment that the site says it labels and of which there is nothing."""
    shown = {one.name for case in cases for one in case.classes}
    for name in classes:
        if shown and site.labels.get(name) and name not in shown:
            yield Finding(
                level="warn",
                code="class-without-cases",
                what=f"no case shows '{name}', which site.toml lists with names",
                fix=f"correct the names of {name} under [labels]; an empty list says that nobody shows it",
            )


def _copies(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """The same image twice; under two patients also one that was stored otherwise."""
    pairs: dict[int, int] = {}
    first: dict[str, int] = {}
    for number, case in enumerate(cases):
        other = first.setdefault(case.digest, number)
        if other != number:
            pairs[number] = other
    for other, number in _nearly_alike(cases):
        if cases[number].patient != cases[other].patient:
            pairs.setdefault(number, other)
    for number, other in sorted(pairs.items()):
        is_one = cases[number].patient == cases[other].patient
        for one, twin in ((number, other), (other, number)):
            yield Finding(
                level="warn" if is_one else "fail",
                code="copy",
                what=f"is the image of {printable(str(cases[twin].path))}, "
                + (
                    "of the same patient"
                    if is_one
                    else "under another patient; training and test could share it"
                ),
                fix="keep one of them; give both the same PatientID if it is one person",
                case=cases[one].path,
            )


def _nearly_alike(cases: Sequence[CaseFacts]) -> Iterator[tuple[int, int]]:
    """Pairs whose coarse pictures are the same but for rounding; of very many cases none are looked for."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, case in enumerate(cases if len(cases) <= _MOST_COMPARED else ()):
        by_size[len(case.picture)].append(number)
    for numbers in by_size.values():
        pictures = np.array([cases[number].picture for number in numbers], np.float32)
        alike = np.triu(pictures @ pictures.T > _ALIKE, 1)
        for one, other in np.argwhere(alike):
            yield numbers[int(one)], numbers[int(other)]


def _moved(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Labels that lie beside the edges of their image, at a site whose labels lie on edges; lesions often do not."""
    gains = np.array([case.gain for case in cases if case.labelled])
    if len(gains) < LEAST_CASES or float(np.median(gains)) > _GAIN / 2:
        return
    least = float(np.median(gains)) + max(_GAIN, _DEVIATIONS * float(_spread(gains)))
    for case in cases:
        voxels = [abs(mm) / step for mm, step in zip(case.shift_mm, case.spacing_mm, strict=True)]
        if case.gain < least or max(voxels) < _LEAST_SHIFT_VOXELS:
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
    usual_range = float(np.median([case.body_mm[2] for case in cases]))
    swapped: dict[str, list[str]] = defaultdict(list)
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for name, some in by_class.items():
        if len(some) < LEAST_CASES:
            continue
        centres = np.array([one.centre for _, one in some])
        usual = np.median(centres, axis=0)
        apart = np.abs(centres - usual)
        limits = np.maximum(
            _ELSEWHERE, np.maximum(_DEVIATIONS * _spread(centres), 1.5 * np.quantile(apart, _USUAL, axis=0))
        )
        side = usual[0] - 0.5
        one_sided = abs(side) > _SIDE and float(np.mean((centres[:, 0] - 0.5) * side > 0)) >= _USUAL
        for (case, one), away in zip(some, apart, strict=True):
            x = one.centre[0]
            if one_sided and abs(x - (1 - usual[0])) + _SIDE < abs(x - usual[0]):
                swapped[str(case.path)].append(name)
            elif (away > limits)[: 3 if _is_of_range(case, usual_range) else 2].any():
                elsewhere[str(case.path)].append(name)
    for case in cases:
        key = str(case.path)
        if key in swapped:
            yield Finding(
                level="fail",
                code="swapped-sides",
                what=f"left and right seem swapped: {', '.join(swapped[key])} on the other side than in the other cases",
                fix="see to the image's orientation, and to the program that wrote the label",
                case=case.path,
            )
        elif key in elsewhere:
            yield Finding(
                level="warn",
                code="elsewhere",
                what=f"{', '.join(elsewhere[key])} elsewhere in the body than in the other cases",
                fix="look at the picture: a label of another image, a flipped axis, or an unusual patient",
                case=case.path,
            )


def _is_of_range(case: CaseFacts, usual_mm: float) -> bool:
    """Whether it shows about as much of the body from bottom to top as the others, so that heights can be compared."""
    return usual_mm / _RANGE_ALIKE < case.body_mm[2] < usual_mm * _RANGE_ALIKE


def _sizes(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Several classes larger or smaller than elsewhere by about one factor, or the body is: a wrong voxel size."""
    medians = {
        name: float(np.median([one.ml for _, one in some]))
        for name, some in _by_class(cases).items()
        if len(some) >= LEAST_CASES
    }
    bodies = np.log([case.body_mm for case in cases])
    usual_body = np.median(bodies, axis=0)
    limits = np.maximum(_BODY, _DEVIATIONS * _spread(bodies))
    for case, body in zip(cases, bodies, strict=True):
        factors = np.array(
            [math.log(one.ml / medians[one.name]) for one in case.classes if one.name in medians]
        )
        middle = float(np.median(factors)) if len(factors) >= _LEAST_CLASSES else 0.0
        agreeing = int((np.abs(factors - middle) < _AGREE).sum())
        grown = abs(middle) > _SIZE and agreeing >= max(_LEAST_CLASSES, 0.7 * len(factors))
        if grown or (np.abs(body - usual_body) > limits)[:2].any():
            sizes = " x ".join(f"{side:.0f}" for side in case.body_mm)
            usual = " x ".join(f"{side:.0f}" for side in np.exp(usual_body))
            yield Finding(
                level="fail" if grown else "warn",
                code="wrong-size",
                what=f"the body measures {sizes} mm, in the other cases about {usual}"
                + (f", and its structures have {math.exp(middle):.1f} times their volume" if grown else ""),
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
    """Of classes that are in one piece in most cases."""
    whole = {
        name
        for name, some in _by_class(cases).items()
        if float(np.median([one.specks for _, one in some])) < 1
    }
    for case in cases:
        found = [one for one in case.classes if one.name in whole and one.specks >= _SPECKS]
        if found:
            yield Finding(
                level="warn",
                code="specks",
                what="; ".join(f"'{one.name}' has {one.specks} specks apart from the rest" for one in found),
                fix="remove them in the program that made the label",
                case=case.path,
            )


def _missing(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """A class that nearly all other cases show."""
    labelled = [case for case in cases if case.labelled]
    usual = {name for name, some in _by_class(labelled).items() if len(some) >= _USUAL * len(labelled)}
    for case in labelled:
        lost = sorted(usual - {one.name for one in case.classes})
        if lost:
            yield Finding(
                level="warn",
                code="missing-class",
                what=f"{', '.join(lost)} is in nearly every other case and not here",
                fix="see whether it was forgotten, or named otherwise",
                case=case.path,
            )


def few_patients(training: int, site: Site) -> Iterator[Finding]:
    """Whether the site may train at all."""
    least = site.policy.least_patients
    if training < least:
        yield Finding(
            level="fail",
            code="few-patients",
            what=f"{training} patients are for training, and policy.least_patients is {least}",
            fix="add patients, or lower policy.least_patients",
        )


def _by_class(cases: Sequence[CaseFacts]) -> Mapping[str, list[tuple[CaseFacts, ClassFacts]]]:
    found: dict[str, list[tuple[CaseFacts, ClassFacts]]] = defaultdict(list)
    for case in cases:
        for one in case.classes:
            found[one.name].append((case, one))
    return found


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A standard deviation that one odd case does not move (1.4826 times the median absolute deviation), by column."""
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))

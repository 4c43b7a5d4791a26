"""From a data sheet to an experiment, by nnU-Net's rules; nothing else is looked at.

Source: Isensee et al. 2021, 'nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation', Nature
Methods 18, supplementary note 2, with the numbers of nnU-Net's second version (``ExperimentPlanner``): what a network's maps may
take, and the batch. Medians are those of histograms over patients, and a median shape is that of each axis by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from fedmed_common.catalogue.stages import LEAST_EDGE, Axes, plan_stages
from fedmed_common.errors import ConfigError
from fedmed_server.survey.sheet import AXES, Histogram, Sheet

LEAST_BATCH = 2
_ANISOTROPY = 3.0
_FINE_SHARE = 0.1
_CLIPPED = (0.005, 0.995)
_MOST_OF_DATA = 0.05
_FEATURES, _MOST_FEATURES = 32, {2: 512, 3: 320}
_REFERENCE = {2: (85_000_000.0, 12), 3: (560_000_000.0, 2)}
_REFERENCE_GB = 8.0
_FIRST_EDGE = {2: 2048.0, 3: 256.0}
_CONVOLUTIONS = 2
_LEAST_LEVELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``tables``: of an experiment. ``reasons``: (field, value, why)."""

    tables: dict[str, Any]
    reasons: tuple[tuple[str, str, str], ...]


def plan(sheet: Sheet, *, memory_gb: float = 8.0, landmarks: bool = False) -> Plan:
    """What to train on the consortium's images with GPUs of ``memory_gb`` GB. ``landmarks``: all images are put on one scale of
    intensities, for MR of several scanners.

    Raises:
        ConfigError: the sheet says too little, or the images are too small.
    """
    if not memory_gb > 0:
        raise ConfigError(f"{memory_gb:g} GB hold nothing", field="--memory-gb", fix="name more")
    task = sheet.experiment["task"]
    dimensions = int(task["dimensions"])
    depth = sheet.extent[2].quantile(0.5) or 1.0
    if dimensions == 2 and depth > 1:
        raise ConfigError(
            f"half of the images have {depth:.0f} slices or more, whose distance a voxel size for a 2D network would change",
            field="task.dimensions",
            fix="survey with dimensions = 3, or plan by hand and leave data.spacing_mm out",
        )
    medians = [_known(h, 0.5, f"voxels along {axis}") for h, axis in zip(sheet.spacing_mm, AXES, strict=True)]
    extents = [_known(h, 0.5, f"extents along {axis}") for h, axis in zip(sheet.extent, AXES, strict=True)]
    spacing_mm = _target_spacing(sheet, medians, extents)
    shape = [
        max(1, round(extent * own / new))
        for extent, own, new in zip(extents, medians, spacing_mm, strict=True)
    ]
    inner, edges = spacing_mm[:dimensions], shape[:dimensions]
    channels, outputs = int(sheet.experiment["data"]["channels"]), len(task["classes"]) + 1
    patch, batch, strides = _patch_and_batch(inner, edges, outputs, memory_gb, prod(shape) * sheet.patients)
    intensity, why = _on_one_scale(sheet) if landmarks else _intensity(sheet)
    kept = {name: value for name, value in sheet.experiment["data"].items() if name != "splits"}
    data = {**kept, "patch": patch, "spacing_mm": spacing_mm, "intensity": intensity}
    tables = {
        "name": f"{sheet.experiment['name']}-planned",
        "seed": sheet.experiment["seed"],
        "task": task,
        "data": data,
        "model": {"name": "dynunet"},
        "train": {"batch_size": batch},
    }
    finer = spacing_mm != medians
    return Plan(
        tables=tables,
        reasons=(
            (
                "data.spacing_mm",
                _row(spacing_mm),
                f"the median of each axis; {_row(medians)} but that its coarsest is far coarser than the others"
                if finer
                else "the median of each axis",
            ),
            ("data.intensity", _told(intensity), why),
            (
                "data.patch",
                " x ".join(map(str, patch)),
                f"the largest of the shape of {' x '.join(map(str, edges))} whose maps fit {memory_gb:g} GB",
            ),
            (
                "model",
                f"dynunet, {len(strides)} levels",
                f"each axis is halved while {LEAST_EDGE} voxels are left, the finest ones first; {channels} "
                f"channel{'s' if channels > 1 else ''} in, {outputs} out",
            ),
            (
                "train.batch_size",
                str(batch),
                f"what else fits, and no more than {_MOST_OF_DATA:.0%} of all voxels",
            ),
        ),
    )


def feature_map_size(patch: Sequence[int], strides: Sequence[Axes], outputs: int) -> int:
    """How many numbers the convolutions of nnU-Net's template put out for one patch: what its memory is estimated by."""
    most, size = _MOST_FEATURES[len(patch)], list(patch)
    ways: list[tuple[int, int]] = []
    for level, steps in enumerate(strides):
        size = [edge // step for edge, step in zip(size, steps, strict=True)]
        ways.append((prod(size), min(most, _FEATURES * 2**level)))
    down = sum(_CONVOLUTIONS * voxels * features for voxels, features in ways)
    up = sum((_CONVOLUTIONS + 1) * voxels * features for voxels, features in ways[:-1])
    return down + up + outputs * ways[0][0]


def _target_spacing(sheet: Sheet, medians: list[float], extents: list[float]) -> list[float]:
    """The medians; along an axis that is far coarser than the others, and has far fewer voxels, what a tenth is finer than."""
    worst = max(range(3), key=medians.__getitem__)
    others = [axis for axis in range(3) if axis != worst]
    coarse = medians[worst] > _ANISOTROPY * max(medians[axis] for axis in others)
    thin = extents[worst] * _ANISOTROPY < min(extents[axis] for axis in others)
    if not (coarse and thin):
        return list(medians)
    finer = _known(sheet.spacing_mm[worst], _FINE_SHARE, f"voxels along {AXES[worst]}")
    finer = max(finer, *(medians[axis] for axis in others))
    return [finer if axis == worst else own for axis, own in enumerate(medians)]


def _patch_and_batch(
    spacing_mm: Sequence[float], shape: Sequence[int], outputs: int, memory_gb: float, voxels: float
) -> tuple[list[int], int, tuple[Axes, ...]]:
    """The patch, as isotropic in mm as it fits, then the batch; and the strides that go with it."""
    dimensions = len(shape)
    edge, inverse = _FIRST_EDGE[dimensions], [1 / length for length in spacing_mm]
    scale = edge / prod(inverse) ** (1 / dimensions)
    patch = [min(round(part * scale), own) for part, own in zip(inverse, shape, strict=True)]
    patch, strides = _padded(patch, spacing_mm)
    (reference, of_batch) = _REFERENCE[dimensions]
    reference *= memory_gb / _REFERENCE_GB
    while feature_map_size(patch, strides, outputs) / of_batch * LEAST_BATCH > reference:
        longest = max(range(dimensions), key=lambda axis: patch[axis] / shape[axis])
        factor = _factors(strides)[longest]
        tried = [size - factor * (axis == longest) for axis, size in enumerate(patch)]
        if min(tried) < 1 or max(tried) < LEAST_EDGE * 2 ** (_LEAST_LEVELS - 1):
            raise ConfigError(
                f"in {memory_gb:g} GB no patch fits", field="--memory-gb", fix="name a larger GPU"
            )
        finer = _factors(plan_stages(tried, spacing_mm)[1])[longest]
        patch, strides = _padded(
            [size - finer * (axis == longest) for axis, size in enumerate(patch)], spacing_mm
        )
    if len(strides) < _LEAST_LEVELS:
        raise ConfigError(
            f"images of {' x '.join(map(str, shape))} voxels are too small for this network",
            field="data.patch",
            fix="plan by hand, with a network of fewer levels, as 'unet'",
        )
    batch = round(reference / feature_map_size(patch, strides, outputs) * of_batch)
    return patch, max(LEAST_BATCH, min(batch, round(voxels * _MOST_OF_DATA / prod(patch)))), strides


def _padded(patch: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[int], tuple[Axes, ...]]:
    """The patch made a multiple of what its strides halve, and these."""
    strides = plan_stages(patch, spacing_mm)[1]
    padded = [
        math.ceil(size / factor) * factor for size, factor in zip(patch, _factors(strides), strict=True)
    ]
    return padded, plan_stages(padded, spacing_mm)[1]


def _factors(strides: Sequence[Axes]) -> list[int]:
    return [prod(steps) for steps in zip(*strides, strict=True)]


def _intensity(sheet: Sheet) -> tuple[dict[str, Any], str]:
    """CT by the range of what is labelled, anything else by each image's own mean."""
    asked = sheet.experiment["data"]["intensity"]
    if asked["kind"] == "scale":
        return {"kind": "scale"}, "pictures of 0 to 255"
    if asked["low"] >= 0:
        return {"kind": "zscore"}, "no value below 0 was asked for, so this is not CT: each image by itself"
    together = [
        _known(histogram, share, "intensities") for share in _CLIPPED for histogram in sheet.foreground
    ]
    low, high = min(together), max(together)
    if low >= high:
        raise ConfigError(
            f"all labelled voxels are about {low:g}", field="foreground", fix="survey a wider window"
        )
    return {
        "kind": "window",
        "low": low,
        "high": high,
    }, "CT: 99 % of the labelled voxels lie in it"


def _on_one_scale(sheet: Sheet) -> tuple[dict[str, Any], str]:
    """The mean of all patients' landmarks, where it is a scale."""
    rows = [list(row) for row in sheet.landmarks]
    if not rows or any(one >= other for row in rows for one, other in pairwise((0.0, *row, 1.0))):
        raise ConfigError(
            "the sheet has no scale of intensities",
            field="landmarks",
            fix="too few patients at each site, or noise: survey more patients, or with a larger epsilon",
        )
    return {
        "kind": "landmarks",
        "landmarks": rows,
    }, "each image's deciles on the mean of all patients' (Nyul and Udupa 1999)"


def _known(histogram: Histogram, share: float, what: str) -> float:
    value = histogram.quantile(share)
    if value is None:
        raise ConfigError(
            f"the sheet says nothing of {what}",
            fix="too few patients at each site, or noise: survey more patients, or with a larger epsilon",
        )
    return float(f"{value:.3g}")


def _row(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values) + " mm"


def _told(intensity: dict[str, Any]) -> str:
    if intensity["kind"] != "window":
        return str(intensity["kind"])
    return f"window {intensity['low']:g} to {intensity['high']:g}"

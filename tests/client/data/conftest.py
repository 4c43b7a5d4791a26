"""Small invented sites: pairs of PNG or NIfTI files, and cases that were never on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedmed_client.data.cohort import Case
from fedmed_common.config import Experiment, Site


def _experiment(
    classes: tuple[str, ...] = ("nucleus",),
    patch: tuple[int, ...] = (8, 8),
    *,
    data: Mapping[str, Any] | None = None,
    **more: Any,
) -> Experiment:
    settings = {"augmentation": "none", "intensity": {"kind": "scale"}, **(data or {})}
    return Experiment.model_validate(
        {
            "name": "test",
            "rounds": 1,
            "task": {"classes": classes, "dimensions": len(patch)},
            "data": {"patch": patch, **settings},
            "model": {"channels": (4, 8, 8)},
            **more,
        }
    )


def _site(
    root: Path, table: Mapping[str, tuple[str, ...]], ignored: tuple[str, ...] = (), **data: Any
) -> Site:
    return Site.model_validate(
        {
            "name": "hospital",
            "data": {"root": root, **data},
            "labels": table,
            "ignore_labels": ignored,
        }
    )


def _photographs(root: Path, stems: tuple[str, ...], side: int = 16) -> Path:
    for number, stem in enumerate(stems):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (side, side), dtype=np.uint8)
        for folder, pixels in (("images", image), ("labels", (image > 200).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{stem}.png")
    return root


def _volume(root: Path, stem: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    for folder, voxels in (("images", image), ("labels", label)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), root / folder / f"{stem}.nii.gz")


def _case(image: np.ndarray, label: np.ndarray, *, patient: int = 0, classes: int = 1, **more: Any) -> Case:
    points = tuple(np.argwhere(label == klass).astype(np.int32) for klass in range(1, classes + 1))
    facts: dict[str, Any] = {
        "id": "local",
        "split": "train",
        "spacing_mm": (1.0, 1.0, 1.0),
        "annotated": (True,) * classes,
        "oriented": True,
        **more,
    }
    return Case(
        patient=patient,
        image=image.astype(np.float32),
        label=label.astype(np.uint8),
        present=tuple(len(part) > 0 for part in points),
        points=points,
        **facts,
    )


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """Builds an experiment without augmentation: classes, patch, settings of [data], other sections."""
    return _experiment


@pytest.fixture
def make_site() -> Callable[..., Site]:
    """Builds a site: root, label table, ignored names, settings of [data]."""
    return _site


@pytest.fixture
def photographs() -> Callable[..., Path]:
    """Writes PNG images and masks of these stems below a root."""
    return _photographs


@pytest.fixture
def write_volume() -> Callable[..., None]:
    """Writes one NIfTI image and label of equal stem below a root."""
    return _volume


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Builds a case from arrays."""
    return _case

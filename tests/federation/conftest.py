"""Small federations of pictures, written by the test itself: bright discs on noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteExperiment = Callable[..., Path]


def _write_site(folder: Path, patients: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rows, columns = np.mgrid[:32, :32]
    for number in range(patients):
        centre = rng.uniform(8, 24, 2)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < rng.uniform(4, 8) ** 2
        image = rng.normal(60 + 20 * (seed % 3), 12, (32, 32)) + 110 * disc
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"p{number:02d}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / "labels" / f"p{number:02d}.png")


@pytest.fixture
def write_experiment(tmp_path: Path) -> WriteExperiment:
    """Write a federation of discs and its experiment; keyword arguments replace parts of the file."""
    return experiment_writer(tmp_path)


def experiment_writer(folder: Path) -> WriteExperiment:
    """What writes such a federation into a folder."""

    def write(
        *,
        rounds: int = 3,
        sites: int = 3,
        policy: str = "least_patients = 1",
        extra: str = "",
        steps: int = 2,
    ) -> Path:
        lines = [
            'name = "discs"',
            f"rounds = {rounds}",
            "seed = 7",
            '[task]\nclasses = ["disc"]\ndimensions = 2',
            '[data]\npatch = [16, 16]\nintensity = { kind = "zscore" }',
            "[model]\nchannels = [4, 8]\nresidual_units = 0",
            f"[train]\nsteps = {steps}\nbatch_size = 2\nlearning_rate = 1e-2\nthreads = 1",
            extra,
        ]
        for number in range(sites):
            root = folder / "data" / f"site-{number}"
            if not root.exists():
                _write_site(root, 6 + number, number)
            lines.append(
                f'[[simulation.sites]]\nname = "site-{number}"\nlabels = {{ disc = ["1"] }}\npolicy = {{ {policy} }}\n'
                f'data = {{ format = "images", root = {json.dumps(str(root))} }}'
            )
        file = folder / "discs.toml"
        file.write_text("\n".join(lines))
        return file

    return write

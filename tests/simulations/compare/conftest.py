"""Small federations of pictures with two classes, and comparisons on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteComparison = Callable[..., Path]


def _write_site(root: Path, patients: int, seed: int) -> None:
    """Every patient shows a disc, every other one a dark dot."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    rows, columns = np.mgrid[:24, :24]
    for number in range(patients):
        image, label = rng.normal(90, 10, (24, 24)), np.zeros((24, 24), np.uint8)
        for value, (centre, radius, brighter) in enumerate(((8, 5, 90), (18, 3, -60)), start=1):
            x, y = rng.uniform(centre - 2, centre + 2, 2)
            if value == 1 or number % 2:
                shape = (rows - x) ** 2 + (columns - y) ** 2 < radius**2
                label[shape], image = value, image + brighter * shape
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{number:02d}.png")
        Image.fromarray(label).save(root / "labels" / f"p{number:02d}.png")


@pytest.fixture(scope="session")
def write_comparison(tmp_path_factory: pytest.TempPathFactory) -> WriteComparison:
    """Write a federation, its experiment and a comparison of which ``lines`` are the rest, into a folder of its own."""

    def write(
        lines: str = "", *, seeds: str = "[1, 2]", rounds: int = 6, steps: int = 2, sites: int = 2
    ) -> Path:
        folder = tmp_path_factory.mktemp("comparison")
        experiment = [
            f'name = "discs"\nrounds = {rounds}',
            '[task]\nclasses = ["dot", "disc"]\ndimensions = 2',
            '[data]\npatch = [16, 16]\nintensity = { kind = "zscore" }\nsplits = { validation = 0.25, test = 0.25 }',
            "[model]\nchannels = [4, 8]\nresidual_units = 0",
            f"[train]\nsteps = {steps}\nbatch_size = 2\nlearning_rate = 1e-2\nthreads = 1",
        ]
        for number in range(sites):
            root = folder / "data" / f"site-{number}"
            _write_site(root, 12 + 4 * number, number)
            experiment.append(
                f'[[simulation.sites]]\nname = "site-{number}"\npolicy = {{ least_patients = 1 }}\n'
                'labels = { disc = ["1"], dot = ["2"] }\n'
                f'data = {{ format = "images", image_labels = "values", root = {json.dumps(str(root))} }}'
            )
        (folder / "discs.toml").write_text("\n".join(experiment))
        file = folder / "comparison.toml"
        file.write_text(f'name = "trial"\nexperiment = "discs.toml"\nseeds = {seeds}\ndraws = 200\n{lines}')
        return file

    return write

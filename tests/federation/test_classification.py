"""Classification through whole runs: labels from tables and from masks, and the equalities of a federation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pooled import assert_federated_is_pooled
from simulated import assert_equal_weights, fedmed, kill_after_round, only_run

from fedmed_client.data.class_sampler import ClassSampler
from fedmed_common.loading import load_experiment
from fedmed_common.metrics import merge
from fedmed_server import history
from fedmed_server.history import RoundDone, RunEnded
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes

WriteExperiment = Callable[..., Path]
PATIENTS = 20


def _site(root: Path, number: int, *, single: bool) -> str:
    """Grey pictures with a bright or a dark square or, where a picture may show several, both or none.

    The first site has masks, the others a table: one with a column for each label, one with names.
    """
    rng = np.random.default_rng(number)
    bright, dark = rng.random((2, PATIENTS)) < 0.5
    if single:
        dark = ~bright
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    rows = ["file,Hell,Dunkel"] if number == 1 else ["file,label"]
    for patient, shows in enumerate(zip(bright.tolist(), dark.tolist(), strict=True)):
        label = np.zeros((24, 24), np.uint8)
        for value, shown in enumerate(shows, start=1):
            x, y = 12 * (value - 1) + rng.integers(0, 5), rng.integers(0, 17)
            if shown:
                label[x : x + 8, y : y + 8] = value
        image = rng.normal(110 + 10 * number, 10, (24, 24)) + np.array([0, 100, -100])[label]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{patient}.png")
        Image.fromarray(label).save(root / "labels" / f"p{patient}.png")
        marks = [str(int(shown)) for shown in shows]
        names = ";".join(name for name, shown in zip(("white", "black"), shows, strict=True) if shown)
        rows.append(f"p{patient},{','.join(marks) if number == 1 else names}")
    (root / "labels.csv").write_text("\n".join(rows))
    source, names = [
        ('image_labels = "values"', ("1", "2")),
        ('labels_from = "table"', ("hell", "dunkel")),
        ('labels_from = "table"', ("White", "Black")),
    ][number]
    return (
        f'[[simulation.sites]]\nname = "site-{number}"\npolicy = {{ least_patients = 1 }}\n'
        f'labels = {{ bright = ["{names[0]}"], dark = ["{names[1]}"] }}\n'
        f'data = {{ format = "images", root = {json.dumps(str(root))}, {source} }}'
    )


@pytest.fixture
def write_squares(tmp_path: Path) -> WriteExperiment:
    """Write a federation of squares and its experiment."""

    def write(
        labels: str, *, rounds: int = 2, steps: int = 2, train: str = "learning_rate = 3e-3", every: int = 1
    ) -> Path:
        lines = [
            f'name = "squares"\nrounds = {rounds}\nseed = 3',
            f'[task]\nname = "classification"\nclasses = ["bright", "dark"]\ndimensions = 2\nlabels = "{labels}"',
            '[data]\npatch = [24, 24]\nintensity = { kind = "scale" }\nsplits = { test = 0.4 }\naugmentation = "none"',
            '[model]\nname = "resnet"\nwidth = 0.125',
            f"[train]\nsteps = {steps}\nbatch_size = 8\nthreads = 1\n{train}",
            f"[federation]\nevaluate_every = {every}",
            *(
                _site(tmp_path / "data" / f"site-{number}", number, single=labels == "single")
                for number in range(3)
            ),
        ]
        file = tmp_path / "squares.toml"
        file.write_text("\n".join(lines))
        return file

    return write


@pytest.mark.parametrize("labels", ["multi", "single"])
def test_one_sgd_step_at_each_site_equals_one_on_the_pooled_batch(
    write_squares: WriteExperiment, tmp_path: Path, labels: str
) -> None:
    plain = 'learning_rate = 1e-2\noptimizer = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\ngradient_norm = 0'
    file = write_squares(labels, steps=1, train=plain)
    experiment = load_experiment(file)
    batches = []
    for home in make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites"):
        sampler = ClassSampler(home.cohort(experiment).of("train"), experiment)
        batches.append(sampler.batch(np.random.default_rng(len(batches))))

    pooled = assert_federated_is_pooled(experiment, batches)
    assert any(array.any() for array in pooled.values())


@pytest.mark.parametrize("labels", ["multi", "single"])
def test_a_federation_learns_what_tables_and_masks_say(
    write_squares: WriteExperiment, tmp_path: Path, labels: str
) -> None:
    done = fedmed("simulate", write_squares(labels, rounds=6, steps=40, every=6), "--runs", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    *_, ended = history.read(run / "history.jsonl")
    assert isinstance(ended, RunEnded)
    assert ended.status == "completed"
    (tested,) = {sum(result.patients for result in results) for results in ended.test.values()}
    assert tested == 24
    means = merge(result.means() for result in ended.test["best"])
    assert min(means[f"auroc/{name}"].value for name in ("bright", "dark")) > 0.85
    assert ("accuracy" in means) == (labels == "single")
    assert "AUROC on held-out test patients" in done.stdout
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Mean AUROC" in report
    assert ("Accuracy over 24 patients" in report) == (labels == "single")


def test_resume_after_kill_ends_bit_identical(write_squares: WriteExperiment, tmp_path: Path) -> None:
    file = write_squares("multi", rounds=10, steps=6, every=2)
    fedmed("simulate", file, "--runs", tmp_path / "whole")
    killed = kill_after_round(file, tmp_path / "killed", rounds=3)
    assert not (killed / "models").exists()
    fedmed("resume", killed)
    assert_equal_weights(only_run(tmp_path / "whole"), killed)
    done = [record for record in history.read(killed / "history.jsonl") if isinstance(record, RoundDone)]
    assert sorted({record.round for record in done}) == list(range(1, 11))

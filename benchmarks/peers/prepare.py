"""From an experiment of fedmed's to a folder of work for its peers: the same patients, batches, start weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers.work import START
from PIL import Image
from safetensors.numpy import save_file

from fedmed_client.workbench import COHORTS, SiteHome, seed_for
from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes
from fedmed_simulations.run import SITES

PATIENTS = 4
"""Of a site on average; the sites' numbers differ, so that a mistaken weight would show."""
_PICTURE, _PATCH = 128, 96
EXPERIMENT = """
name = "peers-{sites}"
rounds = {rounds}
seed = 1
[task]
classes = ["disc"]
dimensions = 2
loss = "cross_entropy"
[data]
patch = [{patch}, {patch}]
augmentation = "none"
splits = {{ validation = 0.0, test = 0.0 }}
[model]
name = "unet_2015"
channels = {channels}
[train]
steps = {steps}
batch_size = 4
optimizer = "sgd"
learning_rate = 0.01
momentum = 0.9
weight_decay = 0.0
device = "cpu"
threads = 1
[federation]
evaluate_every = {rounds}
[simulation]
partition = {{ kind = "quantity", sites = {sites}, alpha = 5.0 }}
[[simulation.sites]]
name = "pool"
labels = {{ disc = ["1"] }}
data = {{ format = "images", root = "{root}" }}
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work: sites, rounds, steps of a site in a round, and the network's channels."""

    sites: int
    rounds: int
    steps: int
    channels: tuple[int, ...] = (8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """``experiment``: fedmed's file; ``runs``: where its runs go, beside the caches; ``work``: the peers' folder."""

    experiment: Path
    runs: Path
    work: Path
    parameters: int


def prepare(size: Size, folder: Path) -> Prepared:
    """Draw the pictures, let fedmed fill its caches, and write down what it would draw."""
    _write_pictures(folder / "pictures", PATIENTS * size.sites)
    file, runs = folder / "experiment.toml", folder / "runs"
    file.write_text(
        EXPERIMENT.format(
            sites=size.sites,
            rounds=size.rounds,
            steps=size.steps,
            channels=list(size.channels),
            patch=_PATCH,
            root=json.dumps(str(folder / "pictures"))[1:-1],
        )
    )
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), runs / SITES)
    homes = sorted(homes, key=lambda home: home.site.name)
    work = folder / "work"
    work.mkdir()
    patients = [_write_site(work, home, experiment) for home in homes]
    start = params.from_model(build_model(experiment))
    save_file(start, work / START)
    _write_work(work, experiment, [home.site.name for home in homes], patients)
    COHORTS.forget()
    return Prepared(experiment=file, runs=runs, work=work, parameters=params.count(start))


def _write_pictures(root: Path, number: int) -> None:
    """Bright discs on noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:_PICTURE, :_PICTURE]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index in range(number):
        x, y = rng.uniform(30, _PICTURE - 30, 2)
        disc = (rows - x) ** 2 + (columns - y) ** 2 < rng.uniform(10, 30) ** 2
        image = rng.normal(80, 20, disc.shape) + 90 * disc
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{index:05d}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "labels" / f"{index:05d}.png")


def _write_site(work: Path, home: SiteHome, experiment: Experiment) -> int:
    """A site's cases and all its picks, as fedmed's sampler draws them; its number of patients."""
    cohort, sampler = COHORTS.get(home, experiment.order_text())
    assert sampler is not None
    picks = []
    for number in range(1, experiment.rounds + 1):
        rng = np.random.default_rng(seed_for(experiment.seed, number, home.site.name))
        rng.integers(2**63)  # the seed of dropout, which training draws first
        for _ in range(experiment.train.steps):
            picks.append([(pick.case, *pick.corner[:2]) for pick in sampler.draw(rng)])
    cases = cohort.of("train")
    shape = (experiment.rounds, experiment.train.steps, experiment.train.batch_size, 3)
    name = home.site.name
    np.save(work / f"{name}.images.npy", np.stack([case.image[..., 0] for case in cases]))
    np.save(work / f"{name}.labels.npy", np.stack([case.label[..., 0] for case in cases]))
    np.save(work / f"{name}.picks.npy", np.array(picks).reshape(shape))
    return cohort.patients("train")


def _write_work(work: Path, experiment: Experiment, names: Sequence[str], patients: Sequence[int]) -> None:
    settings = experiment.train
    document = {
        "rounds": experiment.rounds,
        "steps": settings.steps,
        "batch": settings.batch_size,
        "patch": _PATCH,
        "channels": list(experiment.model.channels),
        "outputs": experiment.plan.outputs,
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "gradient_norm": settings.gradient_norm,
        "threads": settings.threads,
        "names": list(names),
        "patients": list(patients),
    }
    (work / "work.json").write_text(json.dumps(document, indent=1))

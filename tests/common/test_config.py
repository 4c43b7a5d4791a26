"""A wrong experiment file is one clear error that names file, field and fix; nothing is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import experiment_from_order, load_experiment, load_site

EXPERIMENTS = Path(__file__).parents[2] / "simulations" / "fedmed_simulations" / "experiments"


@dataclass(frozen=True)
class Bad:
    """``change`` sets keys (dotted; None takes away) in a sound experiment; the error must say all of ``says``."""

    change: dict[str, Any]
    says: tuple[str, ...]
    text: str | None = None


BAD: dict[str, Bad] = {
    "unknown key": Bad(
        {"train.learning_rat": 0.1}, ("train.learning_rat", "unknown key", "did you mean 'learning_rate'?")
    ),
    "unknown table": Bad({"trian": {}}, ("trian", "unknown key", "'train'")),
    "missing key": Bad({"rounds": None}, ("rounds", "is missing")),
    "wrong type": Bad({"rounds": "many"}, ("rounds", "integer", "'many'")),
    "number in quotes": Bad({"train.steps": "5"}, ("train.steps", "integer")),
    "out of range": Bad({"train.batch_size": 0}, ("train.batch_size", "greater than or equal to 1")),
    "not a finite number": Bad({"train.learning_rate": float("nan")}, ("train.learning_rate", "finite")),
    "patch that the network cannot halve": Bad(
        {"data.patch": [30, 32, 32]}, ("data.patch", "30", "multiple of")
    ),
    "patch of another dimension": Bad({"data.patch": [32, 32]}, ("data.patch", "task.dimensions")),
    "class named twice": Bad({"task.classes": ["liver", "liver"]}, ("task.classes", "twice")),
    "background as a class": Bad({"task.classes": ["background", "liver"]}, ("task.classes", "implied")),
    "unknown model": Bad({"model.name": "unett"}, ("model.name", "'unett'", "did you mean 'unet'?")),
    "classifier for a segmentation": Bad(
        {"model.name": "resnet"},
        (
            "model.name = 'resnet' is for classification",
            "task.name is 'segmentation'",
            "fedmed models list --task segmentation",
        ),
    ),
    "surfaces of a classification": Bad(
        {"task.name": "classification", "task.surface_metrics": True, "model.name": "resnet"},
        ("surface_metrics", "'segmentation'"),
    ),
    "loss of another task": Bad(
        {"task.name": "classification", "task.loss": "dice", "model.name": "resnet"},
        ("task.loss", "cross_entropy, focal"),
    ),
    "best by the metric of another task": Bad(
        {"task.name": "classification", "federation.best": "dice", "model.name": "resnet"},
        ("federation.best = 'dice'", "auroc"),
    ),
    "unknown task": Bad({"task.name": "divination"}, ("task.name", "'divination'", "segmentation")),
    "unknown loss": Bad({"task.loss": "dice_cee"}, ("task.loss", "'dice_cee'", "did you mean 'dice_ce'?")),
    "loss that forgives what is missed": Bad(
        {"task.loss": "tversky", "task.loss_settings": {"beta": 0.0}},
        ("loss_settings.beta", "greater than 0"),
    ),
    "unknown recipe": Bad({"recipe.name": "fedaverage"}, ("recipe.name", "'fedaverage'", "fedavg")),
    "nobody left to train": Bad(
        {"data.splits": {"validation": 0.5, "test": 0.5}}, ("data.splits", "validation + test")
    ),
    "evaluation after the end": Bad(
        {"federation.evaluate_every": 9}, ("federation.evaluate_every", "rounds")
    ),
    "two sources of sites": Bad({"simulation.federation": "."}, ("simulation", "'federation'", "'sites'")),
    "no source of sites": Bad({"simulation.sites": None}, ("simulation", "'federation'", "'sites'")),
    "no simulation": Bad({"simulation": None}, ("simulation", "is missing")),
    "sites that are no list": Bad({"simulation.sites": 3}, ("simulation.sites", "array")),
    "missing data folder": Bad(
        {"simulation.sites.0.data.root": "nowhere"}, ("data.root", "'a'", "no such folder", "nowhere")
    ),
    "missing federation folder": Bad(
        {"simulation.sites": None, "simulation.federation": "nowhere"},
        ("simulation.federation", "no such folder"),
    ),
    "empty federation folder": Bad(
        {"simulation.sites": None, "simulation.federation": "empty"}, ("simulation.federation", "site.toml")
    ),
    "unset environment variable": Bad(
        {"simulation.sites.0.data.root": "${FEDMED_NOT_SET}/x"},
        ("simulation.sites[0].data.root", "FEDMED_NOT_SET"),
    ),
    "label map of another class": Bad(
        {"simulation.sites.0.labels": {"lever": ["1"]}}, ("labels", "'a'", "lever", "liver")
    ),
    "label map with a class misspelt": Bad(
        {"simulation.sites.1.labels": {"spleen": ["1"], "Liver ": ["2"]}},
        ("labels.Liver ", "'b'", "did you mean 'liver'?", "ignore_labels"),
    ),
    "class that no site labels": Bad(
        {"task.classes": ["liver", "splen"]}, ("task.classes", "'splen'", "did you mean 'spleen'?")
    ),
    "label name of two classes": Bad(
        {"simulation.sites.0.labels": {"liver": ["1"], "spleen": ["1"]}},
        ("simulation.sites[0].labels", "'1'", "both"),
    ),
    "two sites of one name": Bad({"simulation.sites.1.name": "a"}, ("simulation", "same name")),
    "pattern that is none": Bad(
        {"simulation.sites.0.data.patient_pattern": "(x"},
        ("simulation.sites[0].data.patient_pattern", "regular expression"),
    ),
    "empty percentile range": Bad(
        {"data.intensity": {"kind": "percentile", "low": 90.0, "high": 10.0}}, ("data.intensity", "less than")
    ),
    "not TOML": Bad({}, ("not valid TOML", "line 1"), text="rounds = = 3\n"),
}

THROUGH_THE_COMMAND = list(BAD)


def _sound() -> dict[str, Any]:
    """An experiment with two sites whose (empty) folders exist."""
    sites = [
        {"name": name, "data": {"format": "nifti", "root": f"data/{name}"}, "labels": labels}
        for name, labels in (
            ("a", {"liver": ["1"]}),
            ("b", {"liver": ["1"], "spleen": ["2"], "aorta": ["3"]}),
        )
    ]
    return {
        "name": "sound",
        "rounds": 2,
        "task": {"classes": ["liver", "spleen"]},
        "data": {"patch": [32, 32, 32]},
        "simulation": {"sites": sites},
    }


def _changed(change: dict[str, Any]) -> dict[str, Any]:
    document = _sound()
    for dotted, value in change.items():
        *path, last = dotted.split(".")
        place: Any = document
        for part in path:
            place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a sound experiment would find its sites."""
    for name in ("data/a", "data/b", "empty"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def _write(folder: Path, bad: Bad) -> Path:
    file = folder / "bad.toml"
    file.write_text(tomli_w.dumps(_changed(bad.change)) if bad.text is None else bad.text)
    return file


def _simulate(file: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    code = "from fedmed_common.cli import main; main()"
    command = [sys.executable, "-c", code, "simulate", str(file), "--runs", str(runs)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)


@pytest.mark.parametrize("kind", THROUGH_THE_COMMAND)
def test_a_bad_experiment_is_one_clear_error(kind: str, folder: Path) -> None:
    bad = BAD[kind]
    file = _write(folder, bad)
    before = sorted(folder.rglob("*"))
    done = _simulate(file, folder / "runs")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    for words in (str(file), "fix: ", *bad.says):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("name", "says"), [("missing.toml", "no such file"), ("empty", "is a folder")])
def test_an_experiment_that_is_no_file(name: str, says: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_experiment(folder / name)
    assert str(folder / name) in str(caught.value)


def test_checking_an_experiment_waits_for_no_network_library() -> None:
    code = "import sys, fedmed_simulations.checks; print({'torch', 'monai', 'flwr', 'mlflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_experiment_file_through_the_command(folder: Path) -> None:
    done = _simulate(folder / "missing.toml", folder / "runs")
    assert done.returncode == 2
    assert "missing.toml" in done.stderr
    assert not (folder / "runs").exists()


def test_the_sound_experiment_is_sound(folder: Path) -> None:
    experiment = load_experiment(_write(folder, Bad({}, ())))
    assert experiment.simulation is not None
    assert [site.data.root for site in experiment.simulation.sites] == [folder / "data/a", folder / "data/b"]


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_experiments_are_sound(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMED_DATA", str(tmp_path))
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    assert experiment.simulation is not None
    for site in experiment.simulation.sites:
        assert set(site.labels) <= set(experiment.task.classes)


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda file: file.stem)
def test_an_experiment_written_and_read_is_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMED_DATA", str(tmp_path))
    experiment = load_experiment(file)
    copy = tmp_path / "copy.toml"
    copy.write_text(tomli_w.dumps(experiment.model_dump(mode="json", exclude_none=True)))
    assert load_experiment(copy) == experiment


def test_an_order_tells_a_site_of_no_folder_and_no_tracking_address(folder: Path) -> None:
    document = _sound() | {"tracking": {"uri": "https://tracking.example"}}
    file = folder / "experiment.toml"
    file.write_text(tomli_w.dumps(document))
    experiment = load_experiment(file)
    text = experiment.order_text()
    assert "tracking" not in text
    assert str(folder) not in text
    received = experiment_from_order(text)
    assert received == experiment.model_copy(update={"simulation": None, "tracking": received.tracking})
    assert received.order_text() == text


def test_an_order_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        experiment_from_order(json.dumps({**_sound(), "simulation": None, "novelty": 1}))


def test_a_proxys_password_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "name": "alpha",
        "data": {"format": "images", "root": "data"},
        "labels": {"disc": ["1"]},
        "network": {"proxy": "jane:geheim@proxy:3128"},
    }
    file = tmp_path / "site.toml"
    file.write_text(tomli_w.dumps(document))
    with pytest.raises(ConfigError, match=r"site.toml: network.proxy: ") as refused:
        load_site(file)
    assert "geheim" not in str(refused.value)


def test_a_site_file_names_its_own_fields(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    document = {"name": "north", "data": {"format": "dicom", "root": "."}, "labels": {"liver": "Liver"}}
    file.write_text(tomli_w.dumps(document))
    with pytest.raises(ConfigError, match=re.escape("site.toml: labels.liver")):
        load_site(file)
    file.write_text(tomli_w.dumps(document | {"labels": {"liver": ["Liver"]}, "polcy": {}}))
    with pytest.raises(ConfigError, match="did you mean 'policy'"):
        load_site(file)
    file.write_text(tomli_w.dumps(document | {"labels": {"liver": ["Liver"]}}))
    assert load_site(file).data.root == tmp_path


def test_an_experiment_cannot_be_changed(folder: Path) -> None:
    experiment: Experiment = load_experiment(_write(folder, Bad({}, ())))
    with pytest.raises(ValueError, match="frozen"):
        experiment.rounds = 3  # type: ignore[misc]

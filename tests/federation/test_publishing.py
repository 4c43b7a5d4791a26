"""A run's model in the registry: found by its alias, loaded by MLflow's own loader, the very network that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from simulated import fedmed, only_run

from fedmed_common.errors import ConfigError
from fedmed_common.models.export import read_model
from fedmed_server.publishing import publish
from fedmed_server.state import model_file
from fedmed_server.tracking import default_uri

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
"""MLflow's loader warns of its own type hints."""


@pytest.fixture
def run(write_experiment, tmp_path: Path) -> Path:
    """Two rounds at three sites."""
    fedmed("simulate", write_experiment(rounds=2), "--runs", tmp_path / "runs")
    return only_run(tmp_path / "runs")


def test_a_registered_model_is_the_trained_one_with_its_record(run: Path, tmp_path: Path) -> None:
    import mlflow
    import torch

    told = fedmed("publish", run, "--as", "champion").stdout
    assert "version 1: registered, which 'champion' means now" in told
    uri = default_uri(run)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    version = client.get_model_version_by_alias("discs", "champion")
    assert version.tags["fedmed.status"] == "completed"
    assert version.tags["fedmed.sites"] == "3" and version.tags["fedmed.round"] in {"1", "2"}

    loaded = mlflow.pyfunc.load_model("models:/discs@champion")
    experiment, network = read_model(model_file(run, "best"))
    images = np.random.default_rng(0).normal(size=(3, 1, *experiment.data.patch)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_array_equal(loaded.predict(images), network(torch.from_numpy(images)).numpy())
    with pytest.raises(mlflow.exceptions.MlflowException):
        loaded.predict(images[:, :, :4])

    folder = Path(
        mlflow.artifacts.download_artifacts("models:/discs@champion", dst_path=str(tmp_path / "got"))
    )
    names = {file.name for file in folder.iterdir()} - {"registered_model_meta"}
    assert names == {"MLmodel", "experiment.json", "model-card.json", "model.safetensors"}
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    assert not any(name.encode() in content for name in ("site-0", "site-1", "site-2", str(tmp_path)))
    card = json.loads((folder / "model-card.json").read_text())
    assert len(card["sites"]) == 3 and card["sha256"] == version.tags["fedmed.sha256"]
    assert 0 <= card["test"]["dice/disc"]["value"] <= 1


def test_the_same_weights_are_one_version_and_an_alias_moves(run: Path) -> None:
    import mlflow

    first = publish(run, alias="candidate")
    again = publish(run, alias="champion")
    assert (first.version, first.new) == ("1", True)
    assert (again.version, again.new) == ("1", False)
    last = publish(run, kind="last", alias="champion")
    client = mlflow.MlflowClient(default_uri(run))
    assert str(client.get_model_version_by_alias("discs", "champion").version) == last.version
    assert str(client.get_model_version_by_alias("discs", "candidate").version) == "1"


def test_what_has_not_ended_is_not_published(run: Path) -> None:
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ConfigError, match="has not ended"):
        publish(run)

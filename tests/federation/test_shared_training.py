"""Whatever a recipe does at a site, processes that share the site's batches do as one process does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmed_client.engine.crew import CREWS
from fedmed_common.config import Experiment
from fedmed_common.loading import load_experiment
from fedmed_server.app import RunRequest
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are ended by the kernel")
_SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}
RECIPES: dict[str, tuple[list[str], Mapping[str, Any]]] = {
    "pull, shifted logits, rare patients": (["fedprox", "balanced_softmax", "rare"], {}),
    "control variates, start loss": (["scaffold"], _SGD),
    "kept moments, flat places": (["kept_moments", "fedsam"], {}),
    "a head of its own": (["fedrep"], _SGD),
    "a second network": (["ditto"], {}),
    "what is taught": (["longtail"], {}),
    "a teacher of what nobody looked for": (["condist", "fedce"], {}),
    "in parts: losses, patients, start loss": (["qffl", "fedlc", "rare"], {**_SGD, "parallel": "fsdp"}),
}


@pytest.fixture(scope="module", autouse=True)
def _no_crew_is_left() -> Iterator[None]:
    yield
    CREWS.end()


def _experiment(write: Callable[..., Path], recipe: list[str], **train: Any) -> Experiment:
    whole = load_experiment(write(rounds=2, sites=2)).model_dump(mode="json", exclude_none=True)
    whole["task"]["classes"] = ["disc", "dot"]
    vacant, unannotated = whole["simulation"]["sites"]
    vacant["labels"]["dot"] = ["2"]
    for site in (vacant, unannotated):
        site["device"] = {"gpu": "none", "processes": 2}
    whole["train"] |= {"batch_size": 4, "gradient_norm": 0, **train}
    whole["recipe"] = {"name": recipe[0], "also": recipe[1:]}
    return Experiment.model_validate(whole)


def _outcome(experiment: Experiment, folder: Path) -> dict[str, np.ndarray]:
    """The model, and what each site has kept, in memory and as files."""
    homes = make_homes(experiment, check_experiment(experiment, folder / "e.toml"), folder / "sites")
    (folder / "run").mkdir(parents=True)
    run_inline(
        homes, RunRequest(experiment=experiment, folder=folder / "run", command="test", sites=len(homes))
    )
    files = [
        folder / "run" / "models" / "last.safetensors",
        *(folder / "sites").rglob("personal/*/*.safetensors"),
    ]
    assert not list((folder / "sites").rglob(".team-*"))
    return {
        f"{file.relative_to(folder)}: {name}": array
        for file in files
        for name, array in load_file(file).items()
    }


@pytest.mark.parametrize("what", RECIPES)
def test_two_processes_carry_a_recipe_as_one(
    what: str, write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """To the last bit of what one does that cuts its batches in two, with what sites keep from round to round."""
    recipe, train = RECIPES[what]
    one = _outcome(_experiment(write_experiment, recipe, accumulate=2, **train), tmp_path / "one")
    two = _outcome(_experiment(write_experiment, recipe, processes=2, **train), tmp_path / "two")
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.tobytes() == two[name].tobytes(), name

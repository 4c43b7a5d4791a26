"""Runs that start from another run's published model, and what they send."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmed_common import params
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model, start_model
from fedmed_common.params import trained
from fedmed_server.app import RunRequest
from fedmed_server.history import FILE, RoundDone, read
from fedmed_server.state import model_file
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

HEAD = 'transfer = {{ weights = "{weights}", train = "head" }}\n'
LORA = 'transfer = {{ weights = "{weights}", lora = {{ rank = 2, targets = ["*.conv"] }} }}\n'


def run(file: Path, folder: Path) -> list[str]:
    """Carry the experiment out; what became of the weights that it started from."""
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), folder.parent / "sites")
    said: list[str] = []
    folder.mkdir(parents=True)
    run_inline(
        homes,
        RunRequest(experiment=experiment, folder=folder, command="test", sites=2, on_loaded=said.extend),
    )
    return said


def asking(file: Path, transfer: str) -> Path:
    file.write_text(transfer + file.read_text())
    return file


def traffic(folder: Path) -> tuple[int, int]:
    """Bytes of an order to train and of its reply, the same at every site and in every round."""
    found = {
        (site.bytes_down, site.bytes_up)
        for record in read(folder / FILE)
        if isinstance(record, RoundDone)
        for site in record.train
    }
    (one,) = found
    return one


def test_a_feature_extractor_stays_as_it_was_and_only_the_head_travels(
    write_experiment, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    assert run(write_experiment(rounds=1, sites=2), before) == []
    weights = model_file(before, "last")
    start = load_file(weights)
    file = asking(write_experiment(rounds=2, sites=2), HEAD.format(weights=weights))
    said = run(file, after)
    end = load_file(model_file(after, "last"))
    head = set(trained(build_model(load_experiment(file))))
    assert 0 < len(head) < len(start)
    learns, every = sum(start[name].size for name in head), sum(array.size for array in start.values())
    assert said == [
        f"{len(start)} of the network's {len(start)} arrays are from last.safetensors",
        f"{learns:,} of {every:,} parameters are trained; the others keep their values",
    ]
    for name, array in start.items():
        assert (name in head) == bool(np.any(array != end[name])), name
    assert traffic(after)[0] == traffic(before)[0]
    held = sum(array.nbytes for name, array in start.items() if name not in head)
    assert traffic(before)[1] - traffic(after)[1] >= held


@pytest.mark.parametrize("then", [HEAD, LORA], ids=["head", "adapters"])
def test_adapters_travel_alone_and_their_run_starts_another(
    write_experiment, tmp_path: Path, then: str
) -> None:
    before, adapted = tmp_path / "before", tmp_path / "adapted"
    run(write_experiment(rounds=1, sites=2), before)
    weights = model_file(before, "last")
    plain = write_experiment(rounds=1, sites=2).read_text()
    file = asking(tmp_path / "discs.toml", LORA.format(weights=weights))
    run(file, adapted)
    start, end = load_file(weights), load_file(model_file(adapted, "last"))
    model = build_model(load_experiment(file))
    sent = set(trained(model))
    assert any(".lora_A." in name for name in sent)
    for name, array in start.items():
        here = name if name in end else name.replace(".conv.", ".conv.base_layer.")
        assert here in sent or array.tobytes() == end[here].tobytes(), name
    down, up = traffic(adapted)
    assert down - up >= sum(array.nbytes for name, array in end.items() if name not in sent)
    params.to_model(end, model)
    (tmp_path / "discs.toml").write_text(plain)
    again = load_experiment(asking(file, then.format(weights=model_file(adapted, "last"))))
    network, loaded = start_model(again, model_file(adapted, "last"))
    assert loaded is not None
    assert (loaded.missing, loaded.other_shape, loaded.left_over) == ((), {}, ())
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), model.eval()(image), rtol=1e-5, atol=1e-5)

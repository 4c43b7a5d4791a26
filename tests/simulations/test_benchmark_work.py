"""What the benchmarks beside other frameworks rest on: their shared work is what fedmed does, bit for bit; what they time is
there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmed_common.loading import load_experiment
from fedmed_server.app import RunRequest
from fedmed_server.state import model_file
from fedmed_simulations.engines import run_inline
from fedmed_simulations.run import homes_for

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the peers' scripts, found as these find each other."""
    import importlib

    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    return [importlib.import_module(name) for name in ("peers.prepare", "plain_loop", "work")]


def test_a_plain_loop_over_the_peers_work_is_the_inline_engine(modules: Any, tmp_path: Path) -> None:
    prepare, plain_loop, work = modules
    size = prepare.Size(sites=3, rounds=2, steps=2, channels=(4, 8))
    prepared = prepare.prepare(size, tmp_path)
    task = work.Work.read(prepared.work)
    assert len(set(task.patients)) > 1, "equal weights would hide a mistaken one"
    expected = plain_loop.averaged(task, range(len(task.names)), work.Stopwatch())

    experiment = load_experiment(prepared.experiment)
    run = prepared.runs / "run"
    run.mkdir()
    homes = homes_for(experiment, run, "")
    request = RunRequest(
        experiment=experiment, folder=run, command="test", sites=len(homes), stop=threading.Event()
    )
    run_inline(homes, request)
    found = load_file(model_file(run, "last"))

    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_what_the_spans_watch_is_there() -> None:
    import importlib
    import importlib.util
    from functools import reduce

    file = BENCHMARKS / "spans" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("spans_of_a_test", file)
    assert spec is not None and spec.loader is not None
    spans = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(spans)
    for name, watched in spans.WATCHED.items():
        module = importlib.import_module(name)
        for place in watched:
            assert callable(reduce(getattr, place.split("."), module)), f"{name}: {place}"

"""Checkpoints: what is read is what was written, and a killed writer leaves a whole file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fedmed_common.errors import CheckpointError
from fedmed_server.state import CHECKPOINT, RunState, load_state, save_parameters, save_state
from fedmed_server.state import best_round as best_round_of

PARAMETERS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([0.1, -0.0], np.float32),
}


def test_a_model_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "none": np.zeros((0, 3), np.float32),
        "one": np.float32(2.5).reshape(()),
        **{
            f"of {kind}": rng.integers(0, 100, (3, 5)).astype(kind)
            for kind in ("i1", "f8", "u2", "f4", "u4", "u1", "i8", "f2")
        },
        "turned": rng.random((4, 6), np.float32).T,
    }
    about = {"run": "r-1", "said": 'with "marks" and ü'}
    save_parameters(tmp_path / "model.safetensors", arrays, about)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == about


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None


@pytest.mark.parametrize("best_round", [0, 2, 4])
def test_a_state_comes_back_as_it_was(tmp_path: Path, best_round: int) -> None:
    best = {name: array + 1 for name, array in PARAMETERS.items()} if best_round == 2 else PARAMETERS
    state = RunState(
        round=4,
        parameters=PARAMETERS,
        best_round=best_round,
        best_parameters=best if best_round else None,
        missed=("alpha missed the training of round 3 (late: deadline)",),
        record="{}",
        best_record="[]",
    )
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded is not None
    assert (loaded.round, loaded.best_round, loaded.missed) == (4, best_round, state.missed)
    assert (loaded.record, loaded.best_record) == ("{}", "[]")
    assert best_round_of(tmp_path) == best_round
    assert list(loaded.parameters) == list(PARAMETERS)
    for name, array in PARAMETERS.items():
        assert loaded.parameters[name].tobytes() == array.tobytes()
    if best_round:
        assert loaded.best_parameters is not None
        assert loaded.best_parameters["a.bias"].tobytes() == best["a.bias"].tobytes()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match=CHECKPOINT):
        load_state(tmp_path)
    assert best_round_of(tmp_path) == 0


WRITER = """
import sys, numpy as np
from pathlib import Path
from fedmed_server.state import RunState, save_state
parameters = {"w": np.zeros(500_000, np.float32)}
for number in range(1, 10_000):
    parameters["w"][:] = number
    save_state(Path(sys.argv[1]), RunState(round=number, parameters=parameters))
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            reported = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
        finally:
            process.kill()
            rest = process.communicate()[0].split()
        reported = int(rest[-1]) if rest else reported
        state = load_state(tmp_path)
        assert state is not None
        assert state.round >= reported
        assert np.all(state.parameters["w"] == state.round)
    save_state(tmp_path, RunState(round=1, parameters=PARAMETERS))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]

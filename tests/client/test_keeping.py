"""What a site keeps for its recipe: read as it was before a round, whenever the round is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmed_client.keeping import Keeping
from fedmed_common.errors import CheckpointError


def memory(value: float) -> dict[str, np.ndarray]:
    return {"scaffold/own/b": np.full(3, value, np.float32), "own/a": np.array(value)}


def test_a_round_that_is_done_again_finds_what_it_found_first(tmp_path: Path) -> None:
    kept = Keeping(tmp_path, "run")
    assert kept.before(1) == {}
    for number in (1, 2):
        kept.write(number, memory(number), best=0)
    kept.write(2, memory(7), best=0)
    assert kept.before(2)["own/a"] == 1
    assert kept.before(3)["own/a"] == 7
    assert list(kept.before(3)) == sorted(memory(0))
    assert Keeping(tmp_path, "another").before(3) == {}


def test_the_best_round_stays_and_what_nobody_needs_goes(tmp_path: Path) -> None:
    kept = Keeping(tmp_path, "run")
    for number in range(1, 10):
        kept.write(number, memory(number), best=4 if number > 4 else 0)
    assert kept.before(5)["own/a"] == 4
    assert [int(file.stem) for file in sorted(tmp_path.rglob("*.safetensors"))] == [4, 7, 8, 9]
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.rglob("*.safetensors"))


def test_a_server_that_went_back_too_far_is_told_so(tmp_path: Path) -> None:
    kept = Keeping(tmp_path, "run")
    for number in range(2, 8):
        kept.write(number, memory(number), best=0)
    with pytest.raises(CheckpointError, match=r"before round 4 is gone.*\n  fix: "):
        kept.before(4)


def test_the_first_round_of_a_site_can_be_done_again(tmp_path: Path) -> None:
    kept = Keeping(tmp_path, "run")
    for _ in range(2):
        assert kept.before(5) == {}
        kept.write(5, memory(5), best=0)
    assert kept.before(2) == {}
    assert kept.before(6)["own/a"] == 5


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    kept = Keeping(tmp_path, "run")
    kept.write(1, memory(1), best=0)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"000000001\.safetensors: cannot be read"):
        kept.before(2)

"""The report says what a run's weights started from, and names no file of the machine to others."""

from __future__ import annotations

import html
import json
from typing import Any

import pytest

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError
from fedmed_common.weights import Loaded
from fedmed_server.folders import WEIGHTS
from fedmed_server.report import artifacts, write_report
from fedmed_server.report.source import read_run, shareable_experiment
from fedmed_server.report.told import caveats

LOADED = Loaded(
    file="best.safetensors",
    loaded=("a.weight", "b.weight"),
    summed=("a.weight",),
    missing=("c.bias",),
    alone=(),
    of_other_classes=(),
    other_shape={"head.weight": ((3, 4), (5, 4))},
    left_over=("old.weight",),
    prefix=("", ""),
)


def test_what_was_loaded_what_not_and_why_is_on_the_page(make_run: Any) -> None:
    run = make_run(rounds=1).all()
    assert "best.safetensors" not in write_report(run).read_text(encoding="utf-8")
    (run / WEIGHTS).write_text(json.dumps({"sentences": LOADED.sentences()}))
    said = LOADED.sentences()
    assert read_run(run).started_from == tuple(said)
    assert len(said) == 5
    assert "head.weight (3x4, not 5x4)" in said[3]
    page = html.unescape(write_report(run).read_text(encoding="utf-8"))
    assert [sentence for sentence in said if sentence not in page] == []


def test_what_is_damaged_is_refused_by_name(make_run: Any) -> None:
    run = make_run(rounds=1).all()
    (run / WEIGHTS).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"weights\.json: damaged"):
        write_report(run)


@pytest.mark.parametrize(
    "transfer",
    [
        '[transfer]\nweights = "/secret/w.safetensors"\ntrain = "head"\n',
        'transfer = { weights = "/secret/w.safetensors", train = "head" }\n',
        'transfer.weights = "/secret/w.safetensors"\ntransfer.train = "head"\n',
    ],
)
def test_where_the_weights_lie_stays_here(make_run: Any, transfer: str) -> None:
    made = make_run(rounds=1)
    file = made.folder / "experiment.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + transfer if transfer[0] == "[" else transfer + text, encoding="utf-8")
    made.start()
    history = read_run(made.folder)
    shared = shareable_experiment(history)
    assert "secret" not in shared
    assert "head" in shared
    assert all(b"secret" not in content for content in artifacts(made.all(), shareable=True).values())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": {"name": "sam", "variant": "tiny"}}, ["was prompted from the reference label"]),
        ({"task": {"crf": {}}}, ["after the conditional random field"]),
        ({}, []),
    ],
)
def test_a_reader_is_told_what_does_not_compare(asked: dict[str, Any], said: list[str]) -> None:
    task = {"classes": ["a"], "dimensions": 2, **asked.pop("task", {})}
    data = {"patch": [32, 32], "channels": 3}
    found = caveats(
        Experiment.model_validate({"name": "x", "rounds": 1, "task": task, "data": data, **asked})
    )
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))

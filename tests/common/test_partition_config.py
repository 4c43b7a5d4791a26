"""What makes no sense in [simulation.partition] is one error that names the field and what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_experiment

EXPERIMENT = """
name = "e"
rounds = 1
[task]
classes = [{classes}]
dimensions = 2
{task}
[data]
patch = [32, 32]
[model]
name = "{model}"
[simulation.partition]
{partition}
[[simulation.sites]]
name = "all"
data = {{ format = "images", root = "data" }}
labels = {{ a = ["1"] }}
"""


def _write(
    folder: Path, partition: str, classes: str = '"a", "b"', task: str = "", model: str = "unet"
) -> Path:
    file = folder / "e.toml"
    file.write_text(EXPERIMENT.format(partition=partition, classes=classes, task=task, model=model))
    return file


@pytest.mark.parametrize(
    ("partition", "more", "said"),
    [
        ('kind = "even"', {}, "sites is missing: say how many"),
        ('kind = "even"\nsites = 2\nimbalance = 3', {}, "imbalance = 3 is of kind = 'presence'; kind is 'even'"),
        ('kind = "even"\nsites = 2\ncolumn = "v"', {}, "column is of kind = 'column'; kind is 'even'"),
        ('kind = "even"\nsites = 2\nindex = "i.csv"', {}, "index is of kind = 'column'; kind is 'even'"),
        ('kind = "column"\nindex = "i.csv"', {}, "column is missing: kind = 'column' needs one"),
        ('kind = "column"\ncolumn = "v"', {}, "index is missing: column = 'v' is looked up in a CSV file"),
        ('kind = "column"\ncolumn = "v"\nindex = "i.csv"\nvacant = 1', {}, "vacant = 1 would move patients away"),
        ("sites = 1\nvacant = 1", {}, "vacant = 1 with sites = 1"),
        ("sites = 1\nunannotated = 1", {}, "unannotated = 1 with sites = 1"),
        ("sites = 4\nvacant = 2", {}, r"partition.vacant \(2\) must be less than the number of task.classes, 2"),
        ("sites = 4\nunannotated = 3", {}, r"partition.unannotated \(3\) must be less"),
        ("sites = 4\nvacant = 1\nunannotated = 1", {}, r"vacant \+ unannotated \(1 \+ 1\) must be less"),
        ('sites = 4\nkind = "presence"\nimbalance = 5', {"classes": '"a"'}, "task.classes has one: leave it out"),
        (
            "sites = 4\nunannotated = 1",
            {"task": 'name = "classification"\nlabels = "single"', "model": "resnet"},
            "use task.labels = 'multi'",
        ),
        ("sites = 4\nimbalance = 0.5\nkind = 'presence'", {}, "greater than or equal to 1"),
        ("sites = 4\nkind = 'vendor'", {}, "simulation.partition.kind"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_clear_error(
    tmp_path: Path, partition: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load_experiment(_write(tmp_path, partition, **more))
    assert "\n  fix: " in str(error.value)
    assert "simulation.partition" in str(error.value)


def test_the_index_is_relative_to_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 'kind = "column"\ncolumn = "v"\nindex = "{}"'
    loaded = load_experiment(_write(tmp_path, columns.format("sub/i.csv")))
    assert loaded.simulation is not None
    assert loaded.simulation.partition is not None
    assert loaded.simulation.partition.index == tmp_path / "sub" / "i.csv"
    monkeypatch.setitem(os.environ, "SOMEWHERE", str(tmp_path / "far"))
    loaded = load_experiment(_write(tmp_path, columns.format("${SOMEWHERE}/i.csv")))
    assert loaded.simulation is not None
    assert loaded.simulation.partition is not None
    assert loaded.simulation.partition.index == tmp_path / "far" / "i.csv"

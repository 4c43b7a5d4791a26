"""The report and the baselines' comparison of a classification: its own metrics, and rare classes said to be rare."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedmed_common.config import Task
from fedmed_common.metrics import Metrics
from fedmed_common.tasks.classification import Classification, Prediction
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteFacts, SiteResult, append
from fedmed_server.points import of_test
from fedmed_server.report import COMPARISON, write_report

TIME = "2026-01-01T00:00:00+00:00"
EXPERIMENT = """
name = "findings"
rounds = 1
[task]
name = "classification"
classes = ["common", "rare", "nobody"]
labels = "{labels}"
[data]
patch = [64, 64, 64]
[model]
name = "resnet"
"""


def _measured(labels: str, seed: int) -> Metrics:
    """20 patients, of whom 2 show the rare class and 18, or with several labels 10, the common one."""
    task = Task.model_validate(
        {"name": "classification", "classes": ("common", "rare", "nobody"), "labels": labels}
    )
    rng = np.random.default_rng(seed)
    present = np.zeros((20, 3), bool)
    present[:2, 1] = True
    present[slice(2, 20) if labels == "single" else slice(0, 10), 0] = True
    score = rng.random((20, 3)) + present
    people = [
        [Prediction(score=one, present=shows, annotated=np.ones(3, bool))]
        for one, shows in zip(score / 2, present, strict=True)
    ]
    return Classification(SimpleNamespace(task=task)).summarise(people)  # type: ignore[arg-type]


def _run(folder: Path, labels: str) -> tuple[Path, RunEnded]:
    results = tuple(
        SiteResult(
            site=site,
            patients=20,
            metrics={name: (mean.total, mean.weight) for name, mean in _measured(labels, number).items()},
        )
        for number, site in enumerate(("a", "b"))
    )
    facts = tuple(
        SiteFacts(
            name=site,
            patients={"train": 40, "validation": 20, "test": 20},
            presence={"common": 20, "rare": -1, "nobody": 0},
            version="1",
        )
        for site in ("a", "b")
    )
    ended = RunEnded(time=TIME, status="completed", best_round=1, test={"best": results})
    folder.mkdir()
    (folder / "experiment.toml").write_text(EXPERIMENT.format(labels=labels))
    history = folder / "history.jsonl"
    append(history, RunStarted(time=TIME, run_id="r", sites=facts, command="x", environment={}, parameters=1))
    append(
        history,
        RoundDone(
            time=TIME, round=1, attempt=0, train=results[:0], evaluation=results, is_best=True,
            criterion=0.9, seconds={"total": 1.0},
        ),
    )  # fmt: skip
    append(history, ended)
    return folder, ended


def _text(run: Path) -> str:
    page = re.sub(r"<style.*?</style>", "", write_report(run).read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


@pytest.mark.parametrize("labels", ["multi", "single"])
def test_rare_classes_of_a_classification_are_told_with_both_groups(tmp_path: Path, labels: str) -> None:
    run, ended = _run(tmp_path / "run", labels)
    text = _text(run)
    assert "Mean AUROC" in text
    assert "rare : AUROC" in text
    assert "over 4 test patients with it and 36 without, too few" in text
    assert "nobody : no AUROC" in text
    assert re.search(r"Where it is absent, it was predicted in \d+ % of 40 patients", text)
    assert ("Accuracy over 40 patients" in text) == (labels == "single")
    assert ("Mean over 1 of 3 classes" in text) == (labels == "multi")
    (points,) = of_test(ended, last_round=1)
    merged = {name: value for name, value in points.federation.items() if "rare" in name}
    assert {f"test/best/{name}/rare" for name in ("auroc", "f1", "calibration_error")} <= set(merged)
    assert points.federation["test/best/mean_auroc"] == pytest.approx(
        np.mean([points.federation[f"test/best/auroc/{name}"] for name in ("common", "rare")])
    )
    assert "test/best/mean_dice" not in points.federation


def test_baselines_of_a_classification_are_compared_by_auroc(tmp_path: Path) -> None:
    run, ended = _run(tmp_path / "run", "multi")
    metrics = dict(ended.test["best"][0].metrics)
    worse = metrics | {"auroc/common": (0.5 * 20, 20.0)}
    (run / COMPARISON).write_text(json.dumps({"federated": metrics, "pooled": worse}))
    text = _text(run)
    assert "AUROC on the same held-out test patients" in text
    (row,) = re.findall(r"common +([\d.]+) +n = 10 +0\.500 +n = 10", text)
    assert float(row) == pytest.approx(metrics["auroc/common"][0] / 20, abs=5e-4)

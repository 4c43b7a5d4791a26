"""``fedmed audit`` on whole runs: with privacy nothing alarms, and the findings are in the report."""

from __future__ import annotations

import json
from pathlib import Path

from simulated import fedmed

from fedmed_server.report.audit import AUDIT

EXPERIMENT = """name = "tiny"
rounds = 2
[task]
classes = ["liver", "spleen"]
dimensions = 2
[data]
spacing_mm = [8.0, 8.0, 8.0]
patch = [16, 16]
[model]
channels = [4, 8]
residual_units = 0
[train]
steps = 2
batch_size = 2
threads = 1
{more}
[simulation]
federation = "federation"
"""


PRIVATE = "[privacy]\nepsilon = 3.0\nsampling_rate = 0.5\nnoise_multiplier = 3.0\n"


def test_a_run_is_attacked_by_its_own_settings(tmp_path: Path) -> None:
    fedmed(
        "phantom", tmp_path / "federation", "--sites", 2, "--patients", 8, "--shape", "32,32,16", "--seed", 1
    )
    file = tmp_path / "tiny.toml"
    file.write_text(EXPERIMENT.format(more=PRIVATE))
    fedmed("simulate", file, "--runs", tmp_path / "runs")
    (run,) = [folder for folder in (tmp_path / "runs").iterdir() if (folder / "experiment.toml").exists()]
    done = fedmed("audit", run, "--json")
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    names = [
        "canary",
        "one run",
        "inversion of what a private step sends",
        "inversion of a step in the clear",
        "membership",
    ]
    assert list(findings) == names
    assert not any(one["alarm"] for one in findings.values())
    assert 0 <= findings["membership"]["measured"] <= 1
    page = (run / "report.html").read_text()
    assert all(one["question"] in page for one in findings.values())
    assert json.loads((run / AUDIT).read_text()) == list(findings.values())
    assert findings["canary"]["details"]["moved_of_C"] <= 1.0001
    assert findings["one run"]["measured"] <= findings["one run"]["bound"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = fedmed("audit", tmp_path, check=False)
    assert done.returncode == 2
    assert "not a run's folder" in done.stderr

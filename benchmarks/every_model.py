"""Every architecture, in each of its dimensions, through the tests that take too long for every day.

ONNX gives the same output as the network, a federated round lowers the loss, and private training holds what it promises. The
tests are those of ``tests/`` that are marked slow; one that fails is named.

    python benchmarks/every_model.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedmed_common.files import write_atomically

REPOSITORY = Path(__file__).parents[1]
PLUGIN = """
import json, os
def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, report.duration]) + "\\n")
"""
Told = tuple[str, str, float]


def run(folder: Path, at_once: int) -> tuple[int, list[Told]]:
    """pytest's exit code, and of each test its name, outcome and seconds."""
    told = folder / "told.jsonl"
    (folder / "tell.py").write_text(PLUGIN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tell", "-n", str(at_once), "-m", "slow"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(folder), "TOLD": str(told), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = told.read_text().splitlines() if told.exists() else []
    return done.returncode, sorted({tuple(json.loads(line)) for line in lines})


def page(told: Sequence[Told], minutes: float, at_once: int, today: str) -> str:
    """The day's page."""
    tests: Mapping[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    for name, outcome, took in told:
        test = name.partition("[")[0]
        tests[test][outcome] += 1
        seconds[test] += took
    rows = [
        f"| `{test}` | {counts['passed']} | {counts['failed']} | {counts['skipped']} | {seconds[test] / 60:.1f} |"
        for test, counts in tests.items()
    ]
    failed = [f"- `{name}`" for name, outcome, _ in told if outcome == "failed"]
    return "\n".join(
        [
            f"# Every architecture, {today}",
            "",
            f"`python benchmarks/every_model.py --at-once {at_once}`; {platform.machine()}, {os.cpu_count()} cores, "
            f"torch {version('torch')}. {minutes:.0f} minutes.",
            "",
            "| test | passed | failed | skipped | minutes, all together |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *(["Failed:", "", *failed, ""] if failed else []),
        ]
    )


def main() -> None:
    """Run them, and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--at-once", type=int, default=3)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedmed-tests-") as folder:
        code, told = run(Path(folder), options.at_once)
    today = datetime.now(UTC).date().isoformat()
    text = page(told, (time.monotonic() - began) / 60, options.at_once, today)
    write_atomically(Path(__file__).parent / f"every_model-{today}.md", text.encode())
    sys.stdout.write(text)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Orders of two processes that share a site's batches: the first, which starts them, and later ones, beside one process alone.

    python benchmarks/warm_processes.py

A small U-Net on 40 pictures, on the CPU, a core for each process: what is measured is what stands around training. The weights of
all ways are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
from simulation_overhead import write_pictures

from fedmed_client.engine.crew import CREWS
from fedmed_client.engine.parallel import train_together
from fedmed_client.method import Method, Result, in_full
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics
from fedmed_common import params, wire
from fedmed_common.config import Experiment, Site
from fedmed_common.models import build_model

STEPS = 10


def main() -> None:
    """Measure in turns, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-page", action="store_true")
    options = parser.parse_args()
    taken: dict[str, list[float]] = {"started": [], "waiting": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        home = _home(Path(folder))
        _alone(home)
        for _ in range(options.repeats):
            CREWS.end()
            results = []
            for way, work in (("started", _together), ("waiting", _together), ("alone", _alone)):
                before = time.perf_counter()
                results.append(work(home).update.delta)
                taken[way].append(time.perf_counter() - before)
            for name, array in results[2].items():
                np.testing.assert_array_equal(results[0][name], array)
                np.testing.assert_array_equal(results[1][name], array)
            print({way: round(times[-1], 2) for way, times in taken.items()}, flush=True)
    if not options.no_page:
        pages.write(pages.dated("warm_processes"), _page(taken))


def _home(folder: Path) -> SiteHome:
    write_pictures(folder / "data", 40)
    site = Site.model_validate(
        {
            "name": "site",
            "data": {"format": "images", "root": folder / "data"},
            "labels": {"disc": ["1"]},
            "device": {"gpu": "none", "processes": 2},
        }
    )
    return SiteHome(site=site, folder=folder / "home")


def _order(**train: Any) -> wire.Order:
    experiment = Experiment.model_validate(
        {
            "name": "warm-processes",
            "rounds": 1,
            "task": {"classes": ["disc"], "dimensions": 2},
            "data": {"patch": [96, 96]},
            "model": {"channels": [16, 32, 64, 128]},
            "train": {"steps": STEPS, "batch_size": 4, "threads": 2, "device": "cpu", **train},
        }
    )
    return wire.Order(
        kind=wire.Kind.TRAIN,
        run="run",
        round=1,
        attempt=0,
        experiment=experiment.order_text(),
        parameters=params.from_model(build_model(experiment)),
    )


def _together(home: SiteHome) -> Result:
    return train_together(home, _order(processes=2), lambda _step: None)


def _alone(home: SiteHome) -> Result:
    """One process, which cuts its batches in two: the very same steps."""
    order = _order(accumulate=2, threads=1)
    bench = bench_for(order.experiment, gpu=False)
    cohort, sampler = COHORTS.get(home, order.experiment)
    assert sampler is not None
    method = Method.of(home, bench, order, cohort, sampler)
    with numerics(bench.experiment, bench.device):
        return method.train(home.site.name, in_full(method, lambda _step: None))


def _page(taken: dict[str, list[float]]) -> list[str]:
    def cell(way: str) -> str:
        ratios = [one / alone for one, alone in zip(taken[way], taken["alone"], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    return [
        "# Orders of two processes",
        "",
        pages.made_by(),
        "",
        f"An order of {STEPS} steps, the medians of {len(taken['alone'])} repeats, the least and the most in brackets. The "
        "weights of all ways are equal to the last bit.",
        "",
        "| order | seconds | times one process, one thread |",
        "|---|---|---|",
        f"| the first, which starts the processes | {statistics.median(taken['started']):.2f} | {cell('started')} |",
        f"| a later one, for which they waited | {statistics.median(taken['waiting']):.2f} | {cell('waiting')} |",
        f"| of one process alone | {statistics.median(taken['alone']):.2f} | {cell('alone')} |",
    ]


if __name__ == "__main__":
    main()

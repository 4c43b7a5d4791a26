"""What a round costs at the coordinator, over sites and parameters, with and without regions, and a model of that cost.

    python benchmarks/scale.py --sites 8 32 128 512 --models 0.1 1 10 30 --repeats 5

A real round (`rounds.run_round`) with sites that answer at once with an update whose numbers lie in a file, as those that come to
a deployed server do; what the sites take is taken off. With regions, what they take is taken off too, and told by itself. The
model `a S + b S P + c P` (S sites, P parameters) is fitted to the medians by least squares of relative errors. Bytes are counted
by the run. The result is a page beside this file with two plots, and a JSON file with all figures.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pages
from aggregation import EXPERIMENT, Site
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.models import build_model
from fedmed_common.wire_arrays import shelved
from fedmed_server.channel import Channel
from fedmed_server.cohort import call_roll
from fedmed_server.region import Region, app_of_regions
from fedmed_server.rounds import run_round
from fedmed_server.state import RunState
from fedmed_simulations.grid import LocalGrid
from fedmed_strategies.layers import layers_of
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.server_half import shared

MODELS = {"0.1": [24, 48, 96], "1": [72, 144, 288], "10": [224, 448, 896], "30": [392, 784, 1568]}
"""Channels of U-Nets, by about how many millions of parameters they have."""
MOST_BYTES = 40e9
"""Of replies in a round that is measured."""
LINKS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9}
CODECS = {"float32": 1.0, "int8": 0.251, "top 1 %": 0.02}
"""Bytes of an update by codec, beside float32's: as `codecs.py` measured them."""


def main() -> None:
    """Measure, fit, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        for sites in arguments.sites:
            for regions in (0, round(math.sqrt(sites))):
                row = measured(name, sites, regions, arguments.repeats)
                if row is not None:
                    rows.append(row)
                    print(row, flush=True)
    flat = [row for row in rows if not row["regions"]]
    fitted = fit(flat)
    page = pages.dated("scale")
    figures = {"made_by": pages.made_by(), "rows": rows, "fitted": fitted}
    (pages.HERE / f"{page}.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(flat, fitted, pages.HERE / f"{page}.png")
    pages.write(page, lines(rows, fitted, arguments.repeats, page))


def measured(model: str, sites: int, regions: int, repeats: int) -> dict[str, Any] | None:
    """Medians of rounds; None where the replies of one would be too many bytes."""
    experiment = Experiment.model_validate(
        EXPERIMENT.model_dump(mode="json") | {"model": {"channels": MODELS[model]}}
    )
    network = build_model(experiment)
    parameters = shelved(params.from_model(network))
    count = params.count(parameters)
    if 4.0 * count * sites > MOST_BYTES:
        return None
    recipe = RECIPES["fedavg"]
    layers = layers_of(network, experiment.model.head, experiment.plan.outputs)
    with tempfile.TemporaryDirectory() as folder:
        site = Site({name: parameters[name] for name in shared(recipe, layers)}, Path(folder))
        own = Timed(site.app())
        asked, nodes = own, sites
        if regions:
            asked, nodes = Timed(app_of_regions(_regions(own, sites, regions))), regions
        channel = Channel(
            grid=LocalGrid(asked, nodes),  # type: ignore[arg-type]
            experiment=experiment,
            run="run",
            watch=lambda _site, _phase: None,
            stop=threading.Event(),
            poll_seconds=0.0,
            trained=shared(recipe, layers),
            layers=layers,
            model=network,
            regional=regions > 0,
        )
        members = call_roll(channel, nodes).members
        state = RunState(round=0, parameters=parameters)
        centre, region = [], []
        for _ in range(repeats + 1):
            own.seconds = asked.seconds = 0.0
            began = time.perf_counter()
            result = run_round(channel, recipe, members, state)
            centre.append(time.perf_counter() - began - asked.seconds)
            region.append((asked.seconds - own.seconds) / nodes)
    train = result.record.train
    return {
        "model": model,
        "parameters": count,
        "sites": sites,
        "regions": regions,
        "centre_seconds": statistics.median(centre[1:]),
        "all_centre_seconds": centre[1:],
        "region_seconds": statistics.median(region[1:]) if regions else None,
        "megabytes_up": sum(one.bytes_up for one in train) / 1e6,
        "megabytes_down": sum(one.bytes_down for one in train) / 1e6,
    }


class Timed:
    """A ClientApp, and the seconds that it takes."""

    def __init__(self, app: ClientApp) -> None:
        self.seconds, self._app = 0.0, app

    def __call__(self, message: Message, context: Context) -> Message:
        began = time.perf_counter()
        reply = self._app(message, context)
        self.seconds += time.perf_counter() - began
        return reply


def _regions(app: Timed, sites: int, regions: int) -> list[Region]:
    ends = [sites * number // regions for number in range(regions + 1)]
    return [
        Region(name=f"region-{number}", grid=LocalGrid(app, size), sites=size)  # type: ignore[arg-type]
        for number, size in enumerate(end - begin for begin, end in pairwise(ends))
    ]


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """a, b and c of the model, and its largest relative error."""
    seconds = np.array([row["centre_seconds"] for row in rows])
    terms = np.array([_terms(row) for row in rows]) / seconds[:, None]
    found, _, _, _ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    worst = float(np.abs(terms @ found - 1).max())
    return {"a": float(found[0]), "b": float(found[1]), "c": float(found[2]), "largest_error": worst}


def _terms(row: dict[str, Any]) -> tuple[float, float, float]:
    sites, parameters = float(row["sites"]), float(row["parameters"])
    return sites, sites * parameters, parameters


def predicted(fitted: dict[str, float], sites: float, parameters: float) -> float:
    """Seconds of the coordinator in a round."""
    return fitted["a"] * sites + fitted["b"] * sites * parameters + fitted["c"] * parameters


def plot(rows: list[dict[str, Any]], fitted: dict[str, float], file: Path) -> None:
    """Left: measured points and the model's lines. Right: what a site's link makes of a round."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, name in zip(("C0", "C1", "C2", "C3"), MODELS, strict=True):
        own = [row for row in rows if row["model"] == name]
        if not own:
            continue
        sites = np.geomspace(min(row["sites"] for row in own), max(row["sites"] for row in own), 50)
        size = own[0]["parameters"]
        left.plot([row["sites"] for row in own], [row["centre_seconds"] for row in own], "o", color=colour)
        left.plot(
            sites,
            [predicted(fitted, one, size) for one in sites],
            color=colour,
            label=f"{size / 1e6:.1f} million",
        )
    left.set(xscale="log", yscale="log", xlabel="sites", ylabel="seconds at the coordinator")
    left.legend(title="parameters", frameon=False)
    size = 30e6
    speeds = np.geomspace(1e6, 1.25e9, 100)
    for name, share in CODECS.items():
        right.plot(speeds * 8 / 1e6, 2 * 4 * size * share / speeds, label=f"{name}, both ways")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="a site's link, Mbit/s",
        ylabel="seconds on the wire, 30 million parameters",
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def lines(rows: list[dict[str, Any]], fitted: dict[str, float], repeats: int, page: str) -> list[str]:
    """The page."""
    a, b, c = 1e3 * fitted["a"], 1e9 * fitted["b"], 1e9 * fitted["c"]
    heads = (
        "parameters",
        "sites",
        "measured, s",
        "model, s",
        "MB in",
        "regions",
        "at the centre, s",
        "MB in",
    )
    text = [
        "# What a round costs at the coordinator",
        "",
        pages.made_by(),
        "",
        f"Medians of {repeats} rounds after one that warms up. Sites answer at once; what is left is the coordinator's own: "
        "orders, gate, sum, step. No network is in it.",
        "",
        f"![measured and model]({page}.png)",
        "",
        "Points are measured, lines are the model:",
        "",
        f"    seconds = {a:.2f} ms x sites + {b:.2f} s x sites x parameters / 10^9 + {c:.1f} s x parameters / 10^9",
        "",
        f"It is off by {100 * fitted['largest_error']:.0f} % at most, over what was measured.",
        "",
        f"| {' | '.join((*heads, 'in a region, s'))} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    dealt = {(row["model"], row["sites"]): row for row in rows if row["regions"]}
    for row in (one for one in rows if not one["regions"]):
        other = dealt[row["model"], row["sites"]]
        model = predicted(fitted, row["sites"], row["parameters"])
        cells = (
            f"{row['parameters']:,}",
            *(row["sites"], f"{row['centre_seconds']:.3f}", f"{model:.3f}", f"{row['megabytes_up']:,.0f}"),
            *(other["regions"], f"{other['centre_seconds']:.3f}", f"{other['megabytes_up']:,.0f}"),
            f"{other['region_seconds']:.3f}",
        )
        text.append(f"| {' | '.join(map(str, cells))} |")
    return [*text, ""]


if __name__ == "__main__":
    main()

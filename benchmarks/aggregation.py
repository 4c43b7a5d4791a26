"""A round's replies at the server: how fast they become a sum, beside copying as many bytes, and the memory it takes.

    python benchmarks/aggregation.py --sites 64 --parameters 120000000 --repeats 5

A real round (`rounds.run_round`) with scripted sites, whose own seconds are taken off: what is left is the server's, from the
reply, whose numbers lie in a file as those that come to a deployed server do, to the new parameters, through the gate. Memory is
the process's peak above what it had before there was a model, in models of float32; the reply that is looked at is one of them.
`--sites 8 64` shows that the number of sites does not matter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pages
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters, count
from fedmed_common.wire_arrays import layout, matched, shelved
from fedmed_common.wire_files import FILED, Filed
from fedmed_server.channel import Channel, Member
from fedmed_server.history import SiteFacts
from fedmed_server.rounds import run_round
from fedmed_server.state import RunState
from fedmed_simulations.grid import LocalGrid
from fedmed_strategies.presets import RECIPES

LAYERS, PATTERN = 60, 1 << 16
EXPERIMENT = Experiment.model_validate(
    {
        "name": "aggregation",
        "rounds": 2,
        "task": {"classes": ["any"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "federation": {"evaluate_every": 2, "update_norm_limit": 1e9},
    }
)


def main() -> None:
    """Measure each case in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000, 30_000_000, 120_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="measure in this process, and print the line")
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(measured(arguments.sites[0], arguments.parameters[0], arguments.repeats, Path(folder)))
        return
    lines = [
        "# Replies at the server",
        "",
        pages.made_by(),
        "",
        f"Medians of {arguments.repeats} rounds. GB/s of replies, and of copying an array as large as the model in one thread.",
        "",
        "| sites | parameters | aggregated, GB/s | copied, GB/s | share | peak memory, models | peak without the reply |",
        "|---|---|---|---|---|---|---|",
    ]
    for parameters in arguments.parameters:
        for sites in arguments.sites:
            words = [sys.executable, __file__, "--one", "--repeats", str(arguments.repeats)]
            words += ["--sites", str(sites), "--parameters", str(parameters)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            lines.append(done.stdout.strip().splitlines()[-1])
            print(lines[-1], flush=True)
    pages.write(pages.dated("aggregation"), [*lines, ""])


def measured(sites: int, parameters: int, repeats: int, folder: Path) -> str:
    """A line of the table."""
    before = _memory("VmRSS")
    state = RunState(round=0, parameters=shelved(_arrays(parameters, 0)))
    site = Site(state.parameters, folder)
    members, grid = _roster(sites), LocalGrid(site.app(), sites)
    channel = Channel(
        grid=grid,
        experiment=EXPERIMENT,
        run="run",
        watch=lambda _site, _phase: None,
        stop=threading.Event(),
        poll_seconds=0.0,
    )
    size, seconds, result = 4 * parameters, list[float](), None
    for _ in range(repeats):
        result = None
        site.seconds, began = 0.0, time.perf_counter()
        result = run_round(channel, RECIPES["fedavg"], members, state)
        seconds.append(time.perf_counter() - began - site.seconds)
    assert result is not None
    peak = (_memory("VmHWM") - before) / size
    for name, sent in matched(site.update(), state.parameters).items():
        change = result.state.parameters[name] - state.parameters[name]
        np.testing.assert_allclose(change, sent, rtol=1e-3, atol=1e-5)
    del result, state
    aggregated, copied = sites * size / statistics.median(seconds), size / _copy_seconds(parameters, repeats)
    return (
        f"| {sites} | {parameters:,} | {aggregated / 1e9:.2f} | {copied / 1e9:.2f} | {aggregated / copied:.2f} "
        f"| {peak:.2f} | {peak - 1:.2f} |"
    )


def _arrays(parameters: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(size, np.float32) for name, size in _layers(parameters).items()}


def _layers(parameters: int) -> dict[str, int]:
    layer = parameters // LAYERS
    rows = [layer] * (LAYERS - 1) + [parameters - layer * (LAYERS - 1)]
    return {f"layer-{number:02}.weight": size for number, size in enumerate(rows)}


def _roster(sites: int) -> tuple[Member, ...]:
    patients = dict.fromkeys(("train", "validation", "test"), 10)
    facts = [
        SiteFacts(name=_name(number), patients=patients, presence={}, version="0") for number in range(sites)
    ]
    return tuple(Member(node=100 + number, facts=one) for number, one in enumerate(facts))


def _name(number: int) -> str:
    return f"site-{number:04}"


class Site:
    """Answers each training order with the same update, whose numbers lie in a file. ``seconds``: what its answers took."""

    def __init__(self, template: Parameters, folder: Path) -> None:
        some = np.random.default_rng(1).normal(0, 1e-3, PATTERN).astype(np.float32)
        self.parameters, self.seconds, self.file = count(template), 0.0, folder / "update"
        self.layout, pattern = layout(template), some.tobytes()
        with self.file.open("wb") as file:
            file.writelines([pattern] * (self.parameters // PATTERN))
            file.write(pattern[: 4 * (self.parameters % PATTERN)])

    def app(self) -> ClientApp:
        """All sites' side of Flower."""
        app = ClientApp()
        app.query("facts")(self._tell)
        app.train()(self._answer)
        return app

    def update(self) -> ArrayRecord:
        """As the server has it, once it has come: with a mapping of its own."""
        filed = Filed.open(self.file, "0" * 64, 4 * self.parameters)
        return ArrayRecord(
            {self.layout: Array(dtype="float32", shape=(self.parameters,), stype=FILED, data=filed)}
        )

    def _tell(self, message: Message, context: Context) -> Message:
        patients = dict.fromkeys(("train", "validation", "test"), 10)
        facts = wire.Facts(patients=patients, presence={}, version=version("fedmed"))
        return Message(wire.pack_reply(replace(_reply(message, context), facts=facts)), reply_to=message)

    def _answer(self, message: Message, context: Context) -> Message:
        began = time.perf_counter()
        record = wire.pack_reply(replace(_reply(message, context), metrics={"loss": Mean(1.0, 1.0)}))
        record["parameters"] = self.update()
        self.seconds += time.perf_counter() - began
        return Message(record, reply_to=message)


def _reply(message: Message, context: Context) -> wire.Reply:
    fields = message.content["order"]
    return wire.Reply(
        site=_name(context.node_id - 100),
        run=str(fields["run"]),
        round=int(fields["round"]),  # type: ignore[arg-type]
        attempt=int(fields["attempt"]),  # type: ignore[arg-type]
    )


def _copy_seconds(parameters: int, repeats: int) -> float:
    source, target = np.ones(parameters, np.float32), np.ones(parameters, np.float32)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _memory(field: str) -> int:
    """Bytes of this process, by a line of its status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()

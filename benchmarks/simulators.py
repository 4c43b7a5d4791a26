"""The same federated averaging by fedmed, pfl, Flower's Ray engine, NVFlare's simulator and a plain loop, side by side.

Each is a process of its own in an environment of its own, made from the registry below ``.bench``. All have the same patients,
batches, start weights and steps, and one thread a site; their last weights are compared. Writes a page, its figures as JSON
and a plot.

    python benchmarks/simulators.py --sites 8 100 --rounds 3 1 --steps 10 5 --repeats 5
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers.environments import NotInstalled, environment, here
from peers.measure import Measured, adopt, measured
from peers.page import BARE, OURS, Found, write_page
from peers.prepare import Prepared, Size, prepare
from peers.work import START, WEIGHTS, read_seconds
from safetensors.numpy import load_file

from fedmed_common.processes import cores
from fedmed_server import history
from fedmed_server.history import RunStarted
from fedmed_server.state import CHECKPOINT, model_file
from fedmed_simulations.engines import ENGINES
from fedmed_simulations.rehearsal.machines import FEDMED

Weights = Mapping[str, NDArray[np.float32]]
PEERS = Path(__file__).parent / "peers"
FEW_SITES = 16
"""Up to so many sites NVFlare's simulator runs all of them at once, which is its default; each is a process with torch."""
_TOLD_LINES = 15
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Failed(Exception):
    """A command did not end well; the text is its own last words."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to do the work. ``environment``: whose; '' for fedmed's own. ``at_once``: sites that train at the same time, each
    with one thread. ``command(python, out)``: what to run; a peer's leaves weights and seconds in ``out``."""

    name: str
    environment: str
    at_once: int
    command: Callable[[str, Path], list[str]]

    @property
    def label(self) -> str:
        """Name, and how many sites at once where it is more than one."""
        return f"{self.name}, {self.at_once} at once" if self.at_once > 1 else self.name


def rows(prepared: Prepared, sites: int, several: int) -> list[Row]:
    """All ways, those with one site at a time first."""

    def script(name: str, *options: str, launcher: tuple[str, ...] = ()) -> Callable[[str, Path], list[str]]:
        file, work = str(PEERS / name), str(prepared.work)
        return lambda python, out: [python, *launcher, file, work, str(out), *options]

    def ours(engine: str, workers: int) -> Callable[[str, Path], list[str]]:
        place = ["--runs", str(prepared.runs), "--engine", engine]
        several = [] if engine == "inline" else ["--workers", str(workers)]
        return lambda _python, _out: [*FEDMED, "simulate", str(prepared.experiment), *place, *several]

    def with_workers(name: str, number: int) -> Callable[[str, Path], list[str]]:
        return script(name, "--workers", str(number))

    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(several))
    ray, nvflare = "flower_ray.py", "nvflare_simulator.py"
    found = [
        Row(name=BARE, environment="plain", at_once=1, command=script("plain_loop.py")),
        Row(name=OURS, environment="", at_once=1, command=ours("inline", 1)),
        Row(name="pfl", environment="pfl", at_once=1, command=script("pfl_simulated.py")),
        Row(name="Flower on Ray", environment="flower", at_once=1, command=with_workers(ray, 1)),
    ]
    found += [
        Row(name=f"fedmed, {engine}", environment="", at_once=several, command=ours(engine, several))
        for engine in ENGINES
        if engine != "inline"
    ]
    shared = script("pfl_simulated.py", launcher=torchrun)
    found += [
        Row(name="pfl", environment="pfl", at_once=several, command=shared),
        Row(name="Flower on Ray", environment="flower", at_once=several, command=with_workers(ray, several)),
    ]
    for number in dict.fromkeys([several, sites if sites <= FEW_SITES else several]):
        command = with_workers(nvflare, number)
        found.append(Row(name="NVFlare's simulator", environment="nvflare", at_once=number, command=command))
    return found


def measure(size: Size, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All ways in turn, again and again; one that takes long is not repeated."""
    prepared = prepare(size, folder)
    start = load_file(prepared.work / START)
    bare, rounding = _bare_weights(prepared, folder)
    print(f"{size.sites} sites: the plain loop with its sites backwards is {rounding:.1e} apart", flush=True)
    every = [
        (row, Found(label=row.label, name=row.name, at_once=row.at_once))
        for row in rows(prepared, size.sites, options.at_once)
    ]
    for repeat in range(options.repeats):
        for row, found in every:
            if found.problem or (repeat and found.seconds[0] > options.long):
                continue
            try:
                weights = _once(row, prepared, folder, found, options.limit)
            except (NotInstalled, Failed) as error:
                found.problem = str(error)
                print(f"{size.sites} sites, {row.label}: {found.problem}", flush=True)
                continue
            found.apart = max(found.apart, apart(weights, bare, start))
            told = f"{found.seconds[-1]:.1f} s, {found.seconds_in_rounds[-1]:.1f} s in rounds, {found.apart:.1e} apart"
            print(f"{size.sites} sites, {row.label}: {told}", flush=True)
    return {
        **asdict(size),
        "parameters": prepared.parameters,
        "rounding": rounding,
        "rows": [asdict(found) for _, found in every],
    }


def apart(some: Weights, others: Weights, start: Weights) -> float:
    """The distance between two networks over how far training moved the second from its start; infinite where they are not of
    one kind, or one has no numbers in it."""
    if {name: array.shape for name, array in some.items()} != {
        name: array.shape for name, array in others.items()
    }:
        return float("inf")
    distance = np.sqrt(
        sum(float(np.square(some[name] - others[name], dtype=np.float64).sum()) for name in others)
    )
    moved = np.sqrt(
        sum(float(np.square(others[name] - start[name], dtype=np.float64).sum()) for name in others)
    )
    return float(distance / moved) if np.isfinite(distance) else float("inf")


def _bare_weights(prepared: Prepared, folder: Path) -> tuple[Weights, float]:
    """What the plain loop comes to, and how far from it the one is that adds the sites backwards."""
    python = str(environment("plain").python)
    found = []
    for options in ([], ["--backwards"]):
        out = folder / "control"
        _run([python, str(PEERS / "plain_loop.py"), str(prepared.work), str(out), *options], folder, 3600.0)
        found.append(load_file(out / WEIGHTS))
    return found[0], apart(found[1], found[0], load_file(prepared.work / START))


def _once(row: Row, prepared: Prepared, folder: Path, found: Found, limit_seconds: float) -> Weights:
    """Do the work in one way: note what it took, give its weights."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if row.environment:
        made = environment(row.environment)
        found.versions = made.versions
        took = _run(row.command(str(made.python), out), folder, limit_seconds)
        weights, (began, ended) = load_file(out / WEIGHTS), read_seconds(out)
    else:
        before = set(prepared.runs.iterdir())
        found.versions = here().versions
        took = _run(row.command(sys.executable, out), folder, limit_seconds)
        (run,) = (new for new in set(prepared.runs.iterdir()) - before if (new / CHECKPOINT).exists())
        weights, (began, ended) = load_file(model_file(run, "last")), _our_rounds(run)
    found.seconds.append(took.seconds)
    found.cpu_seconds.append(took.cpu_seconds)
    found.peak_mb.append(took.peak_mb)
    found.others.append(took.others)
    found.seconds_in_rounds.append(ended - began)
    return weights


def _our_rounds(run: Path) -> tuple[float, float]:
    """When a run of fedmed's began, its sites known, and when its last checkpoint was written."""
    started = next(record for record in history.read(run / history.FILE) if isinstance(record, RunStarted))
    return datetime.fromisoformat(started.time).timestamp(), (run / CHECKPOINT).stat().st_mtime


def _run(command: list[str], folder: Path, limit_seconds: float) -> Measured:
    """Run a command to its good end.

    Raises:
        Failed: with its last words.
    """
    ours = command[0] == sys.executable
    path = os.environ.get("PYTHONPATH", "") if ours else str(PEERS)
    found = measured(command, {**_QUIET, "PYTHONPATH": path}, folder / "log.txt", limit_seconds)
    if found.code:
        raise Failed("\n".join(found.log.splitlines()[-_TOLD_LINES:]))
    if found.code is None:
        raise Failed(f"it took longer than {limit_seconds:.0f} s")
    return found


def main() -> None:
    """Measure all sizes, and write page, figures and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 1], help="for each number of sites")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[10, 5], help="of a site in a round, likewise"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=cores(), help="sites at once, of those that can")
    parser.add_argument(
        "--long", type=float, default=120.0, help="seconds; what takes longer is not repeated"
    )
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that one run may take")
    parser.add_argument("--no-page", action="store_true", help="only measure and compare")
    options = parser.parse_args()
    adopt()
    results = []
    for sites, rounds, steps in zip(options.sites, options.rounds, options.steps, strict=True):
        with tempfile.TemporaryDirectory(prefix="fedmed-peers-") as temporary:
            results.append(measure(Size(sites=sites, rounds=rounds, steps=steps), options, Path(temporary)))
    sys.exit(not write_page(results, kept=not options.no_page))


if __name__ == "__main__":
    main()

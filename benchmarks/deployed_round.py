"""A deployed round with a large model: what it takes beyond training, beside the plain transfer of the same bytes and beside
NVFlare's proof-of-concept mode with the same model.

Everything is on loopback: fedmed's consortium with its certificates and processes, each site with a link and a worker; NVFlare's
server and clients, which train nothing. fedmed's processes write down what they do when (``spans/sitecustomize.py``): the
page says where a round's time goes.

    python benchmarks/deployed_round.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pages
from load import Crowd, write_pictures
from peers.environments import NotInstalled, environment
from peers.measure import adopt, measured
from peers.transfer import WAYS
from spans.page import NAME, Beside, Deployed, page, plot
from spans.reading import HERE as SPANS
from spans.reading import Meter, read

from fedmed_common import params
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model
from fedmed_simulations.rehearsal.consortium import Consortium

EXPERIMENT = """
name = "deployed-round"
seed = 1
rounds = {rounds}
[task]
classes = ["disc"]
dimensions = 2
[data]
patch = [32, 32]
augmentation = "none"
splits = {{ validation = 0.0, test = 0.0 }}
[model]
name = "unet_2015"
channels = {channels}
[train]
steps = 1
batch_size = 1
optimizer = "sgd"
device = "cpu"
threads = 1
[federation]
evaluate_every = {rounds}
deadline_seconds = 3000
roll_call_seconds = 900
"""
_AT_ONCE = 4
_TOLD_LINES = 15


def deployed(folder: Path, experiment: Path, options: argparse.Namespace) -> Deployed:
    """Found a consortium, run the experiment through it, and read what its processes wrote down."""
    names = [f"site-{number}" for number in range(1, options.sites + 1)]
    spans = folder / "spans"
    spans.mkdir()
    for number, name in enumerate(names):
        write_pictures(folder / "federation" / name, number)
    paths = os.pathsep.join([str(SPANS), *filter(None, [os.environ.get("PYTHONPATH")])])
    watched = {"PYTHONPATH": paths, "FEDMED_SPANS": str(spans), "OMP_NUM_THREADS": "1"}
    with Crowd(folder / "consortium", names, watched) as consortium, Meter(lambda: pids(consortium)) as meter:
        consortium.found(folder / "federation")
        consortium.start_server()
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            for name in some:
                consortium.start_site(name)
            consortium.wait_connected(some, seconds=600.0)
        run = consortium.launch(experiment)
        ended = consortium.wait_ended(run, seconds=3000.0)
    if ended.status != "completed":
        raise SystemExit(f"the run ended '{ended.status}'")
    return Deployed(rounds=tuple(read(spans, meter)), peak_mb=meter.peak_mb)


def pids(consortium: Consortium) -> dict[str, list[int]]:
    """The consortium's processes by role."""
    found = {role: [consortium.pid(consortium.server, role)] for role in ("superlink", "serverapp")}
    found |= {
        role: [consortium.pid(consortium.site(name), role) for name in consortium.names]
        for role in ("link", "worker")
    }
    return {role: [pid for pid in some if pid] for role, some in found.items()}


def written(folder: Path, sites: int, size: int) -> float:
    """The seconds of writing as much as all sites seal in a round, one file after the other: here they share a disk."""
    content = os.urandom(size)
    before = time.perf_counter()
    for number in range(sites):
        file = folder / f"model-{number}"
        with file.open("wb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
        file.unlink()
    return time.perf_counter() - before


def transfer(folder: Path, way: str, sites: int, size: int) -> float:
    """The seconds of a plain transfer."""
    script = [sys.executable, str(Path(__file__).parent / "peers" / "transfer.py"), way]
    found = measured(
        [*script, "--clients", str(sites), "--bytes", str(size)], {}, folder / "transfer.log", 1200.0
    )
    if found.code != 0:
        raise SystemExit(found.log)
    return float(found.log)


def nvflare(folder: Path, options: argparse.Namespace) -> list[float]:
    """The seconds of the rounds in NVFlare's proof-of-concept mode.

    Raises:
        NotInstalled: or it did not run, in its own words.
    """
    script, out = Path(__file__).parent / "peers" / "nvflare_poc.py", folder / "nvflare"
    sizes = ["--clients", str(options.sites), "--rounds", str(options.rounds)]
    command = [str(environment("nvflare").python), str(script), str(out), *sizes]
    command += ["--channels", *map(str, options.channels)]
    variables = {"PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": "1"}
    found = measured(command, variables, folder / "nvflare.log", 1800.0)
    if found.code != 0:
        raise NotInstalled("\n".join(found.log.splitlines()[-_TOLD_LINES:]))
    seconds: list[float] = json.loads((out / "rounds.json").read_text())
    return seconds


def main() -> None:
    """Measure all, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4, help="the first warms up and does not count")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3, help="of the plain transfers")
    parser.add_argument("--only-fedmed", action="store_true", help="without NVFlare, and without a page")
    options = parser.parse_args()
    adopt()
    with tempfile.TemporaryDirectory(prefix="fedmed-round-") as temporary:
        folder = Path(temporary)
        file = folder / "deployed-round.toml"
        file.write_text(EXPERIMENT.format(rounds=options.rounds, channels=options.channels))
        size = sum(array.nbytes for array in params.from_model(build_model(load_experiment(file))).values())
        plain = {
            way: [transfer(folder, way, options.sites, size) for _ in range(options.repeats)] for way in WAYS
        }
        disk = [written(folder, options.sites, size) for _ in range(options.repeats)]
        print(f"plain: {plain}; to disk: {disk}", flush=True)
        found = deployed(folder, file, options)
        print(f"fedmed: {[one.seconds for one in found.rounds]}", flush=True)
        theirs: Sequence[float] | str = "left out"
        if not options.only_fedmed:
            try:
                theirs = nvflare(folder, options)
            except NotInstalled as error:
                theirs = str(error)
        lines = page(Beside(sites=options.sites, size=size, plain=plain, disk=disk, nvflare=theirs), found)
        print("\n".join(lines))
        if not options.only_fedmed:
            pages.write(pages.dated(NAME), lines)
            plot(found.rounds[-1], pages.HERE / f"{pages.dated(NAME)}.png")


if __name__ == "__main__":
    main()

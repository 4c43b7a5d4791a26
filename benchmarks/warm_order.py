"""How long an order takes to its first training step, and what a round costs beyond training: here, and Flower's default way.

Here: a server and one hospital, deployed, whose worker is warm. Flower's default: `flower-superlink` and
`flower-supernode` of the same version, without TLS, which start a process for every message; it runs the very same
ClientApp, site, data and orders. Both take the time from before an order is sent until its reply is there, less the
seconds that the site trained.

    python benchmarks/warm_order.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedmed_common.loading import load_experiment
from fedmed_server.history import RoundDone
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import Consortium, write_experiment
from fedmed_simulations.rehearsal.faults import Fault, Faults
from fedmed_simulations.rehearsal.machines import Machine, free_ports, wait_for
from fedmed_simulations.rehearsal.rehearse import SHIPPED

SITE, STEPS = "north", 5
SERVER_APP = """
import json, os, time
from pathlib import Path
from flwr.serverapp import ServerApp
from flwr.app import Message
from fedmed_common import params, wire
from fedmed_common.loading import experiment_from_order
from fedmed_common.models import build_model

app = ServerApp()

@app.main()
def main(grid, context):
    asked = json.loads(Path({asked!r}).read_text())
    while not list(grid.get_node_ids()):
        time.sleep(0.2)
    (node,) = grid.get_node_ids()
    parameters = params.from_model(build_model(experiment_from_order(asked["experiment"])))
    told = []
    for number in range(1, asked["rounds"] + 1):
        order = wire.Order(kind=wire.Kind.TRAIN, run="flower", round=number, attempt=0,
                           experiment=asked["experiment"], parameters=parameters)
        before = time.perf_counter()
        (reply,) = grid.send_and_receive([Message(wire.pack_order(order), node, "train")])
        total = time.perf_counter() - before
        answer = wire.unpack_reply(reply.content, parameters)
        told.append({{"code": answer.code, "total": total, "train": answer.seconds.get("train", 0.0)}})
    Path({told!r}).write_text(json.dumps(told))
"""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "orders"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedmed"
[tool.flwr.app.components]
serverapp = "orders:app"
clientapp = "fedmed_client.app:app"
"""


def prepared(folder: Path, rounds: int) -> Path:
    """One hospital's data and the experiment's file."""
    settings = PhantomSettings(sites=1, patients=6, shape=(48, 48, 24), seed=1)
    write_federation(folder / "federation", settings)
    shipped = load_experiment(SHIPPED)
    changed = {
        "rounds": rounds,
        "train": shipped.train.model_copy(update={"steps": STEPS}),
        "federation": shipped.federation.model_copy(update={"minimum_sites": 1, "evaluate_every": rounds}),
    }
    write_experiment(shipped.model_copy(update=changed), folder / "federation", folder / "experiment.toml")
    return folder / "experiment.toml"


def ours(folder: Path, experiment: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by round: from before the order is sent to the first step, and of the round beyond training."""
    faults = Faults(folder)
    with Consortium(folder, [SITE], faults.environment) as consortium:
        consortium.found(folder / "federation")
        consortium.start()
        sent = [_mark("serverapp", "before-dispatch", number) for number in range(1, rounds + 1)]
        stepped = [_mark("worker", "training", number) for number in range(1, rounds + 1)]
        faults.plan(consortium, [*sent, *stepped])
        run = consortium.launch(experiment)
        consortium.wait_ended(run)
        done = [record for record in consortium.records(run) if isinstance(record, RoundDone)]
        moments = [
            (faults.fired(before), faults.fired(after)) for before, after in zip(sent, stepped, strict=True)
        ]
    return {
        "order_to_first_step": [after - before for before, after in moments if before and after],
        "beyond_training": [
            record.seconds["train"] - sum(result.seconds["train"] for result in record.train)
            for record in done
        ],
    }


def _mark(role: str, point: str, number: int) -> Fault:
    """A signal that does nothing, whose marker tells when the point was reached."""
    return Fault(role=role, point=point, signal="SIGCONT", round=number, site=SITE)  # type: ignore[arg-type]


def flowers(folder: Path, home: Path, experiment: Path, rounds: int) -> list[float]:
    """Seconds of each round beyond training, the way that Flower runs apps by default."""
    app, told = folder / "orders", folder / "told.json"
    app.mkdir()
    asked = folder / "asked.json"
    asked.write_text(json.dumps({"experiment": load_experiment(experiment).order_text(), "rounds": rounds}))
    (app / "orders.py").write_text(SERVER_APP.format(asked=str(asked), told=str(told)))
    (app / "pyproject.toml").write_text(PROJECT)
    link_port, node_port = free_ports(2)
    flower_home = folder / "flower-home"
    flower_home.mkdir()
    (flower_home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link_port}"\ninsecure = true\n'
    )
    environment = {
        "FLWR_HOME": str(flower_home),
        "FEDMED_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Machine:
            command = [str(Path(sys.executable).parent / name), *arguments]
            machine = Machine(command, log=folder / "log" / f"{name}.log", environment=environment)
            stack.callback(machine.stop)
            return machine

        server = start(
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link_port),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        node = start(
            "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link_port}", "--host", "127.0.0.1",
            "--port", str(node_port),
        )  # fmt: skip
        time.sleep(5)
        subprocess.run(
            [str(Path(sys.executable).parent / "flwr"), "run", str(app), "here"],
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
            timeout=120,
        )
        wait_for(told.exists, "Flower's rounds", 60.0 + 60 * rounds, [server, node])
    answers = json.loads(told.read_text())
    assert all(not answer["code"] for answer in answers), answers
    return [answer["total"] - answer["train"] for answer in answers]


def row(what: str, seconds: Sequence[float]) -> str:
    """A line of the table: the first round, and the median and longest of the others."""
    warm = seconds[1:]
    return f"| {what} | {seconds[0]:.2f} | {statistics.median(warm):.2f} | {max(warm):.2f} |"


def main() -> None:
    """Measure and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmed-warm-") as temporary:
        folder = Path(temporary)
        experiment = prepared(folder, options.rounds)
        here = ours(folder, experiment, options.rounds)
        flower = flowers(folder, folder / "sites" / SITE, experiment, options.rounds)
    today = datetime.now(UTC).date().isoformat()
    text = "\n".join(
        [
            f"# Warm orders, {today}",
            "",
            f"`{' '.join(['python', 'benchmarks/warm_order.py', *sys.argv[1:]])}`, {platform.machine()}, {os.cpu_count()} cores, "
            f"fedmed {version('fedmed')}, flwr {version('flwr')}. One site, a model of 33,256 numbers, {STEPS} steps a round.",
            "",
            "| seconds | first round | median of the others | longest of the others |",
            "|---|---|---|---|",
            row(
                "fedmed: from before the order is sent to the first training step",
                here["order_to_first_step"],
            ),
            row("fedmed: a round's exchange beyond training, over mutual TLS", here["beyond_training"]),
            row("Flower's default, a process a message, without TLS: the same", flower),
            "",
        ]
    )
    (Path(__file__).parent / f"warm_order-{today}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

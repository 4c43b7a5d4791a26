"""A site's private training, ended by kill -9 at random moments: is anything released that the ledger does not have, or twice?

    python benchmarks/ledger_kills.py --kills 1000

A process carries out orders as a hospital's worker does, and writes down what it would send. It is killed again and again, and
each time the server asks again for what it has not got. Then what was sent is held against the ledger. Eight processes at once,
with budget for one, come after that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from flwr.app import Message
from PIL import Image

from fedmed_client.app import home_of, make_client_app
from fedmed_client.ledger import Budget, Ledger, Reservation
from fedmed_common import params, privacy, wire
from fedmed_common.config import Experiment
from fedmed_common.errors import PolicyRefusal
from fedmed_common.models import build_model
from fedmed_common.receipts import Receipt
from fedmed_simulations.grid import LocalGrid

ROUNDS = 1_000_000
PATIENTS, LONGEST_LIFE_SECONDS = 6, 0.8
EXPERIMENT = Experiment.model_validate(
    {
        "name": "discs",
        "rounds": ROUNDS,
        "task": {"classes": ["disc"], "dimensions": 2},
        "data": {"patch": [16, 16], "splits": {"validation": 0.0, "test": 0.0}},
        "model": {"channels": [4, 8], "residual_units": 0},
        "train": {"steps": 1, "batch_size": 2, "threads": 1},
        "privacy": {"epsilon": 1e9, "sampling_rate": 0.5, "noise_multiplier": 0.2},
    }
)
FORKS = multiprocessing.get_context("fork")


def main() -> None:
    """Kill, check, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    kills = parser.parse_args().kills
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_home(home)
        live(home, last=3)  # so that a killed process begins with everything imported
        began = time.monotonic()
        kill_often(home, kills)
        found = judge(home)
        winners = [compete(home / f"race-{number}") for number in range(20)]
    lines = [
        "# The privacy ledger under kill -9",
        "",
        pages.made_by() + f" {time.monotonic() - began:.0f} seconds.",
        "",
        f"A site trained privately, round after round, and was killed {kills} times at random moments.",
        "",
        "| | |",
        "|---|---|",
        f"| reservations in the ledger | {found['reservations']} |",
        f"| replies that were sent, of so many rounds | {found['sent']}, {found['rounds']} |",
        f"| sent without a reservation | {found['unreserved']} |",
        f"| sequence numbers under which two different replies were sent | {found['two noises']} |",
        f"| rounds of which two different replies were sent | {found['two replies']} |",
        f"| reserved, and never sent: counted as spent | {found['reservations'] - found['sequences']} |",
        f"| of eight processes with budget for one, how many won, in each of 20 races | {sorted(set(winners))} |",
        "",
    ]
    pages.write(pages.dated("ledger_kills"), lines)


def make_home(home: Path) -> None:
    """A hospital with a few discs."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (home / "data" / kind).mkdir(parents=True)
    disc = np.zeros((24, 24), np.uint8)
    disc[6:14, 6:14] = 255
    for number in range(PATIENTS):
        image = (rng.normal(60, 10, (24, 24)) + disc / 3).clip(0, 255).astype(np.uint8)
        for kind, array in (("images", image), ("labels", disc)):
            Image.fromarray(array).save(home / "data" / kind / f"p{number}.png")
    (home / "site.toml").write_text(
        'name = "mercy"\n[labels]\ndisc = ["1"]\n[policy]\nleast_patients = 1\n[data]\nformat = "images"\nroot = "data"\n'
    )
    home_of(home).cohort(EXPERIMENT)


def kill_often(home: Path, kills: int) -> None:
    """Start the site and kill it, so many times; a life is long enough for a few rounds, or for nothing."""
    chance = random.Random(0)  # noqa: S311
    for _ in range(kills):
        process = FORKS.Process(target=live, args=(home,))
        process.start()
        process.join(chance.uniform(0.0, LONGEST_LIFE_SECONDS))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def live(home: Path, last: int = ROUNDS) -> None:
    """Answer the server's orders until killed. What is in ``sent.jsonl`` the server has, and goes on from there."""
    parameters = params.from_model(build_model(EXPERIMENT))
    sent = home / "sent.jsonl"
    known = _lines(sent)
    receipt = Receipt(**known[-1]["receipt"]) if known else None
    for number in range(known[-1]["round"] + 1 if known else 1, last):
        order = wire.Order(
            kind=wire.Kind.TRAIN,
            run="run",
            round=number,
            attempt=0,
            experiment=EXPERIMENT.order_text(),
            receipt=receipt,
            parameters=parameters,
        )
        for _ in range(2 if number % 3 == 0 else 1):
            reply = _ask(home, order)
            assert reply.receipt is not None, reply
            digest = hashlib.sha256(b"".join(array.tobytes() for array in reply.delta.values())).hexdigest()
            line = {
                "round": number,
                "digest": digest,
                "receipt": {"sequence": reply.receipt.sequence, "mac": reply.receipt.mac},
            }
            with sent.open("a") as log:
                log.write(json.dumps(line) + "\n")
                log.flush()
                os.fsync(log.fileno())
            receipt = reply.receipt


def judge(home: Path) -> dict[str, int]:
    """What was sent, held against the ledger."""
    rows = Ledger(home).read()
    lines = _lines(home / "sent.jsonl")
    noises, replies = defaultdict(set), defaultdict(set)
    for line in lines:
        noises[line["receipt"]["sequence"]].add(line["digest"])
        replies[line["round"]].add(line["digest"])
    unreserved = 0
    for line in lines:
        sequence = line["receipt"]["sequence"]
        unreserved += sequence > len(rows) or rows[sequence - 1].round != line["round"]
    Ledger(home).read(Receipt(**lines[-1]["receipt"]))
    return {
        "reservations": len(rows),
        "sent": len(lines),
        "rounds": len(replies),
        "sequences": len(noises),
        "unreserved": unreserved,
        "two noises": sum(len(found) > 1 for found in noises.values()),
        "two replies": sum(len(found) > 1 for found in replies.values()),
    }


def compete(folder: Path) -> int:
    """How many of eight processes that start together get what is enough for one."""
    folder.mkdir()
    privacy.epsilon([_row(0).spent], 1e-5)  # known to all of them, so that they come together
    barrier, won = FORKS.Barrier(8), FORKS.Value("i", 0)
    processes = [FORKS.Process(target=_reserve, args=(folder, number, barrier, won)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(Ledger(folder).read()) == won.value
    return int(won.value)


def _reserve(folder: Path, number: int, barrier: object, won: object) -> None:
    row = _row(number)
    budget = Budget(epsilon=privacy.epsilon([row.spent], 1e-5), delta=1e-5)
    barrier.wait()  # type: ignore[attr-defined]
    try:
        Ledger(folder).reserve(row, budget)
    except PolicyRefusal:
        return
    with won.get_lock():  # type: ignore[attr-defined]
        won.value += 1  # type: ignore[attr-defined]


def _row(number: int) -> Reservation:
    return Reservation(
        run=f"run {number}", round=1, attempt=0, noise_multiplier=1.0, sampling_rate=0.1, steps=10
    )


def _ask(home: Path, order: wire.Order) -> wire.Reply:
    grid = LocalGrid(make_client_app(lambda _context: home_of(home)), 1)
    (identifier,) = grid.push_messages([Message(wire.pack_order(order), 100, order.kind.value)])
    (reply,) = grid.pull_messages([identifier])
    return wire.unpack_reply(reply.content, order.parameters)


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of the log: a kill can leave half of one."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        file.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


if __name__ == "__main__":
    main()

"""What secure aggregation costs a site and the server, beside a round in the clear: bytes and seconds.

    python benchmarks/secure_sums.py --sites 10 --parameters 1000000 30000000

All of it is computed in this process, the sites one after the other; a network's time comes on top. A round in the clear: each
site packs its update, the server unpacks it and adds it to a weighted mean. In secret: each site makes keys and shares, masks its
update and packs it; the server unpacks and adds, and takes the masks off.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pages

from fedmed_client.secure import Sum
from fedmed_common import wire
from fedmed_common.params import WeightedMean
from fedmed_common.secure import circle as messages
from fedmed_common.secure.circle import Circle, Party, Wanted, threshold_of
from fedmed_common.secure.fixed_point import Block, Layout
from fedmed_common.site_config import Policy
from fedmed_common.training_config import SecureAggregation
from fedmed_server.secure import unmask

T = TypeVar("T")
SESSION, ABOUT, PATIENTS, LIMIT = "0" * 32, ("train", ""), 50, 2.0


class Clock:
    """Processor seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, what: str, work: Callable[[], T]) -> T:
        before = time.process_time()
        result = work()
        self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - before
        return result


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_000_000, 30_000_000])
    arguments = parser.parse_args()
    lines = [
        "# What secure aggregation costs",
        "",
        pages.made_by(),
        "",
        f"{arguments.sites} sites. Seconds of one processor, without the network; bytes of all messages of a round, both ways, "
        "but for the model that is sent to the sites, which is the same; the small ones are counted as four of the largest "
        "order and three of the largest reply.",
        "",
        "| parameters | dropouts | bytes of a site | times those in the clear | site, s | in the clear | server, s "
        "| in the clear | largest error, of the stated bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for parameters in arguments.parameters:
        most = arguments.sites - threshold_of(arguments.sites, None, 0)
        for dropouts in (0, most):
            lines.append(measured(arguments.sites, parameters, dropouts))
            print(lines[-1], flush=True)
    pages.write(pages.dated("secure_sums"), [*lines, ""])


def measured(sites: int, parameters: int, dropouts: int) -> str:
    """A line of the table."""
    rng = np.random.default_rng(0)
    clock, plain_bytes, secret_bytes, small_bytes = Clock(), 0, 0, 0
    names = [f"site-{number:03}" for number in range(sites)]
    layout = Layout((Block(name="x", shape=(parameters,), limit=LIMIT),), sites)
    survivors = names[: sites - dropouts]
    template = {"x": np.zeros(parameters, np.float32)}
    mean, expected = WeightedMean(template), np.zeros(parameters)
    with tempfile.TemporaryDirectory() as folder:
        marks: dict[str, str] = {}
        own = {name: _site(Path(folder) / name, name) for name in names}
        offers = [
            clock("site", lambda name=name: own[name].answer(Wanted(session=SESSION)).offer) for name in names
        ]
        circle = Circle(
            run="run", round=1, session=SESSION, threshold=threshold_of(sites, None, 0), offers=tuple(offers)
        )
        sealed = {
            name: clock(
                "site", lambda name=name: own[name].answer(Wanted(session=SESSION, circle=circle)).sealed
            )
            for name in names
        }
        party = Party(circle=circle, names=tuple(names))
        total = np.zeros(parameters, np.uint32)
        for name in survivors:
            update = (rng.standard_normal(parameters, np.float32) * np.float32(1e-2)) / np.float32(sites)
            expected += update
            record = clock("site in the clear", lambda update=update: _packed(delta={"x": update}))
            plain_bytes = wire.parameter_bytes(record)
            reply = clock("server in the clear", lambda record=record: wire.unpack_reply(record, template))
            clock("server in the clear", lambda reply=reply: mean.add(reply.delta, 1.0))
            arrays = {"x": update.astype(np.float64)}
            vector = clock("site", lambda name=name, arrays=arrays: own[name].mask(party, layout, arrays))
            record = clock("site", lambda vector=vector: _packed(masked=vector))
            marks[name] = clock("site", lambda name=name: own[name].mark(party)).mark or ""
            secret_bytes = wire.parameter_bytes(record)
            masked = clock(
                "server", lambda record=record: wire.unpack_reply(record, None, None, parameters).masked
            )
            assert masked is not None
            clock("server", lambda masked=masked: np.add(total, masked, out=total))
        opened: dict[str, dict[int, bytes]] = {name: {} for name in names}

        def wanted(name: str, **words: dict[str, str]) -> Wanted:
            shares = {other: (sealed[other] or {})[name] for other in names if other != name}
            return Wanted(session=SESSION, circle=circle, shares=shares, survivors=tuple(survivors), **words)

        agreed = {
            name: clock("site", lambda name=name: own[name].answer(wanted(name, marks=marks))).agreed or ""
            for name in survivors
        }
        for name in survivors:
            asked = wanted(name, agreed=agreed)
            given = clock("site", lambda name=name, asked=asked: own[name].answer(asked))
            small_bytes = len(messages.to_text(asked)) * 4 + len(messages.to_text(given)) * 3
            for other, share in (given.opened or {}).items():
                opened[other][circle.number(name)] = bytes.fromhex(share)
        context = party.context(*ABOUT, layout.described())
        clock("server", lambda: unmask(total, party, survivors, opened, context))
        found = clock("server", lambda: layout.decode(total)["x"])
    error = float(np.abs(found - expected).max()) / layout.error(layout.blocks[0])
    seconds = clock.seconds
    each = len(survivors)
    return (
        f"| {parameters:,} | {dropouts} | {secret_bytes + small_bytes:,} | {(secret_bytes + small_bytes) / plain_bytes:.4f} "
        f"| {seconds['site'] / each:.2f} | {seconds['site in the clear'] / each:.2f} "
        f"| {seconds['server']:.2f} | {seconds['server in the clear']:.2f} | {error:.2f} |"
    )


def _site(folder: Path, name: str) -> Sum:
    return Sum(
        folder=folder,
        site=name,
        run="run",
        session=SESSION,
        patients=PATIENTS,
        policy=Policy(),
        settings=SecureAggregation(range=LIMIT),
        about=ABOUT,
    )


def _packed(**fields: object) -> object:
    return wire.pack_reply(wire.Reply(site="site", run="run", round=1, attempt=0, **fields))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

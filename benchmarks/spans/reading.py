"""What the processes of a deployed run wrote down of themselves: by round, when each part was done and what it took."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers.measure import busy_seconds, cpu_seconds, held_mb

HERE = Path(__file__).parent
_EVERY_SECONDS = 0.25
_MACHINE = "machine"

MARKS = (
    ("the order is with the SuperLink", "serverapp", "push an order", "end"),
    ("the site begins to fetch it", "link", "fetch the order", "start"),
    ("the site has it", "link", "fetch the order", "end"),
    ("training begins", "worker", "train", "start"),
    ("training ends", "worker", "train", "end"),
    ("the reply is sealed", "worker", "seal", "end"),
    ("the reply is with the link", "link", "with the worker", "end"),
    ("its upload begins", "link", "upload the reply", "start"),
    ("it is uploaded", "link", "upload the reply", "end"),
    ("the server begins to read it", "serverapp", "gate", "start"),
    ("it is added", "serverapp", "add", "end"),
    ("the new parameters are there", "serverapp", "new parameters", "end"),
    ("the checkpoint is on disk", "serverapp", "checkpoint", "end"),
)
"""What happens in a round, once for each site or once: whose span it is, and which end of it."""


@dataclass(frozen=True, slots=True)
class Span:
    """One call: in which process of which site ('' for the server), what, from when to when, with how much CPU."""

    role: str
    site: str
    what: str
    start: float
    end: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round, from its start until its checkpoint is there. ``cpu``: by role, of all its processes meanwhile. ``others``: the
    share of the machine's cores that other programs had."""

    start: float
    end: float
    spans: tuple[Span, ...] = field(repr=False)
    cpu: Mapping[str, float]
    others: float

    @property
    def seconds(self) -> float:
        """Its whole time."""
        return self.end - self.start

    @property
    def training_cpu(self) -> float:
        """What all sites' training took."""
        return sum(span.cpu for span in self.spans if span.what == "train")

    def mark(self, role: str, what: str, which: str) -> list[float]:
        """When it happened, in seconds after the round's start, in the order of time."""
        found = [span for span in self.spans if (span.role, span.what) == (role, what)]
        return sorted((span.end if which == "end" else span.start) - self.start for span in found)


def read(folder: Path, meter: Meter) -> list[Round]:
    """The rounds of the run that wrote into the folder."""
    spans = sorted(
        (span for file in folder.glob("*.jsonl") for span in _spans(file)), key=lambda span: span.start
    )
    begun = [span for span in spans if span.what == "round"]
    saved = [span for span in spans if span.what == "checkpoint"]
    rounds = []
    for one in begun:
        end = min(save.end for save in saved if save.end > one.end)
        inside = tuple(span for span in spans if one.start <= span.start <= end and span.what != "round")
        cpu = meter.between(one.start, end)
        rest = cpu.pop(_MACHINE) - sum(cpu.values())
        others = max(0.0, rest) / ((end - one.start) * (os.cpu_count() or 1))
        rounds.append(Round(start=one.start, end=end, spans=inside, cpu=cpu, others=others))
    return rounds


def _spans(file: Path) -> Iterator[Span]:
    role, site, *_ = file.name.split(".")
    for line in file.read_text().splitlines():
        yield Span(role, site, *json.loads(line))


class Meter:
    """CPU and memory of a run's processes, and of the machine, while the block runs. ``pids()``: by role, those that live now."""

    def __init__(self, pids: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        self._pids, self._over = pids, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._samples: list[tuple[float, dict[str, float]]] = []
        self.peak_mb: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """Seconds of CPU by role, as near as the samples are."""
        first = min(self._samples, key=lambda sample: abs(sample[0] - start))[1]
        last = min(self._samples, key=lambda sample: abs(sample[0] - end))[1]
        return {role: last[role] - first.get(role, 0.0) for role in last}

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            pids = self._pids()
            sample = {role: sum(map(cpu_seconds, some)) for role, some in pids.items()}
            self._samples.append((time.time(), {**sample, _MACHINE: busy_seconds()}))
            for role, some in pids.items():
                most = max(map(held_mb, some), default=0.0)
                self.peak_mb[role] = max(self.peak_mb.get(role, 0.0), most)


def timeline(rounds: Sequence[Round]) -> list[tuple[str, float, float, float]]:
    """What happened when: at the first site, the middle one, the last one; medians over the rounds."""
    found = []
    for name, role, what, which in MARKS:
        times = [times for one in rounds if (times := one.mark(role, what, which))]
        if times:
            ends = (
                statistics.median(values[0] for values in times),
                statistics.median(values[-1] for values in times),
            )
            middle = statistics.median(statistics.median(values) for values in times)
            found.append((name, ends[0], middle, ends[1]))
    return found


def parts(rounds: Sequence[Round]) -> list[tuple[str, str, float, float, float, float]]:
    """By process and what it did: calls in a round, the longest, all together, their CPU; medians over the rounds."""
    names = dict.fromkeys((span.role, span.what) for one in rounds for span in one.spans)
    found = []
    for role, what in names:
        each = [[span for span in one.spans if (span.role, span.what) == (role, what)] for one in rounds]
        lengths = [[span.end - span.start for span in spans] or [0.0] for spans in each]
        found.append(
            (
                role,
                what,
                statistics.median(len(spans) for spans in each),
                statistics.median(max(values) for values in lengths),
                statistics.median(sum(values) for values in lengths),
                statistics.median(sum(span.cpu for span in spans) for spans in each),
            )
        )
    return found

"""``personal/``: what a recipe's pieces keep at a site from round to round, as control variates or layers of its own.

A file for each run and round, written before the round's reply is sealed. An order of round r reads the newest from before r, so
that a round that is asked for again, also after a crash here or at the server, is done as the first time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedmed_common.errors import CheckpointError
from fedmed_common.files import keep_newest, name_of, remove_leftovers, write_atomically

_NEWEST, _RUNS = 3, 16
_FIRST = "first"
Memory = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept in a site's ``folder`` for a run: of its rounds the newest three and the best, of runs the newest sixteen."""

    folder: Path
    run: str

    def before(self, round_number: int) -> Memory:
        """What was kept in the last round before this one that the site trained in; empty where there was none.

        Raises:
            CheckpointError: it was there and is not any more, or cannot be read.
        """
        rounds = self._rounds()
        earlier = [number for number in rounds if number < round_number]
        if earlier:
            return self._read(max(earlier))
        if rounds and round_number > self._first():
            raise CheckpointError(
                f"{self._place}: what the site kept before round {round_number} is gone; the oldest is of round {min(rounds)}\n"
                "  fix: the run cannot go on from so far back; start a new one"
            )
        return {}

    def write(self, round_number: int, memory: Memory, best: int) -> None:
        """Keep it for the rounds after this one; nothing where there is nothing. ``best``: the run's best round so far."""
        if not memory:
            return
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        first, path = self._place / _FIRST, self._path(round_number)
        if not first.exists():
            write_atomically(first, str(round_number).encode(), mode=0o600)
        remove_leftovers(path)
        write_atomically(path, save(memory), mode=0o600)
        self._forget({round_number, *self._needed(best)})

    @property
    def _place(self) -> Path:
        return self.folder / "personal" / name_of(self.run)

    def _path(self, round_number: int) -> Path:
        return self._place / f"{round_number:09}.safetensors"

    def _first(self) -> int:
        """The first round that the site trained in: before it there was nothing to keep."""
        first = self._place / _FIRST
        return int(first.read_text()) if first.exists() else 0

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self._place.glob("*.safetensors"))

    def _needed(self, best: int) -> set[int]:
        """The newest, and what the best round would be measured with."""
        rounds = self._rounds()
        return {*rounds[-_NEWEST:], max((number for number in rounds if number <= best), default=0)}

    def _forget(self, needed: Collection[int]) -> None:
        for number in self._rounds():
            if number not in needed:
                self._path(number).unlink()
        keep_newest(self._place.parent, _RUNS, but=self._place)

    def _read(self, round_number: int) -> Memory:
        path = self._path(round_number)
        try:
            kept: Memory = load(path.read_bytes())  # in an order of its own, which sums would show
            return {name: kept[name] for name in sorted(kept)}
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(f"{path}: cannot be read ({type(problem).__name__})") from None

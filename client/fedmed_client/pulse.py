"""A beat between the pieces of long work, so that a watcher sees that it moves and can stop it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nobody() -> None:
    return


_watcher: Callable[[], None] = _nobody


def beat() -> None:
    """One more piece is done: a case prepared, a patient measured. Raises what the watcher raises to stop the work."""
    _watcher()


@contextmanager
def watched(watcher: Callable[[], None]) -> Iterator[None]:
    """Within, ``watcher`` is told of every beat in this process."""
    global _watcher  # noqa: PLW0603
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before

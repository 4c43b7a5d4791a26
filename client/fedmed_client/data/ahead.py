"""Batches that are cut ahead of the training step that takes them.

What to cut is chosen where the caller is, in the caller's order, so that chance is the same with threads and without; threads
cut what was chosen. They spend their time in NumPy's and torch's copies and arithmetic, which leave Python to others, and read
arrays that are mapped already: worker processes would have to be handed the batches back, and were slower.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

Choice = TypeVar("Choice")
Cut = TypeVar("Cut")


class Batches(Generic[Choice, Cut]):
    """What ``cut`` makes of each choice, in their order; an error of it is raised where its result would have been given.

    ``ahead``: so many are cut before they are asked for, by as many threads, and no more than this process trains with; 0: each
    is cut when it is asked for. The threads live within ``with``. ``waited``: seconds in which the caller had nothing to work
    on. A GPU may still have been busy in them.
    """

    def __init__(self, choices: Iterable[Choice], cut: Callable[[Choice], Cut], ahead: int = 0) -> None:
        self._choices, self._cut, self._ahead = iter(choices), cut, ahead
        self._due: deque[Future[Cut]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self.waited = 0.0

    def __enter__(self) -> Self:
        if self._ahead:
            most = min(self._ahead, torch.get_num_threads())
            self._threads = ThreadPoolExecutor(most, thread_name_prefix="cut", initializer=_alone)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            torch.set_num_threads(torch.get_num_threads())  # what threads that begin later start with

    def __iter__(self) -> Iterator[Cut]:
        return self

    def __next__(self) -> Cut:
        before = time.perf_counter()
        try:
            if self._threads is None:
                return self._cut(next(self._choices))
            self._fill(self._threads)
            if not self._due:
                raise StopIteration
            found = self._due.popleft().result()
            self._fill(self._threads)
            return found
        finally:
            self.waited += time.perf_counter() - before

    def _fill(self, threads: ThreadPoolExecutor) -> None:
        while len(self._due) < self._ahead:
            try:
                choice = next(self._choices)
            except StopIteration:
                return
            self._due.append(threads.submit(self._cut, choice))


def _alone() -> None:
    """Threads that cut are many: none of them divides its arithmetic among threads of its own."""
    torch.set_num_threads(1)

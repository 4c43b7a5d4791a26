"""The same function over many items: here at first, on all cores once that is worth starting processes for."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fedmed_client import pulse
from fedmed_common.processes import cores, prepare_worker

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE_SECONDS = 4.0
"""Work left, as judged from what is done, above which worker processes pay for their start."""


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    *,
    title: str,
    progress: bool,
    worthwhile_seconds: float = WORTHWHILE_SECONDS,
) -> list[Result]:
    """``work(item)`` for every item, results in the order of the items; an exception from any of them is raised.

    Workers are fresh processes, so ``work`` and the items must be such as can be sent. ``crashed`` gives the result of
    an item that no worker survives (a decoder's fault, memory gone). Where no worker can start, all is done here.
    """
    results = _beating(_results(work, items, crashed, worthwhile_seconds))
    return list(_bar(results, len(items), title) if progress else results)


def _beating(results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        pulse.beat()
        yield result


def _results(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    worthwhile_seconds: float,
) -> Iterator[Result]:
    workers = cores()
    alone = workers == 1 or multiprocessing.current_process().daemon
    start, done = time.monotonic(), 0
    while done < len(items):
        left = (time.monotonic() - start) / done * (len(items) - done) if done else 0.0
        if alone or not done or left <= worthwhile_seconds:
            yield work(items[done])
            done += 1
            continue
        for result in _in_workers(work, items[done:], workers):
            yield result
            done += 1
        if done == len(items):
            return
        alone = not list(_in_workers(_nothing, [None], 1))
        if not alone:
            yield from list(_in_workers(work, [items[done]], 1)) or [crashed(items[done])]
            done += 1


def _in_workers(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results in order, up to the first that is lost because a worker died."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=prepare_worker)
    try:
        yield from pool.map(work, items)
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


def _nothing(_: None) -> bool:
    return True


def _bar(results: Iterable[Result], total: int, title: str) -> Iterable[Result]:
    from rich.console import Console
    from rich.progress import track

    return track(results, total=total, description=title, console=Console(stderr=True))

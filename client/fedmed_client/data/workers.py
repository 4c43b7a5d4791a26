"""The same function over many items: here at first, on all cores once that is worth starting them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Setting = TypeVar("Setting")
Result = TypeVar("Result")

WORTHWHILE_SECONDS = 10.0
"""Work left, as judged from what is done, above which worker processes pay for their start."""


def in_order(
    work: Callable[[Item, Setting], Result],
    items: Sequence[Item],
    setting: Setting,
    *,
    title: str,
    progress: bool,
    worthwhile_seconds: float = WORTHWHILE_SECONDS,
) -> list[Result]:
    """``work(item, setting)`` for every item, results in the order of the items; an exception from any of them is raised.

    Workers are fresh processes, so ``work`` is a module's function and items can be sent. Where workers cannot run or
    die, the rest is done here.
    """
    results: list[Result] = []
    bar = _bar if progress else _no_bar
    for result in bar(_results(work, items, setting, worthwhile_seconds), len(items), title):
        results.append(result)
    return results


def _results(
    work: Callable[[Item, Setting], Result],
    items: Sequence[Item],
    setting: Setting,
    worthwhile_seconds: float,
) -> Iterator[Result]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = cores == 1 or multiprocessing.current_process().daemon
    start, done = time.monotonic(), 0
    while done < len(items):
        yield work(items[done], setting)
        done += 1
        left = (time.monotonic() - start) / done * (len(items) - done)
        if alone or left <= worthwhile_seconds:
            continue
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(min(cores, len(items) - done), mp_context=context) as pool:
                for result in pool.map(partial(_apply, work, setting), items[done:]):
                    yield result
                    done += 1
        except BrokenProcessPool:
            alone = True


def _apply(work: Callable[[Item, Setting], Result], setting: Setting, item: Item) -> Result:
    return work(item, setting)


def _no_bar(results: Iterable[Result], total: int, title: str) -> Iterable[Result]:
    return results


def _bar(results: Iterable[Result], total: int, title: str) -> Iterable[Result]:
    from rich.progress import track

    return track(results, total=total, description=title)

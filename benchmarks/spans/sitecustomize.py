"""What a process of a deployed run does when: Python imports this by itself where the folder is on ``PYTHONPATH``.

Nothing of fedmed knows of it. Where ``FEDMED_SPANS`` names a folder, each call of the functions below becomes a line of a file
of the process's own: what, start, end (``time.time()``), seconds of CPU in the calling thread.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

WATCHED: Mapping[str, Mapping[str, str]] = {
    "fedmed_server.rounds": {"run_round": "round"},
    "fedmed_server.exchange": {"Exchange._send": "push an order"},
    "fedmed_server.channel": {"Channel.pause": "wait"},
    "fedmed_server.deployment.grid": {
        "GuardedGrid._claim": "ask what has come",
        "GuardedGrid._fetch": "pull a reply",
    },
    "fedmed_server.deployment.shelf": {"Shelf._kept": "write the order's numbers"},
    "fedmed_server.deployment.bulk": {"_finish": "compare a reply with its digest"},
    "fedmed_server.gate": {"admit": "gate"},
    "fedmed_server.deployment.flower_fleet": {"FleetCalls._answer": "to a site: {1}"},
    "fedmed_server.deployment.admission": {"_verified": "check a signature"},
    "flwr.superlink.servicer.runtime.runtime_handlers": {
        "push_object": "to the run: push-object",
        "pull_object": "to the run: pull-object",
        "push_messages": "to the run: push-messages",
        "pull_messages": "to the run: pull-messages",
        "confirm_message_received": "to the run: confirm-message-received",
    },
    "flwr.supercore.object_store.sql_object_store": {
        "SqlObjectStore.preregister": "store: preregister",
        "SqlObjectStore.put": "store: put",
        "SqlObjectStore.get": "store: get",
        "SqlObjectStore.get_object_tree": "store: get_object_tree",
        "SqlObjectStore.delete": "store: delete",
    },
    "sqlalchemy.orm.session": {"SessionTransaction.commit": "database: commit"},
    "fedmed_common.signed_requests": {"sign": "sign a request"},
    "fedmed_strategies.server_half": {"Round.add": "add", "Round.finish": "new parameters"},
    "fedmed_server.state": {"save_state": "checkpoint"},
    "fedmed_common.wire_arrays": {"packed": "pack arrays"},
    "fedmed_common.wire": {
        "unpack_order": "unpack the order",
        "pack_reply": "pack the reply",
    },
    "fedmed_client.link.line": {
        "Line.pull": "ask for an order",
        "Line.fetch": "fetch the message",
        "Line._write": "upload the reply",
    },
    "fedmed_client.link.received": {"Received.complete": "fetch the order"},
    "fedmed_client.link.flower": {
        "Fleet.announce": "announce the reply",
        "Fleet.upload": "upload the message",
    },
    "fedmed_client.link.orders": {"Desk._carried": "with the worker"},
    "fedmed_client.work.frames": {"joined": "between link and worker"},
    "fedmed_client.work.worker": {"Orders._carry_out": "carry out"},
    "fedmed_client.work.outbox": {"Outbox.find": "look for a sealed reply", "Outbox.seal": "seal"},
    "fedmed_client.train": {"train": "train"},
}
"""By module: a function, or a class's method, and what it does; ``{1}`` is its first argument after ``self``. Of a function that
calls itself, the outermost call counts."""

ROLES = {
    "fedmed_client.link.link": "link",
    "fedmed_client.work.worker": "worker",
    "fedmed_server.deployment.serverapp": "serverapp",
    "fedmed_server.deployment.superlink": "superlink",
}


def _role(arguments: Sequence[str]) -> tuple[str, str]:
    """What this process is, and of which site."""
    for module, role in ROLES.items():
        if module in arguments:
            return role, Path(arguments[-1]).name if role in {"link", "worker"} else ""
    return "", ""


class _Finder(MetaPathFinder):
    """Finds watched modules as Python does, and wraps their functions once they are there."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in WATCHED else None
        if spec is not None and spec.loader is not None:
            self._after(spec.loader, name)
        return spec

    def _after(self, loader: Loader, name: str) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for place, what in WATCHED[name].items():
                *owners, last = place.split(".")
                owner = functools.reduce(getattr, owners, module)
                setattr(owner, last, self._timed(getattr(owner, last), what))

        loader.exec_module = exec_module  # type: ignore[method-assign]

    def _timed(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        inside = threading.local()

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if getattr(inside, "it", False):
                return function(*arguments, **named)
            inside.it = True
            start, worked = time.time(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                inside.it = False
                self._write(what.format(*arguments), start, time.time(), time.thread_time() - worked)

        return timed


def _watch(folder: Path, role: str, site: str) -> None:
    file = (folder / f"{role}.{site}.{os.getpid()}.jsonl").open("a", buffering=1)
    lock = threading.Lock()

    def write(*span: object) -> None:
        with lock:
            file.write(json.dumps(span) + "\n")

    sys.meta_path.insert(0, _Finder(write))


if os.environ.get("FEDMED_SPANS"):
    _found = _role(sys.orig_argv)
    if _found[0]:
        _watch(Path(os.environ["FEDMED_SPANS"]), *_found)

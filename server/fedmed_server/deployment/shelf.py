"""The numbers of a Flower run that are on their way, in files that its ServerApp and the SuperLink share.

The ServerApp writes an array once, for all the sites that are sent it, and for each order says in a file which site may fetch
what, and how much that site may send back. The SuperLink writes what comes, and the ServerApp reads and deletes it::

    turn                        held by who takes or deletes a lock
    RUN.lock                    held by the run's ServerApp while it lives; whose lock nobody holds is swept away
    RUN/models/DIGEST           what goes out
    RUN/MESSAGE/order.json      an order that is out
    RUN/MESSAGE/DIGEST-SIZE     what came for it, whole and compared with its digest; with ".part", as far as it came

Nothing here outlives its run, and nothing is synced to disk: what a crash takes is asked for again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedmed_common.errors import WireError
from fedmed_common.wire_arrays import numbers
from fedmed_common.wire_files import FILED, LEAST_BYTES, Filed, Part, digest_of, filed_in

_ORDER, _MODELS, _GONE = "order.json", "models", ".gone"
_TURN = "turn"
_NEWEST = 4
"""So many records stay ready that no order names at the moment: what is measured in one round is trained in the next."""

Limit = tuple[int, int]
"""Of a reply's numbers: bytes, arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An order that is out. ``down``: what its node may fetch, in bytes by digest; ``up``, ``arrays``: what it may send, in bytes
    and arrays."""

    node: int
    down: Mapping[str, int]
    up: int
    arrays: int


def order_folder(root: Path, run: int, message: str) -> Path:
    """Where an order lies, and what comes for it."""
    return root / str(run) / message


def model_file(root: Path, run: int, digest: str) -> Path:
    """An array that goes out."""
    return root / str(run) / _MODELS / digest


def reply_file(root: Path, part: Part) -> Path:
    """An array that came."""
    return order_folder(root, part.run, part.message) / f"{part.digest}-{part.size}"


def asked(root: Path, run: int, message: str) -> Asked | None:
    """The order, where it is out."""
    try:
        return Asked(**json.loads((order_folder(root, run, message) / _ORDER).read_bytes()))
    except FileNotFoundError:
        return None


def others(root: Path, part: Part) -> list[int]:
    """The announced sizes of what else came, or is coming, for the order that the part belongs to.

    Raises:
        FileNotFoundError: the order is not out any more.
    """
    own = reply_file(root, part).name
    names = {file.name.removesuffix(".part") for file in order_folder(root, part.run, part.message).iterdir()}
    return [int(name.rpartition("-")[2]) for name in names - {_ORDER, own}]


class Shelf:
    """A Flower run's, for its ServerApp."""

    def __init__(self, root: Path, run: int) -> None:
        self._root, self._run = root, run
        self._newest: deque[Collection[str]] = deque(maxlen=_NEWEST)
        self._out: dict[str, tuple[float, frozenset[str]]] = {}
        self._last_of: dict[tuple[int, str], str] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _one_at_a_time(root):
            _sweep(root)
            self._lock = _held(root, str(run))
        if self._lock is None:
            raise RuntimeError("another process carries out the same Flower run")
        self._models.mkdir(mode=0o700, parents=True)

    def keep(self, record: ArrayRecord) -> ArrayRecord:
        """The record whose large arrays lie here, each once.

        Raises:
            OSError: they cannot be written.
        """
        self._make_room()
        kept = ArrayRecord({name: self._kept(array) for name, array in record.items()})
        if named := frozenset(filed_in(RecordDict({_MODELS: kept}))):
            self._newest.append(named)
        return kept

    def ask(self, name: str, order: Message, limit: Limit) -> None:
        """The order goes out under this name, in the place of the last one of its kind to the same node, with its numbers."""
        node, kind, seconds = order.metadata.dst_node_id, order.metadata.message_type, order.metadata.ttl
        self.forget(self._last_of.get((node, kind), ""))
        down = filed_in(order.content)
        for filed in down.values():
            self._put(filed)
        sizes = {digest: filed.size for digest, filed in down.items()}
        folder = order_folder(self._root, self._run, name)
        folder.mkdir(mode=0o700, exist_ok=True)
        content = json.dumps(asdict(Asked(node=node, down=sizes, up=limit[0], arrays=limit[1])))
        _write(folder / _ORDER, [content.encode()])
        self._last_of[node, kind] = name
        self._out[name] = time.monotonic() + seconds, frozenset(down)

    def came(self, message: str, digest: str, size: int) -> Filed:
        """What came whole for an order; the SuperLink has compared it with its digest.

        Raises:
            WireError: it did not come.
        """
        part = Part(run=self._run, message=message, digest=digest, size=size)
        try:
            return Filed.open(reply_file(self._root, part), digest, size)
        except OSError:
            raise WireError("numbers that were not sent") from None

    def forget(self, message: str) -> None:
        """The order is done, or there is another in its place. What is in use of it here stays until it is let go of."""
        if self._out.pop(message, None) is None:
            return
        folder = order_folder(self._root, self._run, message)
        gone = folder.with_name(f"{message}{_GONE}")
        with suppress(OSError):
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """The run is done."""
        shutil.rmtree(self._models.parent, ignore_errors=True)
        if self._lock is not None:
            with _one_at_a_time(self._root):
                (self._root / f"{self._run}.lock").unlink(missing_ok=True)
                os.close(self._lock)
            self._lock = None

    @property
    def _models(self) -> Path:
        return self._root / str(self._run) / _MODELS

    def _make_room(self) -> None:
        """Delete orders whose time is over, and arrays that no order names and that were not made ready lately."""
        now = time.monotonic()
        for message in [message for message, (until, _) in self._out.items() if until < now]:
            self.forget(message)
        used = frozenset().union(*self._newest, *(down for _, down in self._out.values()))
        for file in self._models.iterdir():
            if file.name not in used:
                file.unlink()

    def _kept(self, array: Array) -> Array:
        if array.stype == FILED or len(array.data) < LEAST_BYTES:
            return array
        row = numbers(array)
        path = model_file(self._root, self._run, digest_of([row]))
        if not path.exists():
            _write(path, [row.data])
        data = Filed.open(path, path.name, row.nbytes)
        return Array(dtype=array.dtype, shape=array.shape, stype=FILED, data=data)

    def _put(self, filed: Filed) -> None:
        """What is asked once more long after may be deleted; who has it open has it still."""
        path = model_file(self._root, self._run, filed.digest)
        if not path.exists():
            _write(path, filed.chunks(0, filed.size))


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("wb", buffering=0) as stream:
        for part in parts:
            left = memoryview(part).cast("B")
            while left:
                left = left[stream.write(left) :]
    temporary.rename(path)


def sweep(root: Path) -> None:
    """Delete what ServerApps that are gone left."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _one_at_a_time(root):
        _sweep(root)


def _sweep(root: Path) -> None:
    for name in {entry.name.removesuffix(".lock") for entry in root.iterdir()} - {_TURN}:
        lock = _held(root, name)
        if lock is not None:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / f"{name}.lock").unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Nobody else takes or deletes a lock meanwhile: one that is being taken looks like one that nobody holds."""
    turn = os.open(root / _TURN, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield
    finally:
        os.close(turn)


def _held(root: Path, name: str) -> int | None:
    """The run's lock, where no process holds it, as an open file."""
    lock = os.open(root / f"{name}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock

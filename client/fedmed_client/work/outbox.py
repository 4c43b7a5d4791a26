"""Sealed replies: what a site has answered, so that asked again, whatever happened in between, it answers the same.

A reply is known by what was asked (run, kind, round, split, experiment, parameters) and by the site's terms, not by the
attempt. It is one safetensors file, written atomically before anything of it is sent; large arrays are sent out of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from fedmed_common import wire
from fedmed_common.errors import FedmedError
from fedmed_common.files import keep_newest, name_of, write_atomically
from fedmed_common.metrics import Mean
from fedmed_common.receipts import Receipt
from fedmed_common.wire_arrays import digest, found, rows
from fedmed_common.wire_files import FILED, LEAST_BYTES, Filed, digest_of

_ROUNDS, _RUNS = 2, 16
_MASKED = "masked"
_ALIGNED = 8
_KINDS = {"float32": "F32", "uint32": "U32", "uint16": "U16", "uint8": "U8", "int8": "I8"}
"""Safetensors' names of the types that travel."""
_DTYPES = {kind: name for name, kind in _KINDS.items()}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """A site's sealed replies below ``folder``: of each run the newest two rounds of each kind, of runs the newest 16.

    By kind, as a site may measure the model of several later rounds before the server has taken what it trained.
    ``terms``: what of the site's own rules shapes a reply. After a change of them the site answers anew.
    """

    folder: Path
    terms: str = ""

    def find(self, order: wire.Order) -> wire.Reply | None:
        """The sealed reply to what the order asks, with the order's attempt; None where there is none that can be read."""
        path = self._path(order)
        if not path.exists():
            return None
        try:
            return _read(path, order)
        except (OSError, FedmedError, ValueError, KeyError, TypeError, AttributeError) as problem:
            _log.error("a sealed reply is damaged (%s); the work is done again", type(problem).__name__)
            return None

    def seal(self, order: wire.Order, reply: wire.Reply) -> wire.Reply:
        """Keep the reply to what the order asks; it is on disk when this returns. The reply, with its arrays as they lie there.

        Raises:
            OSError: it cannot be kept, so it must not be sent.
        """
        path = self._path(order)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_leftovers(path.parent)
        write_atomically(path, _written(reply))
        self._forget(path, order.kind)
        return _read(path, order)

    def _path(self, order: wire.Order) -> Path:
        digest = _digest(order, self.terms)
        return self.folder / name_of(order.run) / f"{order.round:020}-{order.kind.value}-{digest}.safetensors"

    def _forget(self, newest: Path, kind: wire.Kind) -> None:
        """Delete what nobody asks for any more of this kind, never ``newest``."""
        replies = list(newest.parent.glob(f"*-{kind.value}-*.safetensors"))
        kept = {*sorted({_round(path) for path in replies})[-_ROUNDS:], _round(newest)}
        for path in replies:
            if _round(path) not in kept:
                path.unlink()
        keep_newest(self.folder, _RUNS, but=newest.parent)


def _remove_leftovers(folder: Path) -> None:
    """What a killed worker left of any reply of the run; one worker writes in a home."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _round(path: Path) -> str:
    return path.name.partition("-")[0]


def _digest(order: wire.Order, terms: str) -> str:
    """What is asked, in 64 hexadecimal digits."""
    asked = (order.kind.value, order.split, order.statistic, order.experiment, order.secure, terms)
    arrays = digest({**order.parameters}), digest({**order.down})
    return hashlib.sha256(repr((asked, arrays)).encode()).hexdigest()


def _written(reply: wire.Reply) -> Iterator[bytes | memoryview]:
    """The reply as a file: its arrays lie as they travel, and its fields are in the header's metadata."""
    fields = {
        "site": reply.site,
        "scalars": reply.scalars,
        "metrics": {name: (mean.total, mean.weight) for name, mean in reply.metrics.items()},
        "seconds": reply.seconds,
        "epsilon_spent": reply.epsilon_spent,
        "secure": reply.secure,
        "receipt": None if reply.receipt is None else asdict(reply.receipt),
    }
    masked = {} if reply.masked is None else {_MASKED: reply.masked}
    parts: list[NDArray[Any]] = []
    header: dict[str, Any] = {}
    digests: dict[str, str] = {}
    begins = 0
    for section, arrays in (("delta", reply.delta), ("sums", reply.sums), (_MASKED, masked)):
        for name, (shape, named) in rows(arrays).items():
            tensor, own = f"{section}/{name}", list(named.values())
            ends = begins + sum(part.nbytes for part in own)
            if ends - begins >= LEAST_BYTES:
                digests[tensor] = digest_of(own)
            kind = _KINDS[str(own[0].dtype)]
            header[tensor] = {"dtype": kind, "shape": shape, "data_offsets": (begins, ends)}
            parts, begins = parts + own, ends
    header["__metadata__"] = {"reply": json.dumps(fields | {"digests": digests})}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(_ALIGNED, "little") + text
    for part in parts:
        yield np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


def _read(path: Path, order: wire.Order) -> wire.Reply:
    """A sealed reply, whose arrays are the file's pages."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_ALIGNED), "little")
        if not 0 < length <= path.stat().st_size:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(stream.read(length))
    fields = json.loads(header.pop("__metadata__")["reply"])
    sections: dict[str, dict[str, Array]] = {"delta": {}, "sums": {}, _MASKED: {}}
    for tensor, about in header.items():
        section, _, name = tensor.partition("/")
        begins, ends = about["data_offsets"]
        data = Filed.open(path, fields["digests"].get(tensor, ""), ends - begins, _ALIGNED + length + begins)
        dtype, shape = _DTYPES[about["dtype"]], tuple(about["shape"])
        sections[section][name] = Array(dtype=dtype, shape=shape, stype=FILED, data=data)
    return wire.Reply(
        site=fields["site"],
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        delta=found(sections["delta"]),
        sums=found(sections["sums"]),
        scalars=fields["scalars"],
        metrics={name: Mean(total, weight) for name, (total, weight) in fields["metrics"].items()},
        seconds=fields["seconds"],
        masked=found(sections[_MASKED]).get(_MASKED),
        secure=fields["secure"],
        epsilon_spent=fields["epsilon_spent"],
        receipt=Receipt(**fields["receipt"]) if fields["receipt"] else None,
    )

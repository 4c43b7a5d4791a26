"""Sealed replies: what a site has answered, so that asked again, whatever happened in between, it answers the same.

A reply is known by what was asked (run, kind, round, split, experiment, parameters) and by the site's terms, not by the
attempt. It is one safetensors file, written atomically before anything of it is sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedmed_common import wire
from fedmed_common.files import keep_newest, name_of, write_atomically
from fedmed_common.metrics import Mean
from fedmed_common.receipts import Receipt

_ROUNDS, _RUNS = 2, 16
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
            with safe_open(path, framework="numpy") as file:
                fields: dict[str, Any] = json.loads((file.metadata() or {})["reply"])
                delta = {name: file.get_tensor(f"delta/{name}") for name in fields["names"]}
                sums = {name: file.get_tensor(f"sums/{name}") for name in fields["sums"]}
                masked = file.get_tensor("masked") if fields.get("masked") else None
            return wire.Reply(
                site=fields["site"],
                run=order.run,
                round=order.round,
                attempt=order.attempt,
                delta=delta,
                sums=sums,
                scalars=fields["scalars"],
                metrics={name: Mean(total, weight) for name, (total, weight) in fields["metrics"].items()},
                seconds=fields["seconds"],
                masked=masked,
                secure=fields.get("secure", ""),
                epsilon_spent=fields.get("epsilon_spent"),
                receipt=Receipt(**fields["receipt"]) if fields.get("receipt") else None,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as problem:
            _log.error("a sealed reply is damaged (%s); the work is done again", type(problem).__name__)
            return None

    def seal(self, order: wire.Order, reply: wire.Reply) -> None:
        """Keep the reply to what the order asks; it is on disk when this returns.

        Raises:
            OSError: it cannot be kept, so it must not be sent.
        """
        fields = {
            "site": reply.site,
            "names": list(reply.delta),
            "sums": list(reply.sums),
            "scalars": reply.scalars,
            "metrics": {name: (mean.total, mean.weight) for name, mean in reply.metrics.items()},
            "seconds": reply.seconds,
            "epsilon_spent": reply.epsilon_spent,
            "masked": reply.masked is not None,
            "secure": reply.secure,
            "receipt": None if reply.receipt is None else asdict(reply.receipt),
        }
        path = self._path(order)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_leftovers(path.parent)
        tensors: dict[str, NDArray[Any]] = {f"delta/{name}": array for name, array in reply.delta.items()}
        tensors |= {f"sums/{name}": array for name, array in reply.sums.items()}
        if reply.masked is not None:
            tensors["masked"] = reply.masked
        write_atomically(path, save(tensors, metadata={"reply": json.dumps(fields)}))
        self._forget(path, order.kind)

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
    digest = hashlib.sha256(repr(asked).encode())
    for name, array in (*order.parameters.items(), *order.down.items()):
        digest.update(repr((name, array.shape)).encode())
        digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.hexdigest()

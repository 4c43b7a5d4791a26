"""All that passes from one round to the next, and its checkpoint: one file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedmed_common import failpoints
from fedmed_common.errors import CheckpointError
from fedmed_common.files import remove_leftovers, write_atomically
from fedmed_common.params import Parameters
from fedmed_server.agreement import Agreed
from fedmed_strategies.pieces import Memory

CHECKPOINT = "state.safetensors"
_CURRENT, _BEST, _RELEASED, _MEMORY = "current/", "best/", "released/", "memory/"
_DECISION, _BEST_DECISION, _AGREED = "decision/", "best-decision/", "agreed/"
_VERSIONS = "version/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """A site that is at work between two rounds: on its order of ``round``, which named ``best``. ``due``: in a simulation, when
    it is done."""

    site: str
    round: int
    best: int = 0
    due: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run between two rounds.

    ``released``: what the recipe's stages made of the parameters, where they did: what is measured and published, while
    training goes on from ``parameters``; ``decision``: how its predictions are decided on (``tasks.Decision``). ``memory``:
    what the recipe's pieces keep, as moments and control variates. ``agreed``: how the parameters are sent to who has those
    before them. ``best_round`` is 0 before the first evaluation. ``missed``:
    one sentence for each site and round that was lost. ``record``: the last round's line of the history, so that a crash
    between checkpoint and history loses neither; ``best_record``: the best round's. ``experiment``: digest of what the sites
    were told of the experiment. ``outstanding``: who is at work, ``versions``: by round the part that training changes of what
    these began from, as far as it may still be used; ``clock``: a simulation's time."""

    round: int
    parameters: Parameters
    released: Parameters | None = None
    decision: Memory = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    agreed: Agreed | None = None
    experiment: str = ""
    best_round: int = 0
    best_parameters: Parameters | None = None
    best_decision: Memory = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    record: str = ""
    best_record: str = ""
    outstanding: tuple[Outstanding, ...] = ()
    versions: Mapping[int, Parameters] = field(default_factory=dict)
    clock: float = 0.0

    @property
    def model(self) -> Parameters:
        """What is measured, and published."""
        return self.parameters if self.released is None else self.released


def save_state(folder: Path, state: RunState) -> None:
    """Write the checkpoint into the run's folder; stale temporary files of killed processes are removed."""
    remove_leftovers(folder / CHECKPOINT)
    tensors = {_CURRENT + name: array for name, array in state.parameters.items()}
    tensors |= {_RELEASED + name: array for name, array in (state.released or {}).items()}
    for prefix, kept in (
        (_MEMORY, state.memory),
        (_DECISION, state.decision),
        (_BEST_DECISION, state.best_decision),
        (_AGREED, state.agreed.change if state.agreed is not None else {}),
    ):
        tensors |= {prefix + name: array for name, array in kept.items()}
    if state.best_parameters is not None and state.best_round != state.round:
        tensors |= {_BEST + name: array for name, array in state.best_parameters.items()}
    for number, version in state.versions.items():
        tensors |= {f"{_VERSIONS}{number}/{name}": array for name, array in version.items()}
    fields = {
        "round": state.round,
        "experiment": state.experiment,
        "best_round": state.best_round,
        "missed": state.missed,
        "record": state.record,
        "best_record": state.best_record,
        "names": list(state.parameters),
        "agreed": None if state.agreed is None else [state.agreed.name, state.agreed.base],
        "outstanding": [asdict(order) for order in state.outstanding],
        "clock": state.clock,
    }
    write_atomically(
        folder / CHECKPOINT,
        _in_pieces(tensors, {"state": json.dumps(fields)}),
        before_rename=lambda: failpoints.reach("writing-checkpoint", round=state.round),
    )


def load_state(folder: Path) -> RunState | None:
    """The checkpoint in the run's folder; None where there is none yet.

    Raises:
        CheckpointError: the file is there but is not a checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            fields = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names: list[str] = fields["names"]
        current = _named(tensors, _CURRENT, names)
        has_released = any(name.startswith(_RELEASED) for name in tensors)
        released = _named(tensors, _RELEASED, names) if has_released else None
        best: Parameters | None = None
        if fields["best_round"]:
            is_best = fields["best_round"] == fields["round"]
            best = (released or current) if is_best else _named(tensors, _BEST, names)
        return RunState(
            round=fields["round"],
            parameters=current,
            released=released,
            memory=_below(tensors, _MEMORY),
            decision=_below(tensors, _DECISION),
            best_decision=_below(tensors, _BEST_DECISION),
            agreed=_agreed(fields.get("agreed"), _below(tensors, _AGREED)),
            experiment=fields["experiment"],
            best_round=fields["best_round"],
            best_parameters=best,
            missed=tuple(fields["missed"]),
            record=fields["record"],
            best_record=fields["best_record"],
            outstanding=tuple(Outstanding(**order) for order in fields["outstanding"]),
            versions=_versions(_below(tensors, _VERSIONS)),
            clock=fields["clock"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this version ({type(error).__name__})") from error


def best_round(folder: Path) -> int:
    """The checkpoint's best round, from its header alone; 0 where there is no checkpoint that can be read."""
    try:
        with safe_open(folder / CHECKPOINT, framework="numpy") as file:
            return int(json.loads((file.metadata() or {})["state"])["best_round"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        return 0


def save_parameters(
    path: Path, parameters: Mapping[str, NDArray[np.float32]], about: Mapping[str, str]
) -> None:
    """Write a model's parameters as safetensors, with ``about`` in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _in_pieces(parameters, about))


def _in_pieces(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A file of safetensors, array by array: the library's own writer has all of it in memory once more, or chooses the file.

    Format: huggingface/safetensors, README, "Format". Wide types come first, so that each array is aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        kind = array.dtype.kind.upper() + str(8 * array.dtype.itemsize)
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, array in ordered:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def decision_of(path: Path) -> Memory:
    """How the predictions of a published model are decided on: ``tasks.Decision``."""
    with safe_open(path, framework="numpy") as file:
        said: dict[str, list[float]] = json.loads((file.metadata() or {}).get("decision", "{}"))
    return {name: np.array(values, np.float32) for name, values in said.items()}


def model_file(folder: Path, name: str) -> Path:
    """Where a run keeps a model: ``best`` or ``last``."""
    return folder / "models" / f"{name}.safetensors"


def _agreed(names: list[str] | None, change: Memory) -> Agreed | None:
    return None if names is None else Agreed(name=names[0], base=names[1], change=change)


def _below(tensors: Mapping[str, NDArray[Any]], prefix: str) -> Memory:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _versions(tensors: Memory) -> dict[int, Parameters]:
    found: dict[int, Parameters] = {}
    for path, array in tensors.items():
        number, _, name = path.partition("/")
        found.setdefault(int(number), {})[name] = array
    return found


def _named(tensors: Mapping[str, NDArray[np.float32]], prefix: str, names: list[str]) -> Parameters:
    return {name: tensors[prefix + name] for name in names}

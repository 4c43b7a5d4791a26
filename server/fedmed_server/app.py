"""The coordinator's composition root: a run over any of Flower's grids."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fedmed_common import params, privacy
from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, FedmedError, Interrupted, QuorumError, TransportLost
from fedmed_common.files import write_atomically
from fedmed_common.models import start_model
from fedmed_common.wire_arrays import shelved
from fedmed_server import agreement, history
from fedmed_server.channel import Channel, Member, never
from fedmed_server.cohort import Roll, call_roll
from fedmed_server.folders import WEIGHTS
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteResult, missed
from fedmed_server.receipts import Receipts
from fedmed_server.rounds import Measured, evaluate, now, rounds
from fedmed_server.state import RunState, best_round, load_state, model_file, save_parameters, save_state
from fedmed_server.survey.asking import survey
from fedmed_server.survey.sheet import write_sheet
from fedmed_strategies.layers import layers_of
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.server_half import shared
from fedmed_strategies.validity import refuse_network

_POLL_SECONDS, _DEPLOYED_POLL_SECONDS = 0.05, 0.25
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOST_SENTENCES = 100
_PACKAGES = ("fedmed", "flwr", "torch", "monai", "numpy")


def _ignore(_site: str, _phase: str) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run to start, or to go on with where its folder holds a checkpoint.

    ``sites``: wait for so many nodes. ``expected``: the registered names of the sites that a deployed run was launched with;
    only these are asked, and the run goes on without those that do not come, as far as the quorum allows. Where it does not,
    such a run is interrupted, for sites come back; a simulation has failed. ``is_revoked(site)``: as in :class:`Channel`.
    ``on_state``: given each round's state once its checkpoint is written, before the history knows of it.
    ``evaluated``: the rounds after which the model is measured; None: as the experiment says.
    ``receipts``: of the sites' privacy ledgers, over all runs. ``regional``: its sites are regions.
    ``on_loaded``: told what became of the file that the weights start from, and how much of the network is trained.
    """

    experiment: Experiment
    folder: Path
    command: str
    sites: int | None = None
    expected: tuple[str, ...] | None = None
    is_revoked: Callable[[str], bool] = never
    evaluated: frozenset[int] | None = None
    watch: Callable[[str, str], None] = _ignore
    on_round: Callable[[RoundDone], None] = lambda _record: None
    on_state: Callable[[RunState], None] = lambda _state: None
    on_loaded: Callable[[Sequence[str]], None] = lambda _sentences: None
    receipts: Receipts = field(default_factory=Receipts)
    regional: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def run(self) -> str:
        """The run's id: its folder's name."""
        return self.folder.name


def run_federation(grid: Grid, request: RunRequest) -> RunEnded:
    """Run, or resume, the federation to its end; what happened is in the folder's history.

    Raises:
        FedmedError: the run cannot go on; the history's last line says so, and a later call resumes it.
    """
    file = request.folder / history.FILE
    try:
        ended = _run(grid, request, file)
    except (Exception, KeyboardInterrupt) as error:
        status = _status_after(error, request)
        ended = RunEnded(time=now(), status=status, best_round=best_round(request.folder))
        history.append(file, ended)
        raise
    history.append(file, ended)
    return ended


def _status_after(error: BaseException, request: RunRequest) -> str:
    """How a run ended that did not finish; of errors that are not ours, the kind alone. A full disk passes, as an outage does."""
    if isinstance(error, TransportLost) and not request.stop.is_set():
        return f"interrupted: {error}"
    if isinstance(error, QuorumError) and request.expected is not None:
        return "interrupted: " + str(error).partition("\n")[0]
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"interrupted: {error.strerror}"
    return f"failed: {error if isinstance(error, FedmedError) else type(error).__name__}"


def _run(grid: Grid, request: RunRequest, file: Path) -> RunEnded:
    experiment = request.experiment
    recipe = recipe_of(experiment)
    privacy.check(experiment, also=recipe.spent(experiment))
    state, model = _initial_state(request)
    layers = layers_of(model, experiment.model.head, experiment.plan.outputs)
    refuse_network(recipe, experiment, model)
    channel = Channel(
        grid=grid,
        experiment=experiment,
        run=request.run,
        watch=request.watch,
        stop=request.stop,
        expected=request.expected,
        is_revoked=request.is_revoked,
        poll_seconds=_POLL_SECONDS if request.expected is None else _DEPLOYED_POLL_SECONDS,
        trained=shared(recipe, layers),
        layers=layers,
        model=model,
        evaluated=request.evaluated,
        receipts=request.receipts,
        folder=request.folder,
        regional=request.regional,
    )
    _heal_history(file, state)
    roll = call_roll(channel, request.sites)
    roster = roll.members
    state = replace(state, missed=state.missed + _changes(file, state, roll, experiment.rounds))
    history.append(file, _started(request, state, roster))
    if not experiment.rounds:
        sheet = survey(channel, recipe, roster, state.missed)
        write_sheet(request.folder, sheet)
        return RunEnded(time=now(), status=_status(sheet.missed), best_round=0)
    for result in rounds(channel, recipe, roster, state):
        state = result.state
        save_state(request.folder, state)
        request.on_state(state)
        history.append(file, result.record)
        request.on_round(result.record)
    return _finish(channel, request, roster, state)


def _initial_state(request: RunRequest) -> tuple[RunState, torch.nn.Module]:
    """The checkpoint's, or that of round 0; and the network.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another experiment.
        ConfigError: the weights to start from cannot be read, or none of them fits.
    """
    digest = hashlib.sha256(request.experiment.order_text().encode()).hexdigest()
    state = load_state(request.folder)
    weights = request.experiment.transfer.weights if state is None else None
    model, loaded = start_model(request.experiment, weights)
    told = [] if loaded is None else loaded.sentences()
    if state is None and (frozen := _frozen(model, loaded is None)):
        told.append(frozen)
    if told:
        report = {} if loaded is None else asdict(loaded)
        write_atomically(
            request.folder / WEIGHTS, json.dumps({**report, "sentences": told}, indent=1).encode()
        )
        request.on_loaded(told)
    if state is None:
        state = RunState(
            round=0,
            parameters=params.from_model(model),
            agreed=agreement.first(request.experiment),
            experiment=digest,
        )
    if state.experiment != digest:
        raise CheckpointError(
            f"{request.folder}: the experiment was changed after round {state.round} of it was done\n"
            "  fix: undo the change, or start a new run"
        )
    return replace(state, parameters=shelved(dict(state.parameters))), model


def _frozen(model: torch.nn.Module, drawn: bool) -> str:
    """What of the network is not trained; nothing where all of it is."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    every, learns = sum(size for _, size in sizes), sum(size for trained, size in sizes if trained)
    if every == learns:
        return ""
    why = ", which were drawn at random: transfer.weights would name better ones" if drawn else ""
    return f"{learns:,} of {every:,} parameters are trained; the others keep their values{why}"


def _finish(channel: Channel, request: RunRequest, roster: tuple[Member, ...], state: RunState) -> RunEnded:
    models = {"last": Measured.last(state)}
    if state.best_parameters is not None:
        models["best"] = Measured(
            round=state.best_round, parameters=state.best_parameters, decision=state.best_decision
        )
    test: dict[str, tuple[SiteResult, ...]] = {}
    for name, model in models.items():
        about = {
            "experiment": request.experiment.order_text(),
            "run": request.run,
            "round": str(model.round),
            "model": name,
            "decision": json.dumps({key: array.tolist() for key, array in model.decision.items()}),
        }
        save_parameters(model_file(request.folder, name), model.parameters, about)
        if name == "best" and model.round == state.round:
            test[name] = test["last"]
        else:
            test[name] = evaluate(channel, roster, model, "test")
    lost = [
        sentence
        for name, results in test.items()
        for sentence in missed(results, f"test of the {name} model, of round {models[name].round}")
    ]
    return RunEnded(
        time=now(), status=_status((*state.missed, *lost)), best_round=state.best_round, test=test
    )


def _status(sentences: Sequence[str]) -> str:
    """How a run ended that reached its end; what is too much for a sentence is in the report, one by one."""
    if not sentences:
        return "completed"
    more = len(sentences) - _MOST_SENTENCES
    told = [
        *sentences[:_MOST_SENTENCES],
        *([f"and {more:,} more, which the report counts"] if more > 0 else []),
    ]
    return "degraded: " + "; ".join(told)


def _heal_history(file: Path, state: RunState) -> None:
    """Write the checkpoint's round where a crash kept it out of the history."""
    if not state.record:
        return
    known = {record.round for record in history.read(file) if isinstance(record, RoundDone)}
    if state.round not in known:
        history.append(file, RoundDone.model_validate_json(state.record))


def _changes(file: Path, state: RunState, roll: Roll, rounds: int) -> tuple[str, ...]:
    """Who is not there as the run goes on, and what else has changed, as sentences that its state does not hold yet."""
    what = f"round {state.round + 1}" if state.round < rounds else "the test" if rounds else "the survey"
    sentences = [f"{name} missed the roll call of {what}: {why}" for name, why in roll.absent.items()]
    began = [record for record in history.read(file) if isinstance(record, RunStarted)]
    began = [record for record in began if record.resumed_from_round == 0]
    if state.round and began:
        before = {facts.name: facts.patients for facts in began[-1].sites}
        present = {member.name: member.facts.patients for member in roll.members}
        sentences += [
            f"{name} was there when training began and is not any more"
            for name in before.keys() - present.keys() - roll.absent.keys()
        ]
        sentences += [f"{name} was not there when training began" for name in present.keys() - before.keys()]
        sentences += [
            f"{name} has other patients than when training began"
            for name in before.keys() & present.keys()
            if before[name] != present[name]
        ]
    return tuple(sentence for sentence in sorted(sentences) if sentence not in state.missed)


def _started(request: RunRequest, state: RunState, roster: tuple[Member, ...]) -> RunStarted:
    environment = {package: version(package) for package in _PACKAGES}
    environment |= {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return RunStarted(
        time=now(),
        run_id=request.run,
        resumed_from_round=state.round,
        sites=tuple(member.facts for member in roster),
        command=request.command,
        environment=environment,
        parameters=params.count(state.parameters),
    )

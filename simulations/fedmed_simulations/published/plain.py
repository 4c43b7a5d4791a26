"""A recipe on a plain network and tensors in memory: the algebra of a run without images, processes and the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmed_common import params
from fedmed_common.errors import ConfigError
from fedmed_common.params import Parameters
from fedmed_strategies.aggregators.mean import Mean
from fedmed_strategies.combining import ServerOptimizer
from fedmed_strategies.corrections.dyn import Dyn
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.corrections.scaffold import Scaffold
from fedmed_strategies.pieces import Answer, Layers, Memory, Scene, Site, SiteHalf, Work
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round, down, down_to
from fedmed_strategies.weights.fixed import ByPatients, Equal

_SUPPORTED = (Mean, Dyn, Prox, Scaffold, ServerOptimizer, ByPatients, Equal)

PlainLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of a batch -> its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A site's training patients: ``inputs`` (N, F) and ``targets`` (N, ...)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How each site trains: ``steps`` of plain SGD a round, on batches of so many patients."""

    rounds: int
    steps: int
    batch: int
    rate: float


def federate(
    recipe: Recipe,
    network: nn.Module,
    tables: Mapping[str, Table],
    course: Course,
    loss: PlainLoss,
    seed: int,
) -> Parameters:
    """The global parameters after the last round; those that ``network`` has are the first.

    All sites take part in every round. A site goes through its patients in a random order, all of them before any comes again,
    also over the end of a round; the last batch of a pass may be smaller.

    Raises:
        ConfigError: the recipe needs what only a whole run has.
    """
    _refuse(recipe)
    parameters = params.from_model(network)
    sites = tuple(Site(name=name, patients=len(table.inputs)) for name, table in tables.items())
    batches = {
        site.name: _batches(site.patients, course.batch, np.random.default_rng([seed, number]))
        for number, site in enumerate(sites)
    }
    memory = Memory()
    kept = {site.name: Memory() for site in sites}
    for number in range(1, course.rounds + 1):
        scene = _scene(tuple(parameters), sites, course, number)
        turn = Round(recipe, scene, parameters, memory)
        sent = down(recipe, memory, scene)
        for site in sites:
            params.to_model(parameters, network)
            extra = down_to(recipe, site.name, memory, scene)
            work = _work(network, parameters, site, scene, course, {**sent, **extra}, kept[site.name])
            halves = [half for piece in recipe.pieces() if (half := piece.at_site(work)) is not None]
            _train(network, tables[site.name], batches[site.name], course, loss, halves)
            answer, kept[site.name] = _answer(site, params.delta(network, parameters), halves)
            turn.add(answer)
        parameters, memory = turn.finish()
    params.to_model(parameters, network)
    return parameters


def _scene(trained: tuple[str, ...], sites: tuple[Site, ...], course: Course, number: int) -> Scene:
    return Scene(
        classes=("score",),
        background=False,
        layers=Layers(trained=trained),
        sites=sites,
        round=number,
        rounds=course.rounds,
        rate=course.rate,
    )


def _refuse(recipe: Recipe) -> None:
    beyond = [piece.name for piece in recipe.pieces() if not isinstance(piece, _SUPPORTED)]
    if beyond or recipe.secure:
        raise ConfigError(
            f"'{(beyond or ['secure'])[0]}' needs more than a plain network and its tensors",
            field="recipe",
            fix="run it with 'fedmed simulate'",
        )


def _batches(patients: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        order = rng.permutation(patients)
        yield from (order[start : start + size] for start in range(0, patients, size))


def _work(
    network: nn.Module,
    parameters: Parameters,
    site: Site,
    scene: Scene,
    course: Course,
    sent: Parameters,
    kept: Memory,
) -> Work:
    return Work(
        model=network,
        anchor={name: torch.from_numpy(array.copy()) for name, array in parameters.items()},
        layers=scene.layers,
        kind="single",
        presence=np.zeros(1, np.int64),
        annotated=np.ones(1, bool),
        patients=site.patients,
        round=scene.round,
        rounds=scene.rounds,
        steps=course.steps,
        rate=course.rate,
        down=sent,
        memory=kept,
    )


def _train(
    network: nn.Module,
    table: Table,
    batches: Iterator[NDArray[np.int64]],
    course: Course,
    loss: PlainLoss,
    halves: Sequence[SiteHalf],
) -> None:
    optimizer = torch.optim.SGD(network.parameters(), course.rate)
    for half in halves:
        half.begin()
    for step in range(1, course.steps + 1):
        rows = torch.from_numpy(next(batches))
        optimizer.zero_grad()
        loss(network(table.inputs[rows]), table.targets[rows]).backward()  # type: ignore[no-untyped-call]
        for half in halves:
            half.gradients(step)
        optimizer.step()


def _answer(site: Site, delta: Parameters, halves: Sequence[SiteHalf]) -> tuple[Answer, Memory]:
    sums, scalars, memory = Parameters(), dict[str, float](), Memory()
    for half in halves:
        left = half.finish(delta)
        sums |= left.sums
        scalars |= left.scalars
        memory |= left.memory
    return Answer(site=site, delta=delta, sums=sums, scalars=scalars), memory

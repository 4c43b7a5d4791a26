"""A recipe at the server: what sites are sent, and how their answers become new parameters, one answer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import QuorumError
from fedmed_common.secure.circle import Party
from fedmed_strategies import secure
from fedmed_strategies.combining import Gathering, Weighed
from fedmed_strategies.pieces import Answer, Arrays, Done, Layers, Memory, Reported, Scene, add_up, own
from fedmed_strategies.recipe import Recipe


def down(recipe: Recipe, memory: Memory, scene: Scene) -> Arrays:
    """What all sites are sent beside the parameters: gathered statistics that some piece asks for, and what pieces send."""
    sent: Arrays = {}
    for piece in recipe.pieces():
        sent |= piece.down(memory, scene)
        for statistic in piece.statistics:
            if statistic.told_to_sites:
                sent |= {
                    f"{statistic.name}/{name}": array for name, array in own(memory, statistic.name).items()
                }
    return {name: np.asarray(array, np.float32) for name, array in sent.items()}


def down_to(recipe: Recipe, site: str, memory: Memory, scene: Scene) -> Arrays:
    """What one site is sent besides."""
    return {
        name: array for piece in recipe.pieces() for name, array in piece.down_to(site, memory, scene).items()
    }


def sums_of(recipe: Recipe, template: Arrays) -> Arrays:
    """Arrays of the shapes of all sums that a site sends with its update."""
    return {name: array for piece in recipe.pieces() for name, array in piece.sums(template).items()}


@dataclass
class Round:
    """One round's answers on their way to new parameters. Add them in the roster's order; then :meth:`finish`.

    ``parameters``: those that sites change, as they were sent. One update is in memory at a time, unless a filter or a rule needs
    all of them. The server's own work never changes what it was given.
    """

    recipe: Recipe
    scene: Scene
    parameters: Arrays
    memory: Memory
    _updates: list[Weighed] = field(default_factory=list)
    _reported: list[tuple[Answer, float]] = field(default_factory=list)
    _sums: Arrays = field(default_factory=dict)
    _within: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._weigher = self.recipe.weights.begin(self.scene, self.memory)
        self._gathering: Gathering = self.recipe.aggregator.begin(self.parameters, self.scene, self.memory)
        privacy = self.recipe.central_privacy
        self._clip = privacy.clip_of(self.memory) if privacy is not None else 0.0

    def add(self, answer: Answer) -> None:
        """Add one answer. An update whose weight is 0 moves nothing."""
        buffered = self.recipe.buffered
        fresh = 1.0 if buffered is None else buffered.freshness(answer.staleness)
        weight = self._weigher.weigh(answer) * fresh
        self._reported.append((_without_arrays(answer), weight))
        add_up(self._sums, answer.sums)
        update = Weighed(delta=answer.delta, weight=weight, site=answer.site, freshness=fresh)
        if self.recipe.central_privacy is not None:
            update, within = self.recipe.central_privacy.clip(update, self._clip)
            self._within.append(within)
        if weight <= 0:
            return
        if self.recipe.filters:
            self._updates.append(update)
        else:
            self._gathering.add(update)

    def finish(self) -> tuple[Arrays, Memory]:
        """The new parameters, and what the server keeps for the next round.

        Raises:
            QuorumError: no answer moves anything, too few are there for a robust rule, or what they make is no number.
        """
        weights = sum(weight for _, weight in self._reported)
        if not weights > 0:
            raise QuorumError(
                f"no answer of round {self.scene.round} counts: '{self.recipe.weights.name}' gives each a weight of 0\n"
                "  fix: ask more sites in a round (federation.fraction), or see to the recipe's weights"
            )
        step = self._step()
        parameters, kept = self.recipe.server_optimizer.step(self.parameters, step, self.memory, self.scene)
        memory = {**self.memory, **kept}
        answers = [
            Reported(site=answer.site, share=weight / weights, scalars=answer.scalars)
            for answer, weight in self._reported
        ]
        for piece in self.recipe.pieces():
            done = Done(
                parameters=parameters,
                step=step,
                sums=self._sums,
                answers=answers,
                scene=self.scene,
                memory=memory,
            )
            parameters, kept = piece.settle(done)
            memory |= kept
        for name, array in {**parameters, **memory}.items():
            if not np.isfinite(array).all():
                raise QuorumError(
                    f"the round's answers make '{name}' infinite or no number; nothing of them is kept\n"
                    "  fix: see which site's updates or numbers are odd, and leave it out; 'fedmed resume' does the round again"
                )
        return parameters, memory

    def _step(self) -> Arrays:
        return self._noisy(self.combined())

    def combined(self) -> Arrays:
        """The answers as one update: their weighted mean, or what the recipe's rules make of them.

        Raises:
            QuorumError: too few are there for a robust rule.
        """
        total = self._weigher.total()
        if not self.recipe.filters:
            return self._gathering.result(total)
        updates = self._updates
        for rule in self.recipe.filters:
            updates = rule.keep(updates)
        before, after = (sum(update.weight for update in some) for some in (self._updates, updates))
        for update in updates:
            self._gathering.add(update)
        return self._gathering.result(total if len(updates) == len(self._updates) else total * after / before)

    def _noisy(self, step: Arrays) -> Arrays:
        privacy = self.recipe.central_privacy
        if privacy is None:
            return step
        weights = [weight for _, weight in self._reported]
        noisy = privacy.noisy(step, self._clip, max(weights) / sum(weights))
        self.memory = {**self.memory, **privacy.next_clip(self._clip, self._within)}
        return noisy


@dataclass
class SecureRound(Round):
    """A round whose answers are summed in secret: they hold no arrays, and :meth:`opened` is given the sum."""

    _opened: Arrays = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Note who answered."""
        self._reported.append((_without_arrays(answer), self._weigher.weigh(answer)))

    def open(self, arrays: Mapping[str, NDArray[np.float64]], party: Party) -> Arrays:
        """Take the sum over those who answered, by the names of the layout's blocks: what the round's update is."""
        shares = secure.shares_of(self.recipe, party)
        left = sum(shares[answer.site.name] for answer, _ in self._reported)
        rows, background = self.scene.layers.rows, int(self.scene.background)
        self._opened, self._sums = secure.step_of(arrays, left, rows, background)
        return self._opened

    def _step(self) -> Arrays:
        return self._opened


def _without_arrays(answer: Answer) -> Answer:
    return Answer(site=answer.site, delta={}, scalars=answer.scalars)


def shared(recipe: Recipe, layers: Layers) -> tuple[str, ...]:
    """The arrays that an update holds: what training changes, but for what stays at the site."""
    kept = recipe.personal.keeps(layers) if recipe.personal is not None else frozenset()
    return tuple(name for name in layers.trained if name not in kept)

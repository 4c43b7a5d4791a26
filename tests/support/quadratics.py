"""A federation whose sites have quadratic losses, so that every optimum is known: real recipes, halves and rounds, no patients.

Arrays are in double precision, which the pieces keep where they do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from federated import scene
from numpy.typing import NDArray

from fedmed_strategies.pieces import Answer, Layers, Left, Scene, Site, Work, own, under
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round, down, down_to

Array = NDArray[Any]
Attack = Callable[[Array], Array]
"""An update -> what a hostile site sends in its place."""


def flipped(delta: Array) -> Array:
    """The update with its sign changed."""
    return -delta


class Point(torch.nn.Module):
    """A network that is its parameters."""

    def __init__(self, values: Array) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(np.array(values)))


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """Site k's loss is (w - a_k)' H_k (w - a_k) / 2 + a constant. ``hessians``: ``(K, D, D)``; ``optima``: ``(K, D)``, a_k.

    ``steps``: of each site in a round; ``hostile``: by site what it makes of its update. ``floors``: the least loss of each."""

    hessians: Array
    optima: Array
    patients: tuple[int, ...]
    steps: tuple[int, ...]
    rate: float = 0.1
    momentum: float = 0.0
    hostile: Mapping[int, Attack] = field(default_factory=dict)

    @classmethod
    def drawn(
        cls, seed: int = 0, *, sites: int = 6, spread: float = 1.0, alike: float = 0.0, **fields: Any
    ) -> Quadratics:
        """Of five numbers, with curvatures from 0.5 to 2. ``alike``: how far the sites' Hessians are drawn to their mean."""
        rng = np.random.default_rng(seed)
        hessians = np.stack([_definite(rng) for _ in range(sites)])
        hessians = (1 - alike) * hessians + alike * hessians.mean(0)
        optima = 1.0 + spread * rng.normal(size=(sites, 5))
        about = {"patients": (10,) * sites, "steps": (5,) * sites} | fields
        return cls(hessians=hessians, optima=optima, **about)

    def optimum(self, weights: Array | None = None) -> Array:
        """Where the weighted sum of the honest sites' losses is least; by patients."""
        share = np.array(self.patients, float) if weights is None else np.asarray(weights, float)
        honest = [k for k in range(len(share)) if k not in self.hostile]
        curvature = sum(share[k] * self.hessians[k] for k in honest)
        slope = sum(share[k] * self.hessians[k] @ self.optima[k] for k in honest)
        return np.asarray(np.linalg.solve(curvature, slope))

    def loss(self, site: int, w: Array) -> float:
        away = w - self.optima[site]
        return float(away @ self.hessians[site] @ away) / 2

    def only(self, sites: range) -> Quadratics:
        """The federation of some of the sites, all honest."""
        keep = list(sites)
        return replace(
            self,
            hessians=self.hessians[keep],
            optima=self.optima[keep],
            patients=tuple(self.patients[k] for k in keep),
            steps=tuple(self.steps[k] for k in keep),
            hostile={},
        )

    def run(self, recipe: Recipe, rounds: int, start: Array | None = None) -> Run:
        """So many rounds of a recipe, from 0 or ``start``."""
        run = Run(self, recipe, np.zeros(5) if start is None else np.asarray(start))
        for number in range(1, rounds + 1):
            run.round(number, rounds)
        return run


class Run:
    """What a run of a toy has at its server and at its sites."""

    def __init__(self, toy: Quadratics, recipe: Recipe, start: Array) -> None:
        self.toy, self.recipe, self.w = toy, recipe, start
        self.memory: dict[str, Array] = {}
        self.kept: list[dict[str, Array]] = [{} for _ in toy.patients]
        self.sites = [Site(name=f"s{k}", patients=count) for k, count in enumerate(toy.patients)]

    def round(self, number: int, rounds: int) -> None:
        about = scene(self.sites, {"w": self.w}, round=number, rounds=rounds, rate=self.toy.rate)
        playing = Round(self.recipe, about, {"w": self.w}, self.memory)
        for k, site in enumerate(self.sites):
            sent = down(self.recipe, self.memory, about) | down_to(self.recipe, site.name, self.memory, about)
            delta, left = self._trained(k, sent, about)
            delta = self.toy.hostile.get(k, lambda honest: honest)(delta)
            playing.add(Answer(site=site, delta={"w": delta}, sums=left.sums, scalars=left.scalars))
        parameters, self.memory = playing.finish()
        self.w = parameters["w"]

    def own(self, k: int) -> Array:
        """The network of site k's own."""
        return self.kept[k]["own/w"]

    def _trained(self, k: int, sent: dict[str, Array], about: Scene) -> tuple[Array, Left]:
        toy, instead = self.toy, getattr(self.recipe.personal, "mode", "") == "instead"
        start = own(self.kept[k], "own").get("w", self.w) if instead else self.w
        model = Point(start)
        work = self._work(k, model, sent, about)
        halves = [half for piece in self.recipe.pieces() if (half := piece.at_site(work)) is not None]
        hessian, optimum = torch.from_numpy(toy.hessians[k]), torch.from_numpy(toy.optima[k])
        velocity = torch.zeros(len(start), dtype=torch.float64)
        for half in halves:
            half.begin()
        for step in range(1, toy.steps[k] + 1):
            model.w.grad = hessian @ (model.w.detach() - optimum)
            for half in halves:
                half.gradients(step)
            velocity = toy.momentum * velocity + model.w.grad
            model.w.data -= toy.rate * velocity
        after = model.w.detach().numpy().copy()
        left = [half.finish({"w": after - self.w}) for half in halves]
        self.kept[k] = {name: array for one in left for name, array in one.memory.items()}
        self.kept[k] |= under("own", {"w": after}) if instead else {}
        sums = {name: array for one in left for name, array in one.sums.items()}
        scalars = {name: value for one in left for name, value in one.scalars.items()}
        return after - self.w, Left(sums=sums, scalars=scalars)

    def _work(self, k: int, model: Point, sent: dict[str, Array], about: Scene) -> Work:
        toy = self.toy
        return Work(
            model=model,
            anchor={"w": torch.from_numpy(self.w.copy())},
            layers=Layers(trained=("w",)),
            kind="single",
            presence=np.ones(1, np.int64),
            annotated=np.ones(1, bool),
            patients=toy.patients[k],
            round=about.round,
            rounds=about.rounds,
            steps=toy.steps[k],
            rate=toy.rate,
            momentum=toy.momentum,
            down=sent,
            memory=self.kept[k],
            measure=lambda: toy.loss(k, model.w.detach().numpy()),
        )


def _definite(rng: np.random.Generator) -> Array:
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    return np.asarray(basis @ np.diag(rng.uniform(0.5, 2.0, 5)) @ basis.T)

"""A recipe's server half played on updates that a test hands it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmed_common.params import Parameters
from fedmed_strategies.pieces import Answer, Layers, Memory, Scene, Site
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round


def scene(
    sites: Sequence[Site], template: Parameters, *, round: int = 1, rounds: int = 10, **fields: object
) -> Scene:
    """A round of these sites, of a network whose arrays are all trained."""
    about: dict[str, object] = {"classes": ("a", "b", "c"), "background": False, "rate": 0.1}
    about |= {"layers": Layers(trained=tuple(template))} | fields
    return Scene(sites=tuple(sites), round=round, rounds=rounds, **about)  # type: ignore[arg-type]


def play(
    recipe: Recipe,
    start: Parameters,
    updates: Mapping[str, tuple[int, Parameters]],
    memory: Memory | None = None,
) -> Parameters:
    """New parameters after one round. ``updates``: by site its patients and its update."""
    sites = [Site(name=name, patients=patients) for name, (patients, _) in updates.items()]
    done = Round(recipe, scene(sites, start), start, memory or {})
    for site in sites:
        done.add(Answer(site=site, delta=updates[site.name][1]))
    return done.finish()[0]

"""The recipes that an experiment can name."""

from __future__ import annotations

from fedmed_strategies.recipe import Recipe, add_mean, by_patients

RECIPES: dict[str, Recipe] = {
    # McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1.
    "fedavg": Recipe(name="fedavg", weigh=by_patients, server_step=add_mean),
}

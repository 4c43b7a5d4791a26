"""The recipes that an experiment can name."""

from __future__ import annotations

from fedmed_common.lookup import find
from fedmed_strategies.recipe import Recipe, add_mean, by_patients

RECIPES: dict[str, Recipe] = {
    # McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1.
    "fedavg": Recipe(name="fedavg", weigh=by_patients, server_step=add_mean),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    return find(RECIPES, name, field="recipe.name")

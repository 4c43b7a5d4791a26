"""Whether the names in an experiment stand for something, before anything of it is begun."""

from __future__ import annotations

from pathlib import Path

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.lookup import find
from fedmed_common.tasks import LOSSES, TASKS
from fedmed_strategies.presets import RECIPES


def check_names(experiment: Experiment, file: Path) -> None:
    """Look every name up.

    Raises:
        ConfigError: names the file, the field and the nearest known name.
    """
    try:
        find(TASKS, experiment.task.name, field="task.name")
        find(LOSSES, experiment.task.loss, field="task.loss")
        find(RECIPES, experiment.recipe.name, field="recipe.name")
    except ConfigError as error:
        raise ConfigError(error.problem, file=file, field=error.field, fix=error.fix) from None

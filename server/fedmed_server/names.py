"""Whether the names in an experiment stand for something, before anything of it is begun."""

from __future__ import annotations

from pathlib import Path

from fedmed_common import privacy
from fedmed_common.config import Experiment, Transfer
from fedmed_common.errors import ConfigError
from fedmed_common.lookup import find
from fedmed_common.models import require_packages, start_model
from fedmed_common.tasks import TASKS, losses_of
from fedmed_common.weight_files import find_weights
from fedmed_server import flower_strategies
from fedmed_strategies.presets import recipe_of


def check_names(experiment: Experiment, file: Path) -> None:
    """Look every name up, and whether privacy can be what is asked.

    Raises:
        ConfigError: names the file, the field and the nearest known name or the fix.
    """
    try:
        find(TASKS, experiment.task.name, field="task.name")
        find(losses_of(experiment.task), experiment.task.loss, field="task.loss")
        recipe = recipe_of(experiment)
        flower_strategies.check(recipe)
        require_packages(experiment)
    except ConfigError as error:
        raise ConfigError(error.problem, file=file, field=error.field, fix=error.fix) from None
    privacy.check(experiment, file, recipe.spent(experiment))


def check_start(experiment: Experiment, file: Path) -> None:
    """Whether a new run can start as ``transfer`` asks: its weights fit, and its patterns name something.

    A run that goes on needs the weights no more.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    if experiment.transfer == Transfer():
        return
    try:
        if experiment.transfer.weights is not None:
            find_weights(experiment.transfer.weights)
        start_model(experiment, experiment.transfer.weights)
    except ConfigError as error:
        raise ConfigError(error.problem, file=file, field=error.field, fix=error.fix) from None

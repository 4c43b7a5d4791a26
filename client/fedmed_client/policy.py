"""What this hospital permits. The coordinator's wishes are checked against it, and refused by the rule's name."""

from __future__ import annotations

from collections.abc import Mapping

from fedmed_common.config import Experiment, Policy
from fedmed_common.errors import PolicyRefusal
from fedmed_common.metrics import Metrics
from fedmed_common.site_config import Device


def check(policy: Policy, experiment: Experiment, round_number: int = 0) -> None:
    """Refuse an order whose experiment the policy does not permit, before anything is built or read for it.

    ``round_number``: the order's; it counts as well as the experiment's rounds.

    Raises:
        PolicyRefusal: names the rule.
    """
    named = (
        ("tasks", policy.tasks, experiment.task.name),
        ("models", policy.models, experiment.model.name),
        ("recipes", policy.recipes, experiment.recipe.name),
    )
    for rule, permitted, asked in named:
        if permitted is not None and asked not in permitted:
            raise PolicyRefusal(rule, f"'{asked}' is not among {list(permitted)}")
    if experiment.train.steps > policy.maximum_steps:
        raise PolicyRefusal(
            "maximum_steps", f"{experiment.train.steps} steps are asked; {policy.maximum_steps} are permitted"
        )
    rounds = max(experiment.rounds, round_number)
    if rounds > policy.maximum_rounds:
        raise PolicyRefusal(
            "maximum_rounds", f"{rounds} rounds are asked; {policy.maximum_rounds} are permitted"
        )


def check_device(device: Device, experiment: Experiment) -> None:
    """Refuse an order that insists on a GPU where the site gives none.

    Raises:
        PolicyRefusal: names the rule.
    """
    asked = experiment.train.device
    if device.gpu == "none" and asked.startswith("cuda"):
        raise PolicyRefusal("gpu", f"'{asked}' is asked; device.gpu is 'none'")


def check_statistics(policy: Policy) -> None:
    """Refuse to say who takes part where not even counts of patients may leave.

    Raises:
        PolicyRefusal: names the rule.
    """
    if policy.statistics is not None and "patients" not in policy.statistics:
        raise PolicyRefusal("statistics", "'patients' is not permitted")


def check_patients(policy: Policy, patients: int) -> None:
    """Refuse to train on fewer patients than the policy permits.

    Raises:
        PolicyRefusal: names the rule.
    """
    if patients < policy.least_patients:
        raise PolicyRefusal(
            "least_patients", f"{patients} training patients; at least {policy.least_patients} are required"
        )


def releasable(policy: Policy, metrics: Metrics) -> Metrics:
    """The metrics of patients that may leave: permitted ones over at least ``least_patients``, whom their weights count.

    Where fewer show a class, its false positives stay too: their weight would tell how many show it.
    """
    enough = {name: mean for name, mean in metrics.items() if mean.weight >= policy.least_patients}
    kept_back = {name.partition("/")[2] for name in metrics.keys() - enough.keys() if not _where_absent(name)}
    return {
        name: mean
        for name, mean in permitted(policy, enough).items()
        if not (_where_absent(name) and name.partition("/")[2] in kept_back)
    }


def permitted(policy: Policy, metrics: Metrics) -> Metrics:
    """The metrics that the policy names: by their whole name, or by what stands before the class."""
    if policy.metrics is None:
        return metrics
    return {
        name: mean
        for name, mean in metrics.items()
        if name in policy.metrics or name.partition("/")[0] in policy.metrics
    }


def releasable_counts(policy: Policy, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of patients by class; one that is positive but less than ``least_patients`` becomes -1, which says only that.

    Empty where the policy does not permit ``presence``.
    """
    if policy.statistics is not None and "presence" not in policy.statistics:
        return {}
    return {
        name: count if count == 0 or count >= policy.least_patients else -1 for name, count in counts.items()
    }


def _where_absent(metric: str) -> bool:
    """Whether the metric is over the patients who do not show its class."""
    return metric.startswith("false_positive/")

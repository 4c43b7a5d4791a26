"""What this hospital permits. The coordinator's wishes are checked against it, and refused by the rule's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmed_common.config import Experiment, Policy, Privacy, RecipeChoice
from fedmed_common.errors import PolicyRefusal
from fedmed_common.metrics import Metrics, score_called
from fedmed_common.site_config import Device


def check(policy: Policy, experiment: Experiment, round_number: int = 0) -> None:
    """Refuse an order whose experiment the policy does not permit, before anything is built or read for it.

    ``round_number``: the order's; it counts as well as the experiment's rounds.

    Raises:
        PolicyRefusal: names the rule.
    """
    check_recipe(policy, experiment.recipe)
    named = (
        ("tasks", policy.tasks, experiment.task.name),
        ("models", policy.models, experiment.model.name),
    )
    for rule, permitted, asked in named:
        if permitted is not None and asked not in permitted:
            raise PolicyRefusal(rule, f"'{asked}' is not among {list(permitted)}")
    check_privacy(policy, experiment.privacy)
    if policy.require_secure_aggregation and experiment.secure_aggregation is None:
        raise PolicyRefusal("require_secure_aggregation", "the experiment has no [secure_aggregation]")
    check_steps(policy, experiment.train.steps)
    rounds = max(experiment.rounds, round_number)
    if rounds > policy.maximum_rounds:
        raise PolicyRefusal(
            "maximum_rounds", f"{rounds} rounds are asked; {policy.maximum_rounds} are permitted"
        )


def check_steps(policy: Policy, steps: int) -> None:
    """Refuse more steps in a round than the policy permits.

    Raises:
        PolicyRefusal: names the rule.
    """
    if steps > policy.maximum_steps:
        raise PolicyRefusal("maximum_steps", f"{steps} steps are asked; {policy.maximum_steps} are permitted")


def check_recipe(policy: Policy, choice: RecipeChoice) -> None:
    """Refuse a recipe of which any part is not permitted.

    Raises:
        PolicyRefusal: names the rule.
    """
    for name in (choice.name, *choice.also):
        if policy.recipes is not None and name not in policy.recipes:
            raise PolicyRefusal("recipes", f"'{name}' is not among {list(policy.recipes)}")


def check_scalars(policy: Policy, scalars: Iterable[str]) -> None:
    """Refuse a recipe that needs numbers of this site that the policy does not let out.

    Raises:
        PolicyRefusal: names the rule.
    """
    for name in scalars:
        if policy.metrics is not None and name not in policy.metrics:
            raise PolicyRefusal(
                "metrics", f"the recipe needs '{name}', which is not among {list(policy.metrics)}"
            )


def check_privacy(policy: Policy, settings: Privacy | None) -> None:
    """Refuse training with less privacy than the policy asks for, as far as the experiment says itself.

    Raises:
        PolicyRefusal: names the rule.
    """
    if settings is None:
        if policy.require_privacy:
            raise PolicyRefusal("require_privacy", "the experiment has no [privacy]")
        return
    limited = policy.maximum_epsilon is not None or policy.maximum_run_epsilon is not None
    most = (
        ("maximum_epsilon", settings.epsilon, policy.maximum_epsilon),
        ("maximum_run_epsilon", settings.epsilon, policy.maximum_run_epsilon),
        ("budget_delta", settings.delta, policy.budget_delta if limited else None),
        ("maximum_clipping", settings.clipping_norm, policy.maximum_clipping),
        ("maximum_sampling_rate", settings.sampling_rate, policy.maximum_sampling_rate),
    )
    for rule, asked, permitted in most:
        if permitted is not None and asked > permitted:
            raise PolicyRefusal(rule, f"{asked:g} is asked; {permitted:g} is permitted")
    if settings.noise_multiplier is not None:
        check_noise(policy, settings.noise_multiplier)


def check_noise(policy: Policy, noise_multiplier: float) -> None:
    """Refuse to train with less noise than the policy permits.

    Raises:
        PolicyRefusal: names the rule.
    """
    if noise_multiplier < policy.least_noise:
        raise PolicyRefusal(
            "least_noise", f"{noise_multiplier:g} is asked; {policy.least_noise:g} is the least"
        )


def check_device(device: Device, experiment: Experiment) -> None:
    """Refuse an order that insists on a GPU where the site gives none, or on more processes than it gives.

    Raises:
        PolicyRefusal: names the rule.
    """
    asked = experiment.train.device
    if device.gpu == "none" and asked.startswith("cuda"):
        raise PolicyRefusal("gpu", f"'{asked}' is asked; device.gpu is 'none'")
    if experiment.train.processes > device.processes:
        raise PolicyRefusal(
            "processes", f"{experiment.train.processes} are asked; device.processes is {device.processes}"
        )


def check_statistics(policy: Policy, name: str = "patients") -> None:
    """Refuse a statistic that may not leave; where not even counts of patients may, the site does not say that it takes part.

    Raises:
        PolicyRefusal: names the rule.
    """
    if policy.statistics is not None and name not in policy.statistics:
        raise PolicyRefusal("statistics", f"'{name}' is not permitted")


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

    Where fewer show a class, what is measured on those who do not show it stays too: its weight would tell how many show it.
    Of a classification each metric speaks of both groups, so that all of a class's stay where either group is small (none is
    not small: ``presence`` tells it too); and where every patient shows one class exactly, so many classes stay that what is left
    over of the patients tells of none of them.
    """
    small = _small_groups(policy, metrics)
    few = {
        name for name, mean in metrics.items() if not _is_paired(name) and mean.weight < policy.least_patients
    }
    kept_back = {_class_of(name) for name in few if not _where_absent(name)}
    return {
        name: mean
        for name, mean in permitted(policy, metrics).items()
        if name not in few
        and not (_is_paired(name) and _class_of(name) in small)
        and not (_where_absent(name) and _class_of(name) in kept_back)
    }


def _small_groups(policy: Policy, metrics: Metrics) -> set[str]:
    """The classes of a classification of which no metric may leave."""
    showing, others = (
        {_class_of(name): mean.weight for name, mean in metrics.items() if _is_paired(name, over)}
        for over in ("present", "absent")
    )
    classes = {_class_of(name) for name in metrics if _is_paired(name)}
    counts = {name: showing.get(name, 0.0) for name in classes}
    few = {
        name
        for name in classes
        if any(0 < count < policy.least_patients for count in (counts[name], others.get(name, 0.0)))
    }
    return _with_complements(policy, counts, few) if "accuracy" in metrics else few


def _with_complements(policy: Policy, counts: Mapping[str, float], hidden: set[str]) -> set[str]:
    """``hidden`` and as many of the least frequent others as it takes for all of them together to be enough patients.

    Where every patient shows exactly one class, those of the hidden classes are what the others leave over.
    """
    hidden = set(hidden)
    for name in sorted(counts.keys() - hidden, key=lambda name: (counts[name], name)):
        together = sum(counts[one] for one in hidden)
        if not together or together >= policy.least_patients:
            break
        hidden.add(name)
    return hidden


def permitted(policy: Policy, metrics: Metrics) -> Metrics:
    """The metrics that the policy names: by their whole name, or by what stands before the class."""
    return {name: mean for name, mean in metrics.items() if is_permitted(policy, name)}


def is_permitted(policy: Policy, metric: str) -> bool:
    """Whether the policy names the metric."""
    named = policy.metrics
    return named is None or metric in named or metric.partition("/")[0] in named


def over_enough(policy: Policy, noisy: Metrics) -> Metrics:
    """Of metrics with noise those over at least ``least_patients``, as far as the noise lets that be known."""
    return {name: mean for name, mean in noisy.items() if mean.weight >= policy.least_patients}


def releasable_counts(policy: Policy, counts: Mapping[str, int], *, one_each: bool = False) -> dict[str, int]:
    """Counts of patients by class; one that is positive but less than ``least_patients`` becomes -1, which says only that.

    ``one_each``: every patient shows exactly one class; the next larger counts are then -1 as well, where what is left over of
    the patients would tell the small one. Empty where the policy does not permit ``presence``.
    """
    if policy.statistics is not None and "presence" not in policy.statistics:
        return {}
    hidden = {name for name, count in counts.items() if 0 < count < policy.least_patients}
    if one_each:
        shown = {name: count for name, count in counts.items() if count}
        hidden = _with_complements(policy, shown, hidden)
    return {name: -1 if name in hidden else count for name, count in counts.items()}


def _where_absent(metric: str) -> bool:
    """Whether the metric is over the patients who do not show its class."""
    score = score_called(metric)
    return score is not None and score.over == "absent"


def _is_paired(metric: str, over: str | None = None) -> bool:
    """Whether it tells of those who show a class and of those who do not; ``over``: and its weight counts these."""
    score = score_called(metric)
    return score is not None and score.paired and over in (None, score.over)


def _class_of(metric: str) -> str:
    return metric.partition("/")[2]

"""A site's measurement of a model on patients that it holds out."""

from __future__ import annotations

from typing import Any

from fedmed_client import pulse
from fedmed_client.keeping import Keeping
from fedmed_client.method import changed_inputs, own_normalisation, with_own
from fedmed_client.train import Course, train
from fedmed_client.workbench import COHORTS, Bench, SiteHome, bench_for, branch, numerics, seed_for
from fedmed_common import params, wire
from fedmed_common.params import Parameters
from fedmed_strategies.personal.networks import FineTuned
from fedmed_strategies.pieces import own
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.recipe import Recipe

_TUNING_SEED = 0x7E57


def measurements(home: SiteHome, order: wire.Order) -> dict[int, list[Any]]:
    """What the task keeps of each case of the order's split, by the patient's number in the cohort.

    The network is the order's with what the site has of its own. All of it stays at the site: only what ``Task.summarise`` makes
    of all patients together may leave.
    """
    bench = bench_for(order.experiment, gpu=home.site.device.gpu != "none")
    cohort, _ = COHORTS.get(home, order.experiment)
    recipe = recipe_of(bench.experiment)
    arrays = own_normalisation(cohort) if recipe.inputs is not None else {}
    decision = own(order.down, wire.DECISION)
    by_patient: dict[int, list[Any]] = {}
    with (
        numerics(bench.experiment, bench.device, home.site.device.threads),
        changed_inputs(bench.model, recipe, arrays),
    ):
        params.to_model(_measured(home, order, bench, recipe), bench.model)
        bench.model.eval()
        for case in cohort.of(order.split):
            by_patient.setdefault(case.patient, []).append(
                bench.task.measure(bench.model, case, bench.device, decision)
            )
            pulse.beat()
    return by_patient


def _measured(home: SiteHome, order: wire.Order, bench: Bench, recipe: Recipe) -> Parameters:
    """The parameters that this site measures in the order's round."""
    personal = recipe.personal
    if personal is None:
        return order.parameters
    if isinstance(personal, FineTuned):
        return _tuned(home, order, bench, personal.steps)
    return with_own(order.parameters, Keeping(home.folder, order.run).before(order.round + 1))


def _tuned(home: SiteHome, order: wire.Order, bench: Bench, steps: int) -> Parameters:
    """The order's parameters, trained further on the site's own patients; always in the same way."""
    _, sampler = COHORTS.get(home, order.experiment)
    if sampler is None:
        return order.parameters
    seed = seed_for(bench.experiment.seed, order.round, home.site.name)
    tuning = branch(seed, _TUNING_SEED)
    course = Course(round=order.round, seed=tuning, steps=steps, rate=bench.experiment.train.learning_rate)
    train(bench, sampler, order.parameters, course, lambda _step: pulse.beat())
    return params.from_model(bench.model)

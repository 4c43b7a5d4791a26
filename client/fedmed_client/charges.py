"""What an order's private work may cost, and its row in the ledger."""

from __future__ import annotations

import math

from fedmed_client.data.splits import Split
from fedmed_client.ledger import Budget, Ledger, Reservation
from fedmed_client.workbench import SiteHome, experiment_of
from fedmed_common import privacy, wire
from fedmed_common.config import Experiment
from fedmed_common.privacy import Spent
from fedmed_common.receipts import Receipt


def promised_by(experiment: Experiment, order: wire.Order) -> Budget | None:
    """What an experiment with ``[privacy]`` promises of the run."""
    promised = experiment.privacy
    if promised is None:
        return None
    return Budget(
        epsilon=promised.epsilon,
        delta=promised.delta,
        source="privacy.epsilon",
        run=order.run,
        split="train",
    )


def charge(
    home: SiteHome, order: wire.Order, promised: Budget | None, cost: Spent, sharing: int = 1
) -> tuple[float, Receipt]:
    """Write down what the order's work spends; what the run with it costs each of the patients that it is of, and the ledger's
    receipt. ``promised``: None where nobody promises anything but the site. ``sharing``: so many sites share the noise.

    Raises:
        PolicyRefusal: more than is promised, or than the site gives.
    """
    rules = home.site.policy
    split: Split = order.split if order.kind is wire.Kind.EVALUATE else "train"
    of_these = promised or Budget(epsilon=math.inf, delta=rules.budget_delta, run=order.run, split=split)
    budgets = [of_these]
    if rules.maximum_epsilon is not None:
        budgets.append(Budget(epsilon=rules.maximum_epsilon, delta=rules.budget_delta))
    if rules.maximum_run_epsilon is not None:
        of_run = Budget(
            epsilon=rules.maximum_run_epsilon,
            delta=rules.budget_delta,
            source="maximum_run_epsilon",
            run=order.run,
        )
        budgets.append(of_run)
    reservation = Reservation(
        run=order.run,
        round=order.round,
        attempt=order.attempt,
        noise_multiplier=cost.noise_multiplier,
        sampling_rate=cost.sampling_rate,
        steps=cost.steps,
        experiment=experiment_of(order.experiment).name,
        split=split,
        sharing=sharing,
    )
    reserved = Ledger(home.folder).reserve(reservation, *budgets, receipt=order.receipt)
    if home.audit is not None:
        home.audit.append("reserved", run=order.run, round=order.round, kind=order.kind.value)
    return of_these.cost(reserved.rows, privacy.epsilon), reserved.receipt

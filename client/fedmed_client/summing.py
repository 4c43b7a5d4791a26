"""An order's place in a secure sum: whether its experiment asks for one, and who takes part."""

from __future__ import annotations

from fedmed_client import policy
from fedmed_client.secure import RULE, Sum, Summing
from fedmed_client.surveyed import surveyed_patients
from fedmed_client.workbench import COHORTS, SiteHome, experiment_of
from fedmed_common import wire
from fedmed_common.config import Experiment
from fedmed_common.errors import PolicyRefusal
from fedmed_common.secure import circle


def summing_of(home: SiteHome, order: wire.Order) -> Summing | None:
    """The secure sum that the order's work is for; None where the experiment asks for none.

    Raises:
        PolicyRefusal: it asks for one, and the order has none that this site takes part in.
    """
    if experiment_of(order.experiment).secure_aggregation is None:
        return None
    if not order.secure:
        raise PolicyRefusal(RULE, "the experiment has [secure_aggregation], and the order has not")
    of_site = sum_of(home, order)
    return Summing(of_site, of_site.taking_part(circle.wanted(order.secure)))


def sum_of(home: SiteHome, order: wire.Order) -> Sum:
    """The site's session that the order names.

    Raises:
        PolicyRefusal: the experiment asks for no secure sum, or the site has too few patients.
    """
    settings = experiment_of(order.experiment).secure_aggregation
    if settings is None:
        raise PolicyRefusal(RULE, "the experiment has no [secure_aggregation]")
    cohort, _ = COHORTS.get(home, order.experiment)
    patients = cohort.patients("train")
    policy.check_patients(home.site.policy, patients)
    if not experiment_of(order.experiment).rounds:
        patients = surveyed_patients(home, order)
    return Sum(
        folder=home.folder,
        site=home.site.name,
        run=order.run,
        session=circle.wanted(order.secure).session,
        patients=patients,
        policy=home.site.policy,
        settings=settings,
        about=(order.kind.value, order.statistic),
    )


def noise_shares(experiment: Experiment, summing: Summing | None) -> int:
    """How many sites at least add their part of the noise."""
    settings = experiment.secure_aggregation
    return summing.party.honest if settings is not None and settings.distributed_noise and summing else 1

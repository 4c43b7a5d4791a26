"""Networks of a site's own: beside the global one, in its place, or trained further from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmed_strategies.corrections.prox import Pull
from fedmed_strategies.pieces import Personal, SiteHalf, Work


class Ditto(Personal):
    """Beside the global model, each site trains one of its own, drawn to the global one by ``strength``; that one is measured.

    Each round takes twice the steps at a site. Nothing more is sent.
    """

    name = "ditto"
    source = "Li et al. 2021, 'Ditto: fair and robust federated learning through personalization', ICML, algorithm 1"
    mode = "beside"
    beyond_steps = "as many steps again, for a second network"
    strength: Annotated[float, Field(ge=0.0)] = 0.1

    def at_site(self, work: Work) -> SiteHalf:
        """Draws the site's own network to the global one; training of the global one is not touched."""
        return Pull(work, self.strength)


class MeanRegularised(Personal):
    """Each site trains only a network of its own, drawn to the mean of all by ``strength``: from local training to FedAvg."""

    name = "mean_regularised"
    source = "Liu et al. 2022, 'On privacy and personalization in cross-silo federated learning', NeurIPS, algorithm A1 (MR-MTL)"
    mode = "instead"
    strength: Annotated[float, Field(ge=0.0)] = 0.1

    def at_site(self, work: Work) -> SiteHalf:
        """Draws the site's network to the mean."""
        return Pull(work, self.strength)


class FineTuned(Personal):
    """Before the global model is measured at a site, the site trains it for ``steps`` more on its own patients, at the full
    learning rate."""

    name = "fine_tuned"
    mode = "tuned"
    handles_parameters = False
    beyond_steps = "further steps before each measurement"
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20

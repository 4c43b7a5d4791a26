"""The global model that a site was sent last, so that of the next one it need be sent no more than what changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedmed_common import wire
from fedmed_common.codecs import added, change_codec
from fedmed_common.config import Experiment
from fedmed_common.errors import PolicyRefusal, WireError
from fedmed_common.params import Parameters


class LastModel:
    """The last model of the run at work, by the name that the coordinator gave it.

    It lives as long as the process. All simulated sites of a process are sent the same, and share it; which of them have been
    sent it is for the coordinator to know.
    """

    def __init__(self) -> None:
        self._run, self._name, self._parameters = "", "", Parameters()

    def complete(
        self, order: wire.Order, experiment: Experiment, changed: Callable[[], tuple[str, ...]]
    ) -> wire.Order:
        """The order with all of its parameters. ``changed()``: names of those that a round changes.

        Raises:
            PolicyRefusal: what changed is of a model that is not here.
            WireError: it is no change of that model.
        """
        if not order.base:
            if order.model:
                self._run, self._name, self._parameters = order.run, order.model, order.parameters
            return order
        if self._run != order.run or self._name not in (order.model, order.base):
            raise PolicyRefusal(wire.NO_BASE, "the model that the order's changes are of is not here")
        if self._name != order.model:
            template = {name: self._parameters[name] for name in changed()}
            codec = change_codec(experiment)
            if codec is None:
                raise WireError("a change, which the experiment does not encode")
            change = codec.decode(order.encoded, template)
            self._parameters = {**self._parameters, **added(self._parameters, change)}
            self._name = order.model
        return replace(order, base="", encoded={}, parameters=self._parameters)


LAST = LastModel()

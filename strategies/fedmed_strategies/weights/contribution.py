"""FedCE: sites whose update the others' do not replace, and who are served badly without it, count more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmed_common.params import is_statistic
from fedmed_strategies.pieces import Arrays, Done, Left, Memory, Scene, SiteHalf, Work, own, under
from fedmed_strategies.weights.reported import Carried, normalised


class Contribution(Carried):
    """p_k ~ the mean of two shares: of 1 - cos(delta_k, delta_-k), averaged over the rounds, and of the error of w_-k at site k.

    delta_-k and w_-k are the update and the model that the round would have had without site k. The site works them out itself:
    it knows its own update, its share of the mean, and the global model before and after. The error is the loss on some of its
    training patients, in the place of one minus Dice on validation patients. It is right where the server's step is the mean.
    """

    name = "contribution"
    source = (
        "Jiang et al. 2023, 'Fair federated medical image segmentation via client contribution estimation', CVPR, "
        "equations 4 to 8"
    )
    measures = True
    handles_parameters = True
    scalars: ClassVar[Mapping[str, tuple[float, float]]] = {
        "cosine": (-1.0, 1.0),
        "error_without": (0.0, 1e9),
    }

    def down_to(self, site: str, memory: Memory, scene: Scene) -> Arrays:
        """The site's share in the last round."""
        last = memory.get(f"{self.name}/last/{site}")
        return {} if last is None else {f"{self.name}/share": np.asarray(last, np.float32)}

    def at_site(self, work: Work) -> SiteHalf:
        """Measures both."""
        return _Site(work)

    def settle(self, done: Done) -> tuple[Arrays, Memory]:
        """The weights of the next round, once sites have had a round to be compared in."""
        kept = {
            name: array for name, array in done.memory.items() if name.startswith(f"{self.name}/cosines/")
        }
        errors = {name: float(value) for name, value in own(done.memory, f"{self.name}/error").items()}
        for answer in done.answers:
            name = answer.site.name
            if answer.scalars["error_without"] > 0:
                before = kept.get(f"{self.name}/cosines/{name}", np.zeros(2))
                kept[f"{self.name}/cosines/{name}"] = before + np.array([answer.scalars["cosine"], 1.0])
                errors[name] = answer.scalars["error_without"]
        last = {f"last/{answer.site.name}": np.array(answer.share) for answer in done.answers}
        shares = self._shares(kept, errors, done.scene) or self.shares(done.scene, done.memory)
        about = under(self.name, {**last, **{f"error/{name}": np.array(e) for name, e in errors.items()}})
        return done.parameters, {**kept, **about, **self.kept(shares)}

    def _shares(self, cosines: Arrays, errors: Mapping[str, float], scene: Scene) -> dict[str, float]:
        """Empty where not all sites have been compared."""
        sums = own(cosines, f"{self.name}/cosines")
        names = [site.name for site in scene.sites]
        if not all(name in sums and name in errors for name in names):
            return {}
        apart = normalised({name: 1.0 - float(sums[name][0] / sums[name][1]) for name in names})
        badly = normalised({name: errors[name] for name in names})
        return {name: (apart[name] + badly[name]) / 2 for name in names} if apart and badly else {}


class _Site(SiteHalf):
    def __init__(self, work: Work) -> None:
        self._work = work
        self._cosine, self._error = 0.0, 0.0

    def begin(self) -> None:
        share = self._work.down.get("contribution/share")
        update = own(self._work.memory, "contribution/delta")
        before = own(self._work.memory, "contribution/start")
        if share is None or not update or float(share) >= 1:
            return
        others: Memory = {
            name: ((self._anchor(name) - before[name]) - float(share) * update[name]) / (1 - float(share))
            for name in update
        }
        self._cosine = _cosine(update, others)
        self._error = self._loss_at({name: before[name] + others[name] for name in others})

    def finish(self, delta: Arrays) -> Left:
        learned = {name: array for name, array in delta.items() if not is_statistic(name)}
        memory = {
            **under("contribution/delta", learned),
            **under("contribution/start", {name: self._anchor(name) for name in learned}),
        }
        return Left(scalars={"cosine": self._cosine, "error_without": self._error}, memory=memory)

    def _anchor(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._work.anchor[name].cpu().numpy()
        return values

    def _loss_at(self, values: Memory) -> float:
        """The loss with these parameters; the model is as before afterwards."""
        import torch

        assert self._work.measure is not None  # noqa: S101
        parameters = self._work.parameters
        kept = {name: parameters[name].detach().clone() for name in values if name in parameters}
        with torch.no_grad():
            for name in kept:
                parameters[name].copy_(torch.from_numpy(np.asarray(values[name], np.float32)))
            loss = self._work.measure()
            for name, tensor in kept.items():
                parameters[name].copy_(tensor)
        return loss


def _cosine(a: Memory, b: Memory) -> float:
    inner = sum(float(np.sum(a[name].astype(np.float64) * b[name])) for name in a)
    lengths = [sum(float(np.sum(np.square(x[name], dtype=np.float64))) for name in a) for x in (a, b)]
    product = float(np.sqrt(lengths[0] * lengths[1]))
    return min(1.0, max(-1.0, inner / product)) if product else 1.0

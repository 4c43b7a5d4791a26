"""What the global model knows of classes that a site lacks, kept by distillation: FedVLS, ConDist; and the exclusion loss.

A site lacks a class for one of two reasons, which are not the same. Vacant: it looked for the class, and none of its patients
shows it; the background is the truth. Unannotated: nobody looked; what is labelled background may be the class."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmed_common.fields import Fraction, Positive
from fedmed_common.site_config import UNLABELLED
from fedmed_strategies.pieces import Loss, SiteHalf, Work

if TYPE_CHECKING:
    from torch import Tensor


class Vacant(Loss):
    """lambda KL(global || local) over {each class that the site lacks, everything else}, where the label is background.

    Of a classification, over the softmax of the logits of the classes that it lacks, as the paper has it. The weight rises
    linearly over the first ``warm_up`` of the rounds: at first the global model knows nothing.
    """

    name = "vacant"
    source = "Guo et al. 2025, 'Exploring vacant classes in label-skewed federated learning', AAAI, equation 4 (FedVLS)"
    uses_presence = True
    handles_parameters = True
    weight: Positive = 0.5
    warm_up: Fraction = 0.2

    def at_site(self, work: Work) -> SiteHalf | None:
        """Distils; nothing where the site lacks no class."""
        lacks = work.presence == 0
        weight = self.weight * ramp(work, self.warm_up)
        return _Distilled(work, lacks, weight, 1.0) if lacks.any() and weight else None


class Conditional(Loss):
    """Soft Dice between the global and the local model's probabilities of the classes that nobody looked for, given background.

    Beside the marginal loss, which every loss of fedmed is. Temperature 2; the weight rises linearly from ``first`` to ``weight``
    over the rounds.
    """

    name = "conditional"
    source = (
        "Wang et al. 2023, 'ConDistFL: conditional distillation for federated learning from partially annotated data', "
        "DeCaF, section 2.2"
    )
    handles_parameters = True
    weight: Positive = 1.0
    first: Positive = 0.01
    temperature: Positive = 2.0

    def at_site(self, work: Work) -> SiteHalf | None:
        """Distils; nothing where every class is annotated, or of a classification."""
        if work.annotated.all() or not work.background:
            return None
        share = (work.round - 1) / max(1, work.rounds - 1)
        return _Conditional(
            work, ~work.annotated, self.first + share * (self.weight - self.first), self.temperature
        )


class Exclusion(Loss):
    """The mean probability of unannotated classes where the label shows an annotated one: organs exclude each other."""

    name = "exclusion"
    source = (
        "Shi et al. 2021, 'Marginal loss and exclusion loss for partially supervised multi-organ segmentation', MedIA, "
        "section 3.3"
    )
    weight: Annotated[float, Field(gt=0.0)] = 1.0

    def at_site(self, work: Work) -> SiteHalf | None:
        """Excludes; nothing where every class is annotated, or of a classification."""
        if work.annotated.all() or not work.background:
            return None
        return _Excluded(~work.annotated, self.weight)


def ramp(work: Work, warm_up: float) -> float:
    """0 in the first round, 1 once ``warm_up`` of the rounds are done; always 1 without a warm-up."""
    return min(1.0, (work.round - 1) / (warm_up * work.rounds)) if warm_up else 1.0


class _Taught(SiteHalf):
    """What has the round's global model beside the one that is trained."""

    teaches = True

    def __init__(self, work: Work, classes: NDArray[np.bool_], weight: float, temperature: float) -> None:
        self._work, self._weight, self._temperature = work, weight, temperature
        self._outputs = (np.flatnonzero(classes) + work.background).tolist()

    def begin(self) -> None:
        import torch

        self._teacher = copy.deepcopy(self._work.model).eval()
        with torch.no_grad():
            for name, parameter in self._teacher.named_parameters(remove_duplicate=False):
                if name in self._work.anchor:
                    parameter.copy_(self._work.anchor[name])

    def _taught(self, image: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return main(self._teacher(image)).float()


class _Distilled(_Taught):
    def term(self, image: Tensor, outputs: Any, target: Tensor, annotated: Tensor) -> Tensor:
        local, known = main(outputs).float(), self._taught(image)
        if not self._work.background:
            local, known = (z[:, self._outputs].log_softmax(1) for z in (local, known))
            return self._weight * (known.exp() * (known - local)).sum(1)
        local, known = (self._grouped(z.log_softmax(1)) for z in (local, known))
        divergence = (known.exp() * (known - local)).sum(1)
        return self._weight * over(divergence, background(target, annotated))

    def _grouped(self, log_probability: Tensor) -> Tensor:
        """The classes that the site lacks, and all else as one."""
        import torch

        rest = [c for c in range(log_probability.shape[1]) if c not in self._outputs]
        return torch.cat(
            [log_probability[:, self._outputs], log_probability[:, rest].logsumexp(1, keepdim=True)], 1
        )


class _Conditional(_Taught):
    def term(self, image: Tensor, outputs: Any, target: Tensor, annotated: Tensor) -> Tensor:
        group = [0, *self._outputs]
        local, known = (
            (z[:, group] / self._temperature).softmax(1)[:, 1:]
            for z in (main(outputs).float(), self._taught(image))
        )
        where = background(target, annotated)[:, None]
        local, known = (local * where).flatten(2), (known * where).flatten(2)
        both = 2 * (local * known).sum(2)
        either = local.square().sum(2) + known.square().sum(2)
        return self._weight * (1 - (both + 1e-5) / (either + 1e-5)).mean(1)


class _Excluded(SiteHalf):
    teaches = True

    def __init__(self, classes: NDArray[np.bool_], weight: float) -> None:
        self._outputs, self._weight = (np.flatnonzero(classes) + 1).tolist(), weight

    def term(self, image: Tensor, outputs: Any, target: Tensor, annotated: Tensor) -> Tensor:
        probability = main(outputs).float().softmax(1)[:, self._outputs].sum(1)
        shown = (target != UNLABELLED) & ~background(target, annotated)
        return self._weight * over(probability, shown)


def main(outputs: Any) -> Tensor:
    """The main one of a network's outputs."""
    tensor: Tensor = outputs if hasattr(outputs, "dim") else outputs[0]
    return tensor


def background(target: Tensor, annotated: Tensor) -> Tensor:
    """Where the label shows no class that was looked for, ``(B, *S)``; unlabelled voxels are not among them."""
    from fedmed_common.tasks.losses import seen

    return seen(target, annotated) == 0


def over(values: Tensor, where: Tensor) -> Tensor:
    """The mean of values ``(B, *S)`` over the voxels that count, ``(B,)``; 0 where none does."""
    return (values * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp(min=1)

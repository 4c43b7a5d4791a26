"""FedSAM: gradients are taken where the loss is worst nearby, so that sites end in flat places, which average well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmed_common.fields import Positive
from fedmed_strategies.pieces import Correction, SiteHalf, Work

if TYPE_CHECKING:
    from torch import Tensor


class Sharpness(Correction):
    """Each step's gradient is that at w + rho g / |g|. Every step takes two passes."""

    name = "sharpness"
    source = "Caldarola et al. 2022, 'Improving generalization in federated learning by seeking flat minima', ECCV, section 4.1"
    beyond_steps = "a second pass in every step"
    rho: Positive = 0.05

    def at_site(self, work: Work) -> SiteHalf:
        """Moves there and back."""
        return _Site(work, self.rho)


class _Site(SiteHalf):
    perturbs = True

    def __init__(self, work: Work, rho: float) -> None:
        self._work, self._rho = work, rho
        self._before: dict[str, Tensor] = {}

    def perturb(self) -> None:
        import torch

        moving = {n: p for n, p in self._work.parameters.items() if p.grad is not None}
        if not moving:
            return
        length = torch.stack([p.grad.norm() for p in moving.values() if p.grad is not None]).norm()
        if not bool(length.isfinite()):
            return
        scale = self._rho / length.clamp(min=1e-12)
        with torch.no_grad():
            for name, parameter in moving.items():
                self._before[name] = parameter.detach().clone()
                parameter.add_(parameter.grad * scale)

    def restore(self) -> None:
        import torch

        parameters = self._work.parameters
        with torch.no_grad():
            for name, before in self._before.items():
                parameters[name].copy_(before)
        self._before = {}

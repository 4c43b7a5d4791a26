"""Whether what a network makes of one patient depends on another: tried on invented images before a site trains privately.

Clipping bounds what a patient adds to the sum only if the patients that come before, and those beside, leave no trace in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed_client.private import Samples, patient_gradient
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.errors import PolicyRefusal
from fedmed_common.params import Parameters

RULE = "privacy_network"
_TOLERANCE = 1e-2
_checked: WeakSet[nn.Module] = WeakSet()


def check(bench: Bench, start: Parameters, example: Samples) -> None:
    """Refuse a network or loss in which patients touch. Each network is tried once, with the parameters
    ``start``. ``example``: for the shapes alone.

    Refused are batch norm; any buffer that training changes, for it would leave without noise; a gradient that is another
    after the network saw another patient; and a loss of two samples that is not the mean of the loss of each.

    Raises:
        PolicyRefusal: ``privacy_network``.
    """
    if bench.model in _checked:
        return
    for name, module in bench.model.named_modules():
        if isinstance(module, _BatchNorm):
            raise PolicyRefusal(RULE, f"'{name}' is a batch norm")
    params.to_model(start, bench.model)
    one, two, extreme = _invented(example)
    state = copy.deepcopy(bench.model.state_dict())
    try:
        with torch.autocast(bench.device.type, enabled=False), _deterministic_training(bench.model):
            _check_memory(bench, one, extreme)
            _check_joint(bench, one, two)
    finally:
        bench.model.load_state_dict(state)
        bench.model.train()
    _checked.add(bench.model)


def _check_memory(bench: Bench, one: Samples, extreme: Samples) -> None:
    """Nothing of a patient stays in the network."""
    before = {name: buffer.clone() for name, buffer in bench.model.named_buffers()}
    alone = _gradient(bench, one)
    _gradient(bench, extreme)
    afterwards = _gradient(bench, one)
    for name, buffer in bench.model.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise PolicyRefusal(
                RULE, f"the buffer '{name}' changes in training, and would leave without noise"
            )
    if not _close(alone, afterwards):
        raise PolicyRefusal(RULE, "a patient's gradient depends on the patient before")


def _check_joint(bench: Bench, one: Samples, two: Samples) -> None:
    """Two samples side by side do not see each other; nor do parts of a patient that memory keeps apart."""
    both: Samples = (torch.cat((one[0], two[0])), torch.cat((one[1], two[1])), torch.cat((one[2], two[2])))
    joint, apart = _gradient(bench, both, at_once=True), (_gradient(bench, one) + _gradient(bench, two)) / 2
    if not _close(joint, apart):
        raise PolicyRefusal(RULE, "a sample's gradient depends on the samples beside it")


def _gradient(bench: Bench, samples: Samples, *, at_once: bool = False) -> Tensor:
    """In one flat piece, with the same chance each time."""
    parameters = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[bench.device.index or 0] if bench.device.type == "cuda" else []):
        torch.manual_seed(0)
        most = len(samples[0]) if at_once else bench.experiment.train.batch_size
        parts = patient_gradient(bench, parameters, samples, most)
    return torch.cat([part.flatten() for part in parts])


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding; two that are not finite are no witness of anything and count as unequal."""
    return bool((one - other).norm() <= _TOLERANCE * one.norm())


def _invented(example: Samples) -> tuple[Samples, Samples, Samples]:
    """Two ordinary patients of one sample that differ in all there is, and one with extreme intensities.

    Nothing but shapes and types is the example's: a refusal must not depend on a patient.
    """
    rng = torch.Generator().manual_seed(1)
    image, target, annotated = (torch.zeros_like(part[:1]) for part in example)
    line = torch.linspace(-1, 1, image.shape[-1])

    def patient(scale: float, share: float, slope: float) -> Samples:
        pixels = scale * (torch.randn(image.shape, generator=rng, dtype=image.dtype) + slope * line)
        shown = torch.rand(target.shape, generator=rng) < share
        return pixels, shown.to(target.dtype), torch.ones_like(annotated)

    return patient(1.0, 0.1, 0.0), patient(1.0, 0.9, 4.0), patient(1000.0, 0.5, 0.0)


@contextmanager
def _deterministic_training(model: nn.Module) -> Iterator[None]:
    """In training mode, but with dropout off: it gives each sample of a batch another chance than alone."""
    model.train()
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    try:
        yield
    finally:
        model.train()

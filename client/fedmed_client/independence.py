"""Whether what a network makes of one patient depends on another: tried on invented patients before a site trains privately.

Clipping bounds what a patient adds to the sum only if those that come before leave no trace in it. That those beside a patient
leave none, where several share a pass, :func:`fedmed_client.patient_gradients.can_map` tries.
"""

from __future__ import annotations

import copy
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmed_client.engine.copying import gpus
from fedmed_client.patient_gradients import Samples, flattened, invented, patient_gradient
from fedmed_client.private import RULE, check_buffers
from fedmed_client.workbench import Bench
from fedmed_common import params
from fedmed_common.errors import PolicyRefusal
from fedmed_common.params import Parameters

_TOLERANCE = 1e-3
_checked: WeakSet[nn.Module] = WeakSet()


def check(bench: Bench, start: Parameters, example: Samples) -> None:
    """Refuse a network or loss in which patients touch. Each network is tried once, with the parameters ``start``.
    ``example``: for the shapes alone.

    Refused are batch norm; any buffer that training changes, for it would leave without noise; and a gradient that is another
    after the network saw another patient.

    Raises:
        PolicyRefusal: ``privacy_network``.
    """
    if bench.model in _checked:
        return
    for name, module in bench.model.named_modules():
        if isinstance(module, _BatchNorm):
            raise PolicyRefusal(RULE, f"'{name}' is a batch norm")
    params.to_model(start, bench.model)
    image, target, annotated = example
    one_sample = image[:1], target[:1], annotated[:1]
    ordinary, extreme = invented(one_sample, seed=1), invented(one_sample, seed=2, scale=1000.0)
    state = copy.deepcopy(bench.model.state_dict())
    try:
        with torch.autocast(bench.device.type, enabled=False):
            bench.model.train()
            _check_memory(bench, ordinary, extreme)
    finally:
        bench.model.load_state_dict(state)
    _checked.add(bench.model)


def _check_memory(bench: Bench, ordinary: Samples, extreme: Samples) -> None:
    """Nothing of a patient stays in the network."""
    before = {name: buffer.clone() for name, buffer in bench.model.named_buffers()}
    alone = _gradient(bench, ordinary)
    _gradient(bench, extreme)
    afterwards = _gradient(bench, ordinary)
    check_buffers(bench.model, before)
    if not (alone - afterwards).norm() <= _TOLERANCE * alone.norm():
        raise PolicyRefusal(RULE, "a patient's gradient depends on the patient before")


def _gradient(bench: Bench, samples: Samples) -> Tensor:
    """In one flat piece, with the same chance each time."""
    with torch.random.fork_rng(devices=gpus(bench.device)):
        torch.manual_seed(0)
        parts = patient_gradient(bench, bench.parameters, samples, len(samples[0]))
    return flattened(parts)

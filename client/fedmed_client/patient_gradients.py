"""The gradient of each of some patients: one backward pass for each, or one for several.

One at a time works with every network and loss, in the memory of one patient. For several, each patient has a copy of the
parameters to take a gradient by, and the network is mapped over patients and copies together (``torch.func.vmap``), so that
nothing in it can mix two of them; the loss, which is each sample's own, is added up outside. It pays where one patient leaves
a GPU idle: :func:`patients_at_once` measures that on invented patients, and finds out whether the network can be mapped at all.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedmed_client.engine.copying import on_device
from fedmed_client.engine.memory import channels_last
from fedmed_client.workbench import Bench
from fedmed_common import privacy
from fedmed_common.errors import ConfigError
from fedmed_common.tasks import PLAIN, Shaping

Samples = tuple[Tensor, Tensor, Tensor]
"""Image, target and ``annotated`` of some samples, as :class:`fedmed_common.tasks.Task` takes them."""
Seconds = Callable[[Callable[[], object]], float]
TOLERANCE = 1e-4
_GAIN, _REPEATS = 0.95, 3
_found: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_log = logging.getLogger(__name__)


def gradients(
    bench: Bench,
    parameters: Sequence[Tensor],
    drawn: Iterable[Samples],
    at_once: int,
    shaping: Shaping = PLAIN,
) -> Iterator[list[Tensor]]:
    """For each patient the gradient of the mean loss over the patient's samples, of ``at_once`` patients in one pass.

    Of a patient alone, ``train.batch_size`` / ``train.accumulate`` samples at most are in memory together.
    """
    samples_at_once = bench.experiment.train.batch_size // bench.experiment.train.accumulate
    for group in _groups(drawn, at_once):
        if len(group) == 1:
            yield patient_gradient(bench, parameters, group[0], samples_at_once, shaping)
        else:
            yield from _together(bench, parameters, group, shaping)


def patient_gradient(
    bench: Bench,
    parameters: Sequence[Tensor],
    samples: Samples,
    at_once: int,
    shaping: Shaping = PLAIN,
) -> list[Tensor]:
    """The gradient of the mean loss over one patient's samples, of which ``at_once`` at most are in memory together."""
    network, count = bench.trained_network, len(samples[0])
    total: list[Tensor] = []
    for start in range(0, count, at_once):
        image, target, annotated = (tensor[start : start + at_once] for tensor in samples)
        part, known, shown = on_device((image, target, annotated), bench.device)
        if bench.experiment.train.channels_last:
            part = channels_last(part)
        loss = bench.task.objective(network, part, known, shown, shaping)
        share = len(part) / count
        found = torch.autograd.grad(loss * share, list(parameters), allow_unused=True)
        gradient = [
            torch.zeros_like(parameter) if part is None else part
            for part, parameter in zip(found, parameters, strict=True)
        ]
        total = [one + other for one, other in zip(total, gradient, strict=True)] if total else gradient
    return total


def patients_at_once(bench: Bench, example: Samples, most: int, seconds: Seconds | None = None) -> int:
    """How many patients to take in one pass: what ``privacy.patients_at_once`` says, else what is fastest here.

    That is one on a CPU, where several were never seen to be faster, and where ``train`` has ``checkpointing`` or ``compile``,
    which are about one patient's memory and one network. On a GPU it is measured, once for each network, up to ``most``.
    ``example``: for the shapes alone. ``seconds``: measures anywhere, as it says how long a call takes; absent: by the clock.

    Raises:
        ConfigError: several are asked for, and the network cannot be mapped over patients.
    """
    train, asked = bench.experiment.train, privacy.settings_of(bench.experiment).patients_at_once
    if asked is None and (
        train.checkpointing or train.compile or (seconds is None and bench.device.type == "cpu")
    ):
        return 1
    if asked == 1:
        return 1
    if bench.model not in _found:
        if asked is None:
            _found[bench.model] = _fastest(bench, example, most, seconds or _by_the_clock(bench.device))
        elif can_map(bench, example):
            _found[bench.model] = asked
        else:
            raise ConfigError(
                f"'{bench.experiment.model.name}' cannot be mapped over several patients, or has other gradients then",
                field="privacy.patients_at_once",
                fix="leave it out",
            )
    return _found[bench.model]


def can_map(bench: Bench, example: Samples) -> bool:
    """Whether each of two patients in one pass has the gradient that they have alone, to 1e-4 of its length.

    Tried in float32 on invented patients, one of extreme intensities, with the parameters that the network has; where chance is
    in its training, as dropout, without that.
    """
    training = {module: module.training for module in bench.model.modules()}
    patients = [invented(example, seed=1), invented(example, seed=2, scale=1000.0)]
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with exact, torch.autocast(bench.device.type, enabled=False):
            bench.model.train()
            if _same_together(bench, patients):
                return True
            bench.model.eval()
            return _same_together(bench, patients)
    except (RuntimeError, ValueError, TypeError, AttributeError) as problem:
        _log.info("one patient at a time: %s", type(problem).__name__)
        return False
    finally:
        for module, mode in training.items():
            module.training = mode


def invented(example: Samples, seed: int, scale: float = 1.0) -> Samples:
    """A patient of noise with the shapes and types of the example and nothing else of it."""
    rng = torch.Generator().manual_seed(seed)
    image, target, annotated = example
    pixels = scale * torch.randn(image.shape, generator=rng, dtype=image.dtype)
    shown = torch.rand(target.shape, generator=rng) < 0.5
    return pixels, shown.to(target.dtype), torch.ones_like(annotated)


def flattened(parts: Sequence[Tensor]) -> Tensor:
    """All of them in one row."""
    return torch.cat([part.detach().flatten() for part in parts])


def _groups(drawn: Iterable[Samples], at_once: int) -> Iterator[list[Samples]]:
    """Patients that follow each other and have samples of the same shapes, ``at_once`` at most."""
    group: list[Samples] = []
    for samples in drawn:
        if group and samples[0].shape != group[0][0].shape:
            yield group
            group = []
        group.append(samples)
        if len(group) == at_once:
            yield group
            group = []
    if group:
        yield group


class _Mapped(nn.Module):
    """A network on the samples of several patients, each with their own copy of the parameters; looks like the network."""

    def __init__(self, module: nn.Module, copies: dict[str, Tensor]) -> None:
        super().__init__()
        self.module, self.copies = module, copies
        self.training = module.training

    def forward(self, *inputs: Tensor) -> Any:
        """What the network makes of inputs ``(P * S, ...)``, patient by patient."""
        patients = len(next(iter(self.copies.values())))
        by_patient = (each.reshape(patients, -1, *each.shape[1:]) for each in inputs)
        outputs = vmap(self._of_one, randomness="different")(self.copies, *by_patient)
        if isinstance(outputs, Tensor):
            return outputs.flatten(0, 1)
        return tuple(output.flatten(0, 1) for output in outputs)

    def _of_one(self, copy: dict[str, Tensor], *inputs: Tensor) -> Any:
        return functional_call(self.module, copy, inputs)


def _together(
    bench: Bench, parameters: Sequence[Tensor], patients: Sequence[Samples], shaping: Shaping
) -> Iterator[list[Tensor]]:
    names = {id(parameter): name for name, parameter in bench.model.named_parameters()}
    copies = {
        names[id(parameter)]: parameter.detach().expand(len(patients), *parameter.shape).requires_grad_()
        for parameter in parameters
    }
    images, targets, known = (torch.cat([samples[part] for samples in patients]) for part in range(3))
    image, target, annotated = on_device((images, targets, known), bench.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        mean = bench.task.objective(_Mapped(bench.model, copies), image, target, annotated, shaping)
        found = torch.autograd.grad(mean * len(patients), list(copies.values()), allow_unused=True)
    whole = [
        torch.zeros_like(copy) if gradient is None else gradient
        for gradient, copy in zip(found, copies.values(), strict=True)
    ]
    for place in range(len(patients)):
        yield [gradient[place] for gradient in whole]


def _same_together(bench: Bench, patients: Sequence[Samples]) -> bool:
    parameters = bench.parameters
    ways = (gradients(bench, parameters, patients, count) for count in (1, len(patients)))
    for alone, beside in zip(*ways, strict=True):
        left, right = (flattened(parts).double() for parts in (alone, beside))
        finite = bool(left.isfinite().all())
        if finite != bool(right.isfinite().all()):
            return False
        if finite and (left - right).norm() > TOLERANCE * left.norm():
            return False
    return True


def _fastest(bench: Bench, example: Samples, most: int, seconds: Seconds) -> int:
    """The count that needs the least time for each patient; doubled as long as it gains something, and fits."""
    parameters = bench.parameters

    def each(count: int) -> float:
        patients = [invented(example, seed) for seed in range(count)]
        return seconds(lambda: list(gradients(bench, parameters, patients, count))) / count

    best, least, count = 1, each(1), 2
    if most < count or not can_map(bench, example):
        return best
    while count <= most:
        try:
            found = each(count)
        except torch.OutOfMemoryError:
            break
        if found > _GAIN * least:
            break
        best, least, count = count, found, 2 * count
    return best


def _by_the_clock(device: torch.device) -> Seconds:
    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def seconds(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(_REPEATS):
            before = finished()
            call()
            times.append(finished() - before)
        return min(times)

    return seconds

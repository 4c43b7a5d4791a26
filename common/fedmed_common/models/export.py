"""A trained network as ONNX or TorchScript, for programs that know nothing of fedmed; compared with PyTorch before that."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fedmed_common import params
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError, FedmedError, WireError
from fedmed_common.files import write_atomically
from fedmed_common.loading import experiment_from_order
from fedmed_common.models import build_model

_MOST_APART = 1e-4


def read_model(file: Path) -> tuple[Experiment, nn.Module]:
    """The experiment and the trained network of a file that a run wrote, as ``runs/NAME/models/best.safetensors``.

    Raises:
        ConfigError: the file is not there, or not of this kind.
    """
    fix = "name a file that a run wrote, as runs/NAME/models/best.safetensors"
    try:
        with safe_open(file, framework="numpy") as stored:
            about = stored.metadata() or {}
            parameters = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot be read as safetensors ({type(error).__name__})", file=file, fix=fix
        ) from None
    if "experiment" not in about:
        raise ConfigError("does not say which experiment its weights are of", file=file, fix=fix)
    experiment = experiment_from_order(about["experiment"])
    model = build_model(experiment)
    try:
        params.to_model({name: parameters[name] for name in params.from_model(model)}, model)
    except (KeyError, WireError):
        raise ConfigError(
            "its weights are not those of its experiment's network", file=file, fix=fix
        ) from None
    return experiment, model.eval()


def write_onnx(model: nn.Module, experiment: Experiment, file: Path) -> None:
    """Write the network as ONNX: ``image`` ``(batch, channels, *data.patch)`` to ``logits``, any number of samples at a time.

    Raises:
        FedmedError: the packages for it are not installed, or it does not give what the network gives.
        ConfigError: the architecture cannot be written as ONNX.
    """
    if not experiment.model.exports:
        raise ConfigError(
            f"'{experiment.model.name}' cannot be written as ONNX",
            field="model.name",
            fix="keep its safetensors",
        )
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise FedmedError("writing ONNX needs a package more\n  fix: pip install 'fedmed[export]'") from None
    image = torch.zeros(2, experiment.data.channels, *experiment.data.patch)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (image,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise FedmedError("torch gave no ONNX program")
    content = program.model_proto.SerializeToString()
    _compare(model, experiment, _onnx_runner(content))
    write_atomically(file, content)


def write_torchscript(model: nn.Module, experiment: Experiment, file: Path) -> None:
    """Write the network as TorchScript: ``image`` ``(batch, channels, *data.patch)`` to ``logits``.

    Raises:
        FedmedError: it does not give what the network gives.
    """
    image = torch.zeros(2, experiment.data.channels, *experiment.data.patch)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(model.eval(), image, check_trace=False)  # type: ignore[no-untyped-call]
        _compare(model, experiment, traced)
        stream = io.BytesIO()
        torch.jit.save(traced, stream)
    write_atomically(file, stream.getvalue())


def _onnx_runner(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _compare(model: nn.Module, experiment: Experiment, other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Raises FedmedError where the two differ by more than rounding, on one and on three random images."""
    drawn = torch.Generator().manual_seed(0)
    for batch in (1, 3):
        image = torch.randn(batch, experiment.data.channels, *experiment.data.patch, generator=drawn)
        with torch.no_grad():
            wanted, given = model(image), other(image)
        apart = float((wanted - given).abs().max())
        if wanted.shape != given.shape or not apart <= _MOST_APART * max(1.0, float(wanted.abs().max())):
            raise FedmedError(
                f"what would be written gives logits that are {apart:.2g} from the network's\n  fix: keep its safetensors"
            )

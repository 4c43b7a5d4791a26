"""What a model registry calls a loader: a published network from its safetensors, with nothing that is unpickled.

A registered version's ``MLmodel`` names this module; ``mlflow.pyfunc.load_model`` calls :func:`_load_pyfunc`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmed_common.models.export import read_model


class Network:
    """A published network on the CPU, in evaluation mode."""

    def __init__(self, file: Path) -> None:
        self.experiment, self.network = read_model(file)

    def predict(
        self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Logits ``(N, outputs, *patch)`` of prepared patches ``(N, channels, *data.patch)``. ``params``: none are known."""
        image = torch.from_numpy(np.ascontiguousarray(model_input, np.float32))
        with torch.inference_mode():
            return np.asarray(self.network(image).numpy())


def _load_pyfunc(path: str) -> Network:
    return Network(Path(path))

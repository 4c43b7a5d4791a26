"""What NVFlare runs at each client of the proof of concept: nothing is trained; the arrays go back with a number added.

python nvflare_echo.py
"""

from __future__ import annotations

import nvflare.client as flare
import torch


def main() -> None:
    """Answer as long as there are rounds."""
    flare.init()
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        changed = {name: torch.as_tensor(value) + 1e-3 for name, value in received.params.items()}
        flare.send(flare.FLModel(params=changed, metrics={"loss": 0.0}, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()

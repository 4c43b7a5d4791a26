"""What NVFlare runs at each client: take the steps from the weights that came, and send what became of them.

python nvflare_client.py --work WORK
"""

from __future__ import annotations

import argparse

import nvflare.client as flare
import torch
from work import UNet, work_in


def main() -> None:
    """Train as long as there are rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    options = parser.parse_args()
    work = work_in(options.work)
    flare.init()
    site = work.names.index(flare.get_site_name())
    model = UNet(work.channels, work.outputs)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        loss = work.train(model, site, received.current_round + 1)
        flare.send(
            flare.FLModel(
                params=model.state_dict(),
                metrics={"loss": loss},
                meta={"NUM_STEPS_CURRENT_ROUND": work.patients[site]},
            )
        )


if __name__ == "__main__":
    main()

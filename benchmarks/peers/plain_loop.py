"""The work as a loop in a script: no messages, no checks, no records.

python plain_loop.py WORK OUT [--backwards]
"""

from __future__ import annotations

import argparse

import torch
from work import Stopwatch, Work, write


def main() -> None:
    """Federated averaging of what training changed. ``--backwards`` adds the sites from the last to the first: what only
    rounding makes of it says how far two correct answers may be apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--backwards", action="store_true")
    options = parser.parse_args()
    work = Work.read(options.work)
    sites = list(range(len(work.names)))
    if options.backwards:
        sites.reverse()
    network, watch = work.model(), Stopwatch()
    state = network.state_dict()
    watch.begin()
    with torch.no_grad():
        weights = {name: tensor.clone() for name, tensor in state.items()}
    for number in range(1, work.rounds + 1):
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for site in sites:
            with torch.no_grad():
                for name, tensor in state.items():
                    tensor.copy_(weights[name])
            work.train(network, site, number)
            with torch.no_grad():
                for name, tensor in state.items():
                    total[name] += (tensor - weights[name]) * work.patients[site]
        weights = {name: weights[name] + total[name] / sum(work.patients) for name in weights}
        watch.end()
    write(options.out, weights, watch.began, watch.ended)


if __name__ == "__main__":
    main()

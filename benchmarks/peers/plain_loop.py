"""The work as a loop in a script: no messages, no checks, no records.

python plain_loop.py WORK OUT [--backwards]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from work import Stopwatch, Work, write


def averaged(work: Work, sites: Sequence[int], watch: Stopwatch) -> dict[str, Tensor]:
    """The last weights of federated averaging of what training changed, the sites' changes added in the given order."""
    network = work.model()
    state = network.state_dict()
    watch.begin()
    weights = {name: tensor.clone() for name, tensor in state.items()}
    for number in range(1, work.rounds + 1):
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for site in sites:
            with torch.no_grad():
                for name, tensor in state.items():
                    tensor.copy_(weights[name])
            work.train(network, site, number)
            for name, tensor in state.items():
                total[name].add_(tensor - weights[name], alpha=work.patients[site])
        weights = {name: weights[name] + total[name] / sum(work.patients) for name in weights}
        watch.end()
    return weights


def main() -> None:
    """Do the work. ``--backwards`` adds the sites from the last to the first: what only rounding makes of it says how far two
    correct answers may be apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--backwards", action="store_true")
    options = parser.parse_args()
    work, watch = Work.read(options.work), Stopwatch()
    sites = list(range(len(work.names)))
    weights = averaged(work, sites[::-1] if options.backwards else sites, watch)
    write(options.out, weights, watch.began, watch.ended)


if __name__ == "__main__":
    main()

"""The work on pfl-research (the package ``pfl``): its federated averaging on its simulated backend with PyTorch.

    python pfl_simulated.py WORK OUT
    python -m torch.distributed.run --nproc-per-node N pfl_simulated.py WORK OUT

The second way is pfl's own to have several processes share each cohort.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import cycle

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from work import Stopwatch, UNet, Work, loss, write

_NO_TRAINING = 1
"""The batch size by which pfl's evaluation is known here: it measures each user before and after the first round."""


class Model(UNet):
    """What pfl wants of a network."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """Of a batch."""
        self.train()
        return loss(self(image), label)

    def metrics(self, image: Tensor, label: Tensor) -> dict[str, Weighted]:
        """Nothing is measured: the other frameworks measure nothing either."""
        return {"nothing": Weighted(0.0, 1)}


class Site(Dataset):
    """A site in one round. Its length, by which pfl weighs it, is its number of patients."""

    def __init__(self, work: Work, site: int, round_number: int) -> None:
        super().__init__(raw_data=(), user_id=work.names[site])
        self._work, self._site, self._round = work, site, round_number

    def __len__(self) -> int:
        return self._work.patients[self._site]

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The round's batches; one of nothing where pfl evaluates."""
        if batch_size == _NO_TRAINING:
            return iter([(torch.empty(0), torch.empty(0))])
        return self._work.batches(self._site, self._round)


class Sites:
    """Makes a site's data; the second time that it is asked for a site, the second round has begun."""

    def __init__(self, work: Work) -> None:
        self._work, self._asked = work, dict.fromkeys(range(len(work.names)), 0)

    def __call__(self, site: int) -> Site:
        self._asked[site] += 1
        return Site(self._work, site, self._asked[site])


class Timed(TrainingProcessCallback):
    """Says when the rounds begin and end."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self._watch.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._watch.end()
        return False, Metrics()


def main() -> None:
    """Run it. Sites come in the work's order; a server learning rate of 1 makes the mean of the updates the step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work")
    parser.add_argument("out")
    options = parser.parse_args()
    work, watch = Work.read(options.work), Stopwatch()
    sites, processes = len(work.names), int(os.environ.get("WORLD_SIZE", "1"))
    if sites % processes:
        raise SystemExit(
            f"pfl deals users to {processes} processes in turn, so each round of {sites} sites would have others"
        )
    network = Model(work.channels, work.outputs)
    network.load_state_dict(work.start())
    model = PyTorchModel(
        network,
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=work.momentum),
        torch.optim.SGD(network.parameters(), lr=1.0),
    )
    data = FederatedDataset(Sites(work), cycle(range(sites)).__next__)
    algorithm, backend = FederatedAveraging(), SimulatedBackend(data, data, [WeightByDatapoints()])
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=sites,
            val_cohort_size=None,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=work.steps,
            local_learning_rate=work.learning_rate,
            local_batch_size=work.batch,
            local_max_grad_norm=work.gradient_norm,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=_NO_TRAINING),
        callbacks=[Timed(watch)],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        write(options.out, network.state_dict(), watch.began, watch.ended)


if __name__ == "__main__":
    main()

"""The work as a plain Flower app on Flower's simulation engine, which is Ray; without fedmed, as Flower's tutorials write it.

    python flower_ray.py WORK OUT --workers N

``run_simulation`` starts the engine in this process; ``flwr run`` would start a SuperLink first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import Stopwatch, UNet, Work, work_in, write


def client_app(folder: str) -> ClientApp:
    """Each message trains one site."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        work = work_in(folder)
        site = int(context.node_config["partition-id"])
        model = UNet(work.channels, work.outputs)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = work.train(model, site, int(message.content["config"]["server-round"]))
        metrics = MetricRecord({"train_loss": loss, "num-examples": work.patients[site]})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


class Timed(FedAvg):
    """Flower's own, which says when its rounds begin and end."""

    def __init__(self, watch: Stopwatch, **settings: object) -> None:
        super().__init__(**settings)
        self._watch = watch

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round == 1:
            self._watch.begin()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        self._watch.end()
        return found


def main() -> None:
    """Run it; each site has one core, and ``--workers`` of them work at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    work = Work.read(options.work)
    sites = len(work.names)
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        watch = Stopwatch()
        strategy = Timed(
            watch,
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=sites,
            min_available_nodes=sites,
        )
        result = strategy.start(grid, ArrayRecord(work.start()), num_rounds=work.rounds)
        weights = {
            name: tensor.to(torch.float32) for name, tensor in result.arrays.to_torch_state_dict().items()
        }
        write(options.out, weights, watch.began, watch.ended)

    run_simulation(
        server_app=app,
        client_app=client_app(options.work),
        num_supernodes=sites,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": options.workers, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main()

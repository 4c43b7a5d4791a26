"""Flower's own strategies, played on updates that a test hands them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmed_common.params import Parameters

Updates = Mapping[str, tuple[int, Parameters]]
"""By site its patients and its update."""


class Nodes:
    """A grid of which only its nodes are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def get_node_ids(self) -> Iterator[int]:
        return iter(range(1, self._count + 1))


@pytest.fixture
def flower() -> Iterator[None]:
    """A process that may write Flower's messages."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    """Arrays as Flower carries them."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def played(
    strategy: Any, start: Parameters, rounds: Sequence[Updates], losses: Mapping[str, float] | None = None
) -> list[Parameters]:
    """What Flower's strategy makes of each round's updates, from what it made of the round before, in single precision."""
    results, at = list[Parameters](), start
    gc.freeze()  # some strategies search for garbage after each array
    for number, updates in enumerate(rounds, 1):
        orders = strategy.configure_train(number, record(at), ConfigRecord(), Nodes(len(updates)))
        by_node = {order.metadata.dst_node_id: order for order in orders}
        replies = []
        for node, (site, (patients, delta)) in enumerate(updates.items(), 1):
            told: dict[str, Any] = {"num-examples": patients}
            told |= {"train_loss": losses[site]} if losses else {}
            arrays = {name: np.add(at[name], array, dtype=np.float32) for name, array in delta.items()}
            content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord(told)})
            replies.append(Message(content, reply_to=by_node[node]))
        new, _ = strategy.aggregate_train(number, replies)
        assert new is not None
        at = {name: new[name].numpy().astype(np.float32) for name in at}
        results.append(at)
    gc.unfreeze()
    return results

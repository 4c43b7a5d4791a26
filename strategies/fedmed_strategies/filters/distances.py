"""How far updates lie from each other. Running statistics do not count: they are measured, and would outweigh what is learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import QuorumError
from fedmed_common.params import is_statistic
from fedmed_strategies.pieces import Arrays


def squared_distances(updates: Sequence[Arrays]) -> NDArray[np.float64]:
    """``(n, n)``, in double precision, one array at a time."""
    count = len(updates)
    squares = np.zeros((count, count))
    for name in updates[0]:
        if is_statistic(name):
            continue
        for row in range(count):
            for column in range(row):
                gap = updates[row][name].astype(np.float64) - updates[column][name]
                squares[row, column] += np.einsum("i,i->", gap.ravel(), gap.ravel())
    return squares + squares.T


def enough(rule: str, have: int, need: int, hostile: int) -> None:
    """Refuse a round with too few answers for what the rule promises.

    Raises:
        QuorumError: names the rule and the numbers.
    """
    if have < need:
        raise QuorumError(
            f"'{rule}' against {hostile} hostile sites needs {need} answers in a round, and {have} came\n"
            f"  fix: see to the sites that did not answer, or lower recipe.settings.{rule}.hostile"
        )

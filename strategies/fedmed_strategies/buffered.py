"""Sites that train at once from different versions of the model, and a server that steps after every few updates: FedBuff."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedmed_strategies.pieces import Piece


class Buffered(Piece):
    """After ``buffer`` updates w <- w + rate sum_k p_k s(tau_k) delta_k / sum_k p_k, s(tau) = (1 + tau)^-exponent.

    tau_k, an update's staleness, is how many steps the server took since it sent the model that the update began from. Up to
    ``concurrency`` sites train at once; who has answered is asked anew after the step, with the new model. Of an update that is
    older than ``most_staleness`` nothing is used. The paper asks another client at each answer; among a few hospitals that
    would be the same one with the same model, which would train the same again.
    """

    name = "buffered"
    source = (
        "Nguyen et al. 2022, 'Federated learning with buffered asynchronous aggregation', AISTATS, algorithm 1; the weight "
        "1 / sqrt(1 + tau) is theirs"
    )
    buffer: Annotated[int, Field(ge=1)] | None = Field(
        None, description="K: updates in a step; absent: half of those who train at once"
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="M: so many sites train at once; absent: all"
    )
    most_staleness: Annotated[int, Field(ge=0, le=10_000)] = 10
    exponent: Annotated[float, Field(ge=0.0, le=10.0)] = 0.5

    @model_validator(mode="after")
    def _can_be_filled(self) -> Self:
        if None not in (self.buffer, self.concurrency) and self.buffer > self.concurrency:  # type: ignore[operator]
            raise ValueError(
                f"buffer ({self.buffer}) is more than concurrency ({self.concurrency}): so many updates never come"
            )
        return self

    def sizes(self, trainers: int) -> tuple[int, int]:
        """``buffer`` and ``concurrency`` where so many sites can train. The first may be more than there are."""
        at_once = trainers if self.concurrency is None else min(self.concurrency, trainers)
        return (at_once + 1) // 2 if self.buffer is None else self.buffer, at_once

    def freshness(self, staleness: int) -> float:
        """s: what an update's weight is multiplied by; exactly 1 for one that is not stale."""
        return float((1 + staleness) ** -self.exponent)

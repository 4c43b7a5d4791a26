"""What a site's privacy ledger comes to: by run and altogether, what is left, and how it grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed_client.data.splits import Split
from fedmed_client.ledger import Ledger, Reservation
from fedmed_common import privacy
from fedmed_common.site_config import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpending:
    """What one run has spent of each of the site's patients of a ``split``.

    ``reservations``: pieces of work that were charged, those included that a crash ended before anything left.
    ``noise_multipliers``: each sigma; ``sampling_rates``: each q. ``epsilon``: at :attr:`Spending.delta`; those of several
    runs do not add up. ``sharing``: so many sites at least shared the noise, where that is more than one.
    """

    run: str
    split: Split
    experiment: str
    rounds: int
    reservations: int
    steps: int
    noise_multipliers: tuple[float, ...]
    sampling_rates: tuple[float, ...]
    epsilon: float
    first: str
    last: str
    sharing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """A ledger's whole. ``maximum_epsilon``: the site's ceiling over all runs; None: it has none.

    ``growth``: by some rows of the ledger, evenly apart and the last among them, the time, and the epsilon of all up to it.
    """

    site: str
    delta: float
    maximum_epsilon: float | None
    epsilon: float
    rows: int
    runs: tuple[RunSpending, ...]
    growth: tuple[tuple[str, float], ...]

    @property
    def shared(self) -> int:
        """The least number of sites that shared the noise of a run; 0 where no noise was shared."""
        return min((run.sharing for run in self.runs if run.sharing > 1), default=0)

    @property
    def left(self) -> float | None:
        """By how much the epsilon of all may still grow."""
        return None if self.maximum_epsilon is None else max(0.0, self.maximum_epsilon - self.epsilon)


def spending(folder: Path, site: str, policy: Policy, points: int = 0) -> Spending:
    """What the ledger in the site's folder comes to. ``points``: of its growth, each of which takes the accountant's time.

    Raises:
        PolicyRefusal: ``privacy_ledger``, where it is not as it was written.
    """
    rows = Ledger(folder).read()
    delta = policy.budget_delta
    by_run: dict[tuple[str, Split], list[Reservation]] = {}
    for row in rows:
        by_run.setdefault((row.run, row.split), []).append(row)
    ends = {round(number * len(rows) / points) for number in range(1, points + 1)} - {0}
    return Spending(
        site=site,
        delta=delta,
        maximum_epsilon=policy.maximum_epsilon,
        epsilon=_epsilon(rows, delta),
        rows=len(rows),
        runs=tuple(_of_run(own, delta) for own in by_run.values()),
        growth=tuple((rows[end - 1].time, _epsilon(rows[:end], delta)) for end in sorted(ends)),
    )


def _of_run(rows: Sequence[Reservation], delta: float) -> RunSpending:
    return RunSpending(
        run=rows[0].run,
        split=rows[0].split,
        experiment=rows[-1].experiment,
        rounds=len({row.round for row in rows}),
        reservations=len(rows),
        steps=sum(row.steps for row in rows),
        noise_multipliers=tuple(sorted({row.noise_multiplier for row in rows})),
        sampling_rates=tuple(sorted({row.sampling_rate for row in rows})),
        epsilon=_epsilon(rows, delta),
        first=rows[0].time,
        last=rows[-1].time,
        sharing=max(row.sharing for row in rows),
    )


def _epsilon(rows: Sequence[Reservation], delta: float) -> float:
    return privacy.epsilon([row.spent for row in rows], delta)

"""Classes that a drawn site lacks: vacant, without a training patient there; unannotated, not looked for there.

Both words are those of ``fedmed phantom``, whose hospitals have such gaps too. Each class keeps a site that annotates it and has
training patients with it, so a few sites may have fewer gaps than asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import ConfigError
from fedmed_simulations.partition.patients import Homes, Patients

Gaps = NDArray[np.bool_]
"""``(S, K)``."""


def make_vacant(
    homes: Homes, patients: Patients, sites: int, count: int, rng: np.random.Generator
) -> tuple[Homes, Gaps]:
    """Deal all training patients of ``count`` classes per site to other sites, and say which.

    Sites take turns; each gives up, of the classes that it has, one that most sites have. A patient who shows several classes
    goes where none of them is vacant; where there is no such place for one of them, or nobody else would train at the site, the
    class stays. No site loses its last training patient, and validation and test patients stay where they are.

    Raises:
        ConfigError: not one class can be made vacant at any site.
    """
    homes = homes.copy()
    vacant = np.zeros((sites, patients.shows.shape[1]), bool)
    for site in rng.permutation(sites):
        for _ in range(count):
            has = patients.positives(homes, sites) > 0
            mine = np.flatnonzero(has[site]).tolist()
            can = [k for k in mine if _can_leave(homes, patients, vacant, int(site), k)]
            chosen = _commonest(can, has, rng)
            if chosen is not None:
                vacant[site, chosen] = True
                _move(homes, patients, vacant, int(site), chosen, rng)
    if count and not vacant.any():
        raise ConfigError(
            f"vacant = {count} cannot be had: whoever shows a class shows others too, and no site can take them all",
            field="simulation.partition.vacant",
            fix="leave it out, or draw with patients who show different classes",
        )
    return homes, vacant


def hide(
    positives: NDArray[np.int64], annotated: Gaps, vacant: Gaps, count: int, rng: np.random.Generator
) -> Gaps:
    """Which classes each site does not look for, ``(S, K)``, ``count`` per site.

    Never a vacant one, and never the last one that the site's training patients show. One that they show is taken before others.

    ``positives``: ``(S, K)``, training patients who show the class; ``annotated``: ``(S, K)``, what the sites' labels cover.

    Raises:
        ConfigError: no class can be left unannotated at any site.
    """
    hidden = np.zeros_like(vacant)
    for site in rng.permutation(len(hidden)):
        for _ in range(count):
            looked_for = annotated & ~hidden
            whole = looked_for & (positives > 0)
            elsewhere = whole.sum(axis=0) - whole[site] > 0
            can = looked_for[site] & ~vacant[site] & elsewhere & (looked_for[site].sum() > 1)
            if whole[site].sum() == 1:
                can &= ~whole[site]
            preferred = can & whole[site]
            chosen = _commonest(np.flatnonzero(preferred if preferred.any() else can).tolist(), whole, rng)
            if chosen is not None:
                hidden[site, chosen] = True
    if count and not hidden.any():
        raise ConfigError(
            f"unannotated = {count} cannot be had: no class is annotated, and shown, at more than one site",
            field="simulation.partition.unannotated",
            fix="leave it out, or draw fewer sites",
        )
    return hidden


def _commonest(classes: list[int], has: Gaps, rng: np.random.Generator) -> int | None:
    """Of some classes the one that most sites have; equal ones by chance."""
    score = has.sum(axis=0) + rng.uniform(0, 0.5, size=has.shape[1])
    return max(classes, key=lambda k: float(score[k]), default=None)


def _can_leave(homes: Homes, patients: Patients, vacant: Gaps, site: int, klass: int) -> bool:
    there = patients.trains & (homes == site)
    leaving = there & patients.shows[:, klass]
    if not (there & ~leaving).any():
        return False
    patterns = np.unique(patients.shows[leaving], axis=0)
    return all(_open_to(pattern, vacant, site).any() for pattern in patterns)


def _open_to(pattern: NDArray[np.bool_], vacant: Gaps, leaves: int) -> NDArray[np.bool_]:
    """The sites, ``(S,)``, but the one that is left, at which no class of the pattern ``(K,)`` is vacant."""
    closed = np.any(vacant & pattern, axis=1, keepdims=True)[:, 0]
    return np.asarray(~closed & (np.arange(len(vacant)) != leaves))


def _move(
    homes: Homes, patients: Patients, vacant: Gaps, site: int, klass: int, rng: np.random.Generator
) -> None:
    """The more training patients with the class a site has, the more of those who leave it takes."""
    there = patients.positives(homes, len(vacant))[:, klass] + 1.0
    for place in np.flatnonzero(patients.trains & (homes == site) & patients.shows[:, klass]):
        weight = there * _open_to(patients.shows[place], vacant, site)
        homes[place] = rng.choice(len(vacant), p=weight / weight.sum())
        there[homes[place]] += 1.0


def shortfall(gaps: Gaps, count: int, word: str, names: list[str]) -> tuple[str, ...]:
    """A sentence for the sites that have fewer gaps than asked for."""
    short = [name for name, row in zip(names, gaps, strict=True) if row.sum() < count]
    if not short:
        return ()
    more = f" and {len(short) - 5} more" if len(short) > 5 else ""
    return (f"Fewer than {count} of the classes could be made {word} at {', '.join(short[:5])}{more}.",)

"""Weights that a round's answers change for the next, against their papers' formulas worked out over the whole history."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from federated import scene
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmed_common.params import Parameters
from fedmed_strategies.pieces import Answer, Memory, Site
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round
from fedmed_strategies.weights.contribution import Contribution
from fedmed_strategies.weights.pid import Pid
from fedmed_strategies.weights.reported import Carried

SITES = [Site(name="a", patients=10), Site(name="b", patients=30), Site(name="c", patients=60)]
START: Parameters = {"weight": np.zeros((2, 3), np.float32)}
PATIENTS = np.array([0.1, 0.3, 0.6])


def shares_after(weights: Carried, told: list[dict[str, dict[str, float]]]) -> np.ndarray[Any, Any]:
    """Of the sites in the round that follows ``told``: by round, what each site said."""
    memory: Memory = {}
    for scalars in told:
        playing = Round(Recipe(weights=weights), scene(SITES, START), START, memory)
        for site in SITES:
            playing.add(Answer(site=site, delta=START, scalars=scalars[site.name]))
        memory = playing.finish()[1]
    return np.array(list(weights.shares(scene(SITES, START), memory).values()))


@settings(deadline=None)
@given(losses=arrays(np.float64, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(0, 10)))
def test_pid_is_its_formula_over_the_last_five_losses(losses: np.ndarray[Any, Any]) -> None:
    told = [
        {site.name: {"global_loss": float(loss)} for site, loss in zip(SITES, row, strict=True)}
        for row in losses
    ]
    falls = np.maximum(losses[-2] - losses[-1], 0.0) if len(losses) > 1 else np.zeros(3)
    sums = losses[-5:].sum(axis=0)
    terms = [
        PATIENTS,
        falls / falls.sum() if falls.sum() else PATIENTS,
        sums / sums.sum() if sums.sum() else PATIENTS,
    ]
    wanted = 0.45 * terms[0] + 0.45 * terms[1] + 0.1 * terms[2]
    np.testing.assert_allclose(shares_after(Pid(), told), wanted, atol=1e-6)


@settings(deadline=None)
@given(
    cosines=arrays(np.float64, st.tuples(st.integers(1, 6), st.just(3)), elements=st.floats(-1, 0.9)),
    error=arrays(np.float64, 3, elements=st.floats(0.01, 5)),
)
def test_contribution_is_the_mean_of_its_two_shares(
    cosines: np.ndarray[Any, Any], error: np.ndarray[Any, Any]
) -> None:
    told = [
        {
            site.name: {"cosine": float(cosine), "error_without": float(last)}
            for site, cosine, last in zip(SITES, row, error, strict=True)
        }
        for row in cosines
    ]
    apart = 1 - cosines.mean(axis=0)
    wanted = (apart / apart.sum() + error / error.sum()) / 2
    np.testing.assert_allclose(shares_after(Contribution(), told), wanted, atol=1e-6)


def test_until_all_sites_have_been_compared_they_count_by_patients() -> None:
    told = [{site.name: {"cosine": 0.0, "error_without": 0.0} for site in SITES}]
    np.testing.assert_allclose(shares_after(Contribution(), told), PATIENTS)


def test_what_a_site_works_out_of_the_others_is_what_they_sent() -> None:
    """delta_-k and w_-k from its own update, its share and two global models, as from all updates."""
    import torch

    rng = np.random.default_rng(3)
    before = {"weight": rng.normal(size=(2, 3)).astype(np.float32)}
    updates = {site.name: {"weight": rng.normal(size=(2, 3)).astype(np.float32)} for site in SITES}
    after = {
        "weight": before["weight"]
        + sum(p * u["weight"] for p, u in zip(PATIENTS, updates.values(), strict=True))
    }
    others = (0.1 * updates["a"]["weight"] + 0.6 * updates["c"]["weight"]) / 0.7
    model = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(after["weight"]))
    seen = []
    work = SimpleNamespace(
        anchor={"weight": torch.from_numpy(after["weight"].astype(np.float32))},
        memory={
            "contribution/delta/weight": updates["b"]["weight"],
            "contribution/start/weight": before["weight"],
        },
        down={"contribution/share": np.array(0.3, np.float32)},
        parameters=dict(model.named_parameters()),
        measure=lambda: (seen.append(model.weight.detach().numpy().copy()), 0.25)[1],
    )
    half: Any = Contribution().at_site(work)  # type: ignore[arg-type]
    half.begin()
    left = half.finish({"weight": updates["b"]["weight"]})
    mine = updates["b"]["weight"].ravel()
    cosine = mine @ others.ravel() / np.linalg.norm(mine) / np.linalg.norm(others)
    assert left.scalars == {"cosine": pytest.approx(cosine, abs=1e-5), "error_without": 0.25}
    np.testing.assert_allclose(seen[0], before["weight"] + others, atol=1e-5)
    np.testing.assert_array_equal(model.weight.detach().numpy(), after["weight"].astype(np.float32))

"""Where a rule has nothing to do, it is FedAvg: bit for bit where it leaves the updates alone, else within single precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from federated import play, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import Quadratics

from fedmed_common.errors import QuorumError
from fedmed_common.params import Parameters
from fedmed_strategies.aggregators.bulyan import Bulyan
from fedmed_strategies.aggregators.centred_clipping import CentredClipping
from fedmed_strategies.aggregators.coordinates import Median, TrimmedMean
from fedmed_strategies.aggregators.geometric_median import GeometricMedian
from fedmed_strategies.aggregators.holders import Holders
from fedmed_strategies.buffered import Buffered
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.filters.krum import Krum, MultiKrum
from fedmed_strategies.filters.nearest_neighbours import NearestNeighbours
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.pieces import Answer, Layers, Memory, Site
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_half import Round
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.weights.disco import Disco
from fedmed_strategies.weights.fair import Fair
from fedmed_strategies.weights.fixed import Equal
from fedmed_strategies.weights.gap import Gap
from fedmed_strategies.weights.nova import Nova

SHAPES = {"body.weight": (3, 2), "head.weight": (3, 4), "head.bias": (3,)}
WITHIN = 1e-7
"""Numbers lie within 1/4, where neighbours in single precision are 3e-8 apart."""

BIT_FOR_BIT = {
    "Multi-Krum that keeps all": Recipe(filters=(MultiKrum(hostile=0, kept=99),)),
    "no momentum": Recipe(server_optimizer=Momentum(momentum=0.0)),
    "momentum in the first round": Recipe(server_optimizer=Momentum(momentum=0.9)),
    "clipped at a length that none has, without noise": Recipe(
        central_privacy=CentralPrivacy(clipping_norm=1e6, noise_multiplier=0.0)
    ),
    "a bound that none reaches": Recipe(filters=(NormBound(maximum=1e6),)),
    "a buffer of updates that are not stale": Recipe(buffered=Buffered()),
}
NEARLY = {
    "RFA far within its smoothing": Recipe(aggregator=GeometricMedian(nu=1e6)),
    "centred clipping with a radius beyond all": Recipe(aggregator=CentredClipping(radius=1e6)),
    "Disco that looks at sizes alone": Recipe(weights=Disco(a=0.0, b=0.0)),
    "FedNova with as many steps": Recipe(weights=Nova()),
    "no gap": Recipe(weights=Gap()),
}
NEARLY_OF_EQUALS = {
    "nothing trimmed": Recipe(aggregator=TrimmedMean(share=0.0)),
    "neighbours are all": Recipe(filters=(NearestNeighbours(hostile=0),)),
    "Bulyan against nobody": Recipe(aggregator=Bulyan(hostile=0)),
    "as many holders everywhere": Recipe(aggregator=Holders()),
    "q = 0": Recipe(weights=Fair(q=0.0)),
}
SCALARS = {"effective_steps": 7.0, "gap": 0.0, "start_loss": 0.6}
seeds = st.integers(0, 2**32 - 1)
counts = st.lists(st.integers(1, 60), min_size=2, max_size=7)
few = settings(max_examples=20, deadline=None)


def drawn(seed: int) -> Callable[[], Parameters]:
    rng = np.random.default_rng(seed)
    return lambda: {
        name: rng.uniform(-0.125, 0.125, shape).astype(np.float32) for name, shape in SHAPES.items()
    }


def played(
    recipe: Recipe, patients: Sequence[int], seed: int, order: Sequence[int] | None = None
) -> tuple[Parameters, Memory]:
    """One round of sites whose updates are drawn; ``order``: of their answers."""
    draw = drawn(seed)
    start = draw()
    presence = dict.fromkeys(("a", "b", "c"), 10)
    sites = [
        Site(name=f"s{number}", patients=count, presence=presence) for number, count in enumerate(patients)
    ]
    updates = [draw() for _ in sites]
    places = range(len(sites)) if order is None else order
    rows = Layers(trained=tuple(SHAPES), rows={"head.weight": 0, "head.bias": 0})
    done = Round(recipe, scene([sites[place] for place in places], start, layers=rows), start, {})
    for place in places:
        done.add(Answer(site=sites[place], delta=updates[place], scalars=SCALARS))
    return done.finish()


def farthest(a: Parameters, b: Parameters) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("recipe", BIT_FOR_BIT.values(), ids=BIT_FOR_BIT)
@few
@given(seed=seeds, patients=counts)
def test_bit_for_bit(recipe: Recipe, seed: int, patients: list[int]) -> None:
    assert farthest(played(recipe, patients, seed)[0], played(Recipe(), patients, seed)[0]) == 0.0


@pytest.mark.parametrize("recipe", NEARLY.values(), ids=NEARLY)
@few
@given(seed=seeds, patients=counts)
def test_within_single_precision(recipe: Recipe, seed: int, patients: list[int]) -> None:
    assert farthest(played(recipe, patients, seed)[0], played(Recipe(), patients, seed)[0]) <= WITHIN


@pytest.mark.parametrize("recipe", NEARLY_OF_EQUALS.values(), ids=NEARLY_OF_EQUALS)
@few
@given(seed=seeds, sites=st.integers(2, 7), patients=st.integers(1, 60))
def test_within_single_precision_where_sites_are_as_large(
    recipe: Recipe, seed: int, sites: int, patients: int
) -> None:
    equals = [patients] * sites
    assert farthest(played(recipe, equals, seed)[0], played(Recipe(), equals, seed)[0]) <= WITHIN


@few
@given(seed=seeds, patients=counts)
def test_without_gaps_weights_stay_by_patients(seed: int, patients: list[int]) -> None:
    kept = played(Recipe(weights=Gap()), patients, seed)[1]
    for number, count in enumerate(patients):
        assert kept[f"gap/share/s{number}"] == pytest.approx(count / sum(patients), abs=1e-12)


@few
@given(seed=seeds)
def test_q_of_zero_is_the_mean_of_equals(seed: int) -> None:
    uneven = [1, 20, 300]
    fair, equal = (played(Recipe(weights=weights), uneven, seed)[0] for weights in (Fair(q=0.0), Equal()))
    assert farthest(fair, equal) <= WITHIN


@few
@given(seed=seeds, holder=st.integers(0, 3))
def test_a_sole_holder_keeps_its_row(seed: int, holder: int) -> None:
    """Bit for bit; the rows of the other classes, which all hold, are those of the mean."""
    draw = drawn(seed)
    start, updates = draw(), [draw() for _ in range(4)]
    sites = [
        Site(name=f"s{n}", patients=10, presence={"a": 5, "b": 5, "c": 7 if n == holder else 0})
        for n in range(4)
    ]
    rows = Layers(trained=tuple(SHAPES), rows={"head.weight": 0, "head.bias": 0})
    done = Round(Recipe(aggregator=Holders()), scene(sites, start, layers=rows), start, {})
    for site, delta in zip(sites, updates, strict=True):
        done.add(Answer(site=site, delta=delta))
    new = done.finish()[0]
    mean = play(Recipe(), start, {site.name: (10, delta) for site, delta in zip(sites, updates, strict=True)})
    for name in ("head.weight", "head.bias"):
        np.testing.assert_array_equal(new[name][2], start[name][2] + updates[holder][name][2])
        np.testing.assert_allclose(new[name][:2], mean[name][:2], rtol=0, atol=WITHIN)


ORDERLESS = {
    "median": (Recipe(aggregator=Median()), 0.0),
    "trimmed mean": (Recipe(aggregator=TrimmedMean()), 0.0),
    "Krum": (Recipe(filters=(Krum(),)), 0.0),
    "Multi-Krum": (Recipe(filters=(MultiKrum(),)), WITHIN),
    "Bulyan": (Recipe(aggregator=Bulyan()), WITHIN),
    "RFA": (Recipe(aggregator=GeometricMedian()), WITHIN),
    "centred clipping": (Recipe(aggregator=CentredClipping(radius=0.1)), WITHIN),
    "norm bound": (Recipe(filters=(NormBound(maximum=0.1),)), WITHIN),
    "NNM": (Recipe(filters=(NearestNeighbours(),)), WITHIN),
    "NNM, then the median": (Recipe(filters=(NearestNeighbours(),), aggregator=Median()), WITHIN),
}


@pytest.mark.parametrize(("recipe", "within"), ORDERLESS.values(), ids=ORDERLESS)
@few
@given(seed=seeds, order=st.permutations(range(7)))
def test_robust_rules_do_not_depend_on_the_order_of_sites(
    recipe: Recipe, within: float, seed: int, order: list[int]
) -> None:
    patients = [10, 11, 12, 13, 14, 15, 16]
    first, second = (played(recipe, patients, seed, places)[0] for places in (None, order))
    assert farthest(first, second) <= within


def test_a_proximal_term_of_nothing_is_none_bit_for_bit() -> None:
    toy = Quadratics.drawn(1)
    runs = [toy.run(recipe, 3).w for recipe in (Recipe(), Recipe(corrections=(Prox(mu=0.0),)))]
    np.testing.assert_array_equal(*runs)
    assert not np.array_equal(runs[0], toy.run(Recipe(corrections=(Prox(mu=0.5),)), 3).w)


@few
@given(seed=seeds, patients=st.lists(st.integers(1, 60), min_size=6, max_size=6))
def test_one_step_at_each_site_is_one_step_on_the_pooled_loss(seed: int, patients: list[int]) -> None:
    """FedSGD: McMahan et al. 2017, section 2; in double precision."""
    toy = replace(Quadratics.drawn(seed), patients=tuple(patients), steps=(1,) * 6)
    start = np.random.default_rng(seed).normal(size=5)
    share = np.array(patients) / sum(patients)
    gradient = np.einsum("k,kij,kj->i", share, toy.hessians, start - toy.optima)
    np.testing.assert_allclose(toy.run(Recipe(), 1, start).w, start - toy.rate * gradient, rtol=0, atol=1e-12)


def test_running_statistics_do_not_change_how_much_a_site_counts() -> None:
    """Whatever they are: an update's length, and how near it is to others, are those of what is learned."""
    draw = drawn(5)
    start, updates = draw(), [draw() for _ in range(7)]
    measured = {"norm.running_mean": np.zeros(2, np.float32), "norm.running_var": np.ones(2, np.float32)}
    recipes = [recipe for recipe, _ in ORDERLESS.values()]
    recipes += [
        Recipe(weights=Fair(q=1.0)),
        Recipe(central_privacy=CentralPrivacy(clipping_norm=0.1, noise_multiplier=0.0)),
    ]
    for recipe in recipes:
        results = []
        for extra in ({}, measured):
            sites = [Site(name=f"s{n}", patients=10) for n in range(7)]
            done = Round(recipe, scene(sites, start | extra), start | extra, {})
            for number, (site, delta) in enumerate(zip(sites, updates, strict=True)):
                wide = {name: np.full(2, 10.0**number, np.float32) for name in extra}
                done.add(Answer(site=site, delta=delta | wide, scalars={"start_loss": 0.1 + number}))
            results.append(done.finish()[0])
        assert all(np.array_equal(results[0][name], results[1][name]) for name in start), recipe


def test_a_round_in_which_nobody_counts_is_said() -> None:
    """Of two sites the one with few patients of a single class weighs nothing, and is the only one drawn."""
    start = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    sites = [
        Site(name="even", patients=90, counts=np.full(3, 30.0)),
        Site(name="odd", patients=10, counts=np.array([10.0, 0.0, 0.0])),
    ]
    collecting = Round(Recipe(weights=Disco(a=1.0, b=0.0)), scene(sites, start), start, {})
    collecting.add(Answer(site=sites[1], delta=start))
    with pytest.raises(QuorumError, match="no answer of round 1 counts: 'disco' gives each a weight of 0"):
        collecting.finish()

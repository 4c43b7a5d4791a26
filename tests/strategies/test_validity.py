"""The table of what cannot be combined: each rule's sentence, and beside it a combination that is fine."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.models import build_model
from fedmed_strategies.aggregators.bulyan import Bulyan
from fedmed_strategies.aggregators.coordinates import Median, TrimmedMean
from fedmed_strategies.aggregators.geometric_median import GeometricMedian
from fedmed_strategies.aggregators.holders import Holders
from fedmed_strategies.buffered import Buffered
from fedmed_strategies.central_privacy import CentralPrivacy
from fedmed_strategies.corrections.dyn import Dyn
from fedmed_strategies.corrections.kept_moments import KeptMoments
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.corrections.scaffold import Scaffold
from fedmed_strategies.filters.krum import Krum
from fedmed_strategies.filters.nearest_neighbours import NearestNeighbours
from fedmed_strategies.filters.norm_bound import NormBound
from fedmed_strategies.flower import Flower
from fedmed_strategies.inputs.random_normalisation import RandomNormalisation
from fedmed_strategies.longtail.weighted import ClassBalanced, Focal
from fedmed_strategies.personal.layers import OwnHead, OwnNorms
from fedmed_strategies.personal.networks import Ditto, FineTuned, MeanRegularised
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import Recipe
from fedmed_strategies.server_optimizers.momentum import Momentum
from fedmed_strategies.stages.operating_point import OperatingPoint
from fedmed_strategies.statistics.counts import Counts
from fedmed_strategies.validity import EXPERIMENT_RULES, PIECE_RULES, refuse, refuse_network, warnings
from fedmed_strategies.weights.contribution import Contribution
from fedmed_strategies.weights.disco import Disco
from fedmed_strategies.weights.fair import Fair
from fedmed_strategies.weights.fixed import Equal
from fedmed_strategies.weights.gap import Gap
from fedmed_strategies.weights.nova import Nova

Make = Callable[[], Recipe]
CLIPPED = CentralPrivacy()
REGIONS = {"simulation": {"federation": "hospitals", "regions": 2}}
SURVEY: dict[str, Any] = {
    "rounds": 0,
    "data": {"intensity": {"kind": "scale"}, "splits": {"validation": 0.0, "test": 0.0}},
}
DYN = {"weights": Equal(), "corrections": (Dyn(),)}

PIECES: list[tuple[str, Make, Make]] = [
    (
        "a strategy of Flower's x what the server does otherwise",
        lambda: Recipe(aggregator=Flower(strategy="FedAdam"), corrections=(Scaffold(),)),
        lambda: Recipe(aggregator=Flower(strategy="FedAdam"), corrections=(Prox(),)),
    ),
    (
        "a strategy of Flower's x what the server does otherwise",
        lambda: Recipe(aggregator=Flower(strategy="FedAdam"), server_optimizer=Momentum(momentum=0.9)),
        lambda: Recipe(aggregator=Flower(strategy="FedAdam"), personal=OwnNorms()),
    ),
    (
        "secure aggregation x a rule that compares updates",
        lambda: Recipe(secure=True, filters=(Krum(),)),
        lambda: Recipe(secure=True, weights=Equal()),
    ),
    (
        "secure aggregation x a rule that compares updates",
        lambda: Recipe(secure=True, aggregator=Median()),
        lambda: Recipe(secure=True, aggregator=Holders()),
    ),
    (
        "secure aggregation x statistics of each site",
        lambda: Recipe(secure=True, inputs=RandomNormalisation()),
        lambda: Recipe(secure=True, losses=(ClassBalanced(),)),
    ),
    (
        "secure aggregation x weights that are not known beforehand",
        lambda: Recipe(secure=True, weights=Gap()),
        lambda: Recipe(secure=True, weights=Equal()),
    ),
    (
        "secure aggregation x what the server does to each update",
        lambda: Recipe(secure=True, filters=(NormBound(),)),
        lambda: Recipe(secure=True, server_optimizer=Momentum(momentum=0.9)),
    ),
    (
        "secure aggregation x a clipping norm that follows the updates",
        lambda: Recipe(secure=True, central_privacy=CentralPrivacy(adapts=0.2)),
        lambda: Recipe(secure=True, central_privacy=CLIPPED),
    ),
    (
        "central privacy x a rule that is no weighted mean",
        lambda: Recipe(central_privacy=CLIPPED, aggregator=TrimmedMean()),
        lambda: Recipe(central_privacy=CLIPPED, server_optimizer=Momentum(momentum=0.9)),
    ),
    (
        "central privacy x a rule that is no weighted mean",
        lambda: Recipe(central_privacy=CLIPPED, filters=(NormBound(),)),
        lambda: Recipe(central_privacy=CLIPPED),
    ),
    (
        "central privacy x weights that answers change",
        lambda: Recipe(central_privacy=CLIPPED, weights=Gap()),
        lambda: Recipe(central_privacy=CLIPPED, weights=Equal()),
    ),
    (
        "central privacy x sums beside the update",
        lambda: Recipe(central_privacy=CLIPPED, weights=Equal(), corrections=(Scaffold(),)),
        lambda: Recipe(central_privacy=CLIPPED, weights=Equal(), corrections=(Prox(),)),
    ),
    ("FedDyn x unequal weights", lambda: Recipe(corrections=(Dyn(),)), lambda: Recipe(**DYN)),
    (
        "FedDyn x a robust rule or another server optimizer",
        lambda: Recipe(**DYN, server_optimizer=Momentum(rate=0.5)),
        lambda: Recipe(**DYN, server_optimizer=Momentum(rate=1.0)),
    ),
    (
        "FedDyn x a robust rule or another server optimizer",
        lambda: Recipe(**DYN, filters=(NearestNeighbours(),)),
        lambda: Recipe(**DYN, personal=OwnNorms()),
    ),
    (
        "Bulyan, the median or the trimmed mean x weights",
        lambda: Recipe(aggregator=Bulyan(), weights=Gap()),
        lambda: Recipe(aggregator=GeometricMedian(), weights=Gap()),
    ),
    (
        "Bulyan, the median or the trimmed mean x weights",
        lambda: Recipe(aggregator=Median(), weights=Disco()),
        lambda: Recipe(aggregator=Median(), weights=Equal()),
    ),
    (
        "holder rows x a head of each site's own",
        lambda: Recipe(aggregator=Holders(), personal=OwnHead()),
        lambda: Recipe(aggregator=Holders(), personal=OwnNorms()),
    ),
    (
        "a network or layers of each site's own x stages",
        lambda: Recipe(personal=OwnNorms(), stages=(OperatingPoint(),)),
        lambda: Recipe(aggregator=Holders(), stages=(OperatingPoint(),)),
    ),
    (
        "a robust rule or central privacy x stages",
        lambda: Recipe(filters=(Krum(),), stages=(OperatingPoint(),)),
        lambda: Recipe(weights=Equal(), stages=(OperatingPoint(),)),
    ),
    (
        "SCAFFOLD and FedDyn x a network in the place of the global one",
        lambda: Recipe(personal=MeanRegularised(), corrections=(Scaffold(),)),
        lambda: Recipe(personal=MeanRegularised(), corrections=(Prox(),)),
    ),
    (
        "losses and samplers x a second training",
        lambda: Recipe(personal=FineTuned(), losses=(Focal(),)),
        lambda: Recipe(personal=MeanRegularised(), losses=(Focal(),)),
    ),
    (
        "FedCE x another step than the mean",
        lambda: Recipe(weights=Contribution(), server_optimizer=Momentum(momentum=0.9)),
        lambda: Recipe(weights=Contribution(), corrections=(Prox(),)),
    ),
    (
        "a buffer x secure aggregation",
        lambda: Recipe(buffered=Buffered(), secure=True),
        lambda: Recipe(buffered=Buffered()),
    ),
    (
        "a buffer x a rule that compares updates",
        lambda: Recipe(buffered=Buffered(), aggregator=Median()),
        lambda: Recipe(buffered=Buffered(), filters=(NormBound(),), aggregator=Holders()),
    ),
    (
        "a buffer x weights that compare losses",
        lambda: Recipe(buffered=Buffered(), weights=Fair()),
        lambda: Recipe(buffered=Buffered(), weights=Nova()),
    ),
    (
        "a buffer x SCAFFOLD and FedDyn",
        lambda: Recipe(buffered=Buffered(), corrections=(Scaffold(),)),
        lambda: Recipe(buffered=Buffered(), corrections=(Prox(), KeptMoments())),
    ),
    (
        "a buffer x a network or layers of each site's own",
        lambda: Recipe(buffered=Buffered(), personal=OwnNorms()),
        lambda: Recipe(buffered=Buffered(), personal=FineTuned()),
    ),
    (
        "a buffer x central privacy",
        lambda: Recipe(buffered=Buffered(), central_privacy=CLIPPED),
        lambda: Recipe(central_privacy=CLIPPED),
    ),
    (
        "a second network x corrections",
        lambda: Recipe(personal=Ditto(), corrections=(Prox(),)),
        lambda: Recipe(personal=MeanRegularised(), corrections=(Prox(),)),
    ),
]

SGD = {"train": {"optimizer": "sgd", "momentum": 0.0}}
PRIVATE = {"privacy": {"epsilon": 4.0, "sampling_rate": 0.5}, "model": {"norm": "group"}}
SHARED: dict[str, Any] = {
    **PRIVATE,
    "secure_aggregation": {"distributed_noise": True},
    "train": {"steps": 1, "optimizer": "sgd"},
}
NOISED = {"counts": {"epsilon": 1.0}}
Case = tuple[str, Recipe, dict[str, Any], Recipe, dict[str, Any]]
EXPERIMENTS: list[Case] = [
    ("SCAFFOLD x Adam or momentum", RECIPES["scaffold"], {}, RECIPES["scaffold"], SGD),
    (
        "SCAFFOLD x Adam or momentum",
        RECIPES["scaffold"],
        {"train": {"optimizer": "sgd", "momentum": 0.9}},
        RECIPES["feddyn"],
        {"train": {"optimizer": "sgd", "momentum": 0.9}},
    ),
    (
        "SCAFFOLD and FedDyn x few sites a round",
        RECIPES["feddyn"],
        {"federation": {"fraction": 0.4}},
        RECIPES["feddyn"],
        {"federation": {"fraction": 0.5}},
    ),
    (
        "layers of each site's own x some sites a round",
        RECIPES["fedbn"],
        {"federation": {"fraction": 0.9}},
        RECIPES["ditto"],
        {"federation": {"fraction": 0.9}},
    ),
    (
        "a loss in the place of the task's x a task's loss that was chosen",
        RECIPES["rarity"],
        {"task": {"classes": ["disc"], "dimensions": 2, "loss": "tversky"}},
        RECIPES["class_balanced"],
        {"task": {"classes": ["disc"], "dimensions": 2, "loss": "tversky"}},
    ),
    (
        "FedCE x some sites a round",
        RECIPES["fedce"],
        {"federation": {"fraction": 0.9}},
        RECIPES["feddg_ga"],
        {"federation": {"fraction": 0.9}},
    ),
    (
        "operating points x what predictions are made of besides",
        RECIPES["operating_point"],
        {"task": {"classes": ["disc"], "dimensions": 2, "crf": {}}},
        RECIPES["head_retraining"],
        {"task": {"classes": ["disc"], "dimensions": 2, "crf": {}}},
    ),
    ("privacy x what looks at who shows what", RECIPES["rare"], PRIVATE, RECIPES["focal"], PRIVATE),
    (
        "privacy x what looks at who shows what",
        RECIPES["balanced_softmax"],
        PRIVATE,
        RECIPES["logit_adjustment"].with_settings(NOISED),
        PRIVATE,
    ),
    ("privacy x inputs by a site's own patients", RECIPES["fedrdn"], PRIVATE, RECIPES["equal"], PRIVATE),
    (
        "privacy x holder rows in secret",
        RECIPES["holders"].with_settings(NOISED).model_copy(update={"secure": True}),
        PRIVATE,
        RECIPES["holders"].with_settings(NOISED),
        PRIVATE,
    ),
    (
        "privacy x statistics without noise",
        RECIPES["class_balanced"],
        PRIVATE,
        RECIPES["class_balanced"].with_settings(NOISED),
        PRIVATE,
    ),
    *(
        ("regions x what needs each site's answer", RECIPES[wrong], REGIONS, RECIPES[right], REGIONS)
        for wrong, right in (
            ("equal", "fedavg"),
            ("median", "fedadam"),
            ("krum", "fedbn"),
            ("fedce", "class_balanced"),
            ("central_privacy", "head_retraining"),
            ("fedbuff", "fedsam"),
            ("fedrdn", "ditto"),
        )
    ),
    *(
        (
            "regions x what needs each site's answer",
            RECIPES[name].with_settings({statistic: {"epsilon": 1.0}}),
            REGIONS,
            RECIPES[name],
            REGIONS,
        )
        for name, statistic in (
            ("class_balanced", "counts"),
            ("operating_point", "operating_points"),
            ("head_retraining", "moments"),
        )
    ),
    ("q-FFL x Adam", RECIPES["qffl"], {}, RECIPES["qffl"], {"train": {"optimizer": "sgd"}}),
    ("privacy x losses in the clear", RECIPES["feddg_ga"], PRIVATE, RECIPES["equal"], PRIVATE),
    (
        "privacy x losses in the clear",
        Recipe(aggregator=Flower(strategy="QFedAvg")),
        PRIVATE,
        Recipe(aggregator=Flower(strategy="FedAdam")),
        PRIVATE,
    ),
    ("privacy x a second training of the site", RECIPES["ditto"], PRIVATE, RECIPES["mr_mtl"], PRIVATE),
    ("privacy x a second training of the site", RECIPES["fine_tuned"], PRIVATE, RECIPES["fedbn"], PRIVATE),
    ("privacy x sharpness", RECIPES["fedsam"], PRIVATE, RECIPES["fedprox"], PRIVATE),
    (
        "a network in parts x what handles its parameters",
        RECIPES["fedprox"],
        {"train": {"processes": 2, "parallel": "fsdp"}},
        RECIPES["fedprox"],
        {"train": {"processes": 2}},
    ),
    (
        "a network in parts x what handles its parameters",
        RECIPES["fedvls"],
        {"train": {"processes": 2, "parallel": "fsdp"}},
        RECIPES["balanced_softmax"] + RECIPES["rare"],
        {"train": {"processes": 2, "parallel": "fsdp"}},
    ),
    (
        "stages and moments x classification",
        RECIPES["operating_point"],
        {"task": {"name": "classification"}, "model": {"name": "resnet"}},
        RECIPES["operating_point"],
        {},
    ),
    ("shared noise x several steps", Recipe(), {**SHARED, "train": {"steps": 2}}, Recipe(), SHARED),
    (
        "shared noise x a clipping norm of each site's own",
        Recipe(),
        {**SHARED, "privacy": {**PRIVATE["privacy"], "clipping_quantile": 0.5}},
        Recipe(),
        {**PRIVATE, "privacy": {**PRIVATE["privacy"], "clipping_quantile": 0.5}},
    ),
    (
        "shared noise x weights other than by patients",
        Recipe(weights=Equal()),
        SHARED,
        Recipe(weights=Equal()),
        PRIVATE,
    ),
    (
        "shared noise x what changes gradients or stays at the site",
        RECIPES["fedprox"],
        SHARED,
        RECIPES["fedprox"],
        PRIVATE,
    ),
    (
        "a buffer x some sites a round",
        RECIPES["fedbuff"],
        {"federation": {"sites_per_round": 2}},
        RECIPES["fedbuff"].with_settings({"buffered": {"concurrency": 2}}),
        {},
    ),
    (
        "a buffer x more updates than it holds",
        RECIPES["fedbuff"].with_settings({"buffered": {"buffer": 2}}),
        {"federation": {"minimum_sites": 3}},
        RECIPES["fedbuff"],
        {"federation": {"minimum_sites": 3}},
    ),
    (
        "layers of each site's own x some sites a round",
        RECIPES["silobn"],
        {"federation": {"sites_per_round": 4}},
        RECIPES["mr_mtl"],
        {"federation": {"sites_per_round": 4}},
    ),
    ("a survey x rounds of training", RECIPES["survey"], {**SURVEY, "rounds": 1}, RECIPES["survey"], SURVEY),
    ("no rounds x no survey", RECIPES["fedavg"], {"rounds": 0}, RECIPES["fedavg"], {}),
    (
        "a survey x images as training sees them",
        RECIPES["survey"],
        {**SURVEY, "data": {**SURVEY["data"], "spacing_mm": [1.0, 1.0, 1.0]}},
        RECIPES["survey"],
        {
            **SURVEY,
            "data": {**SURVEY["data"], "intensity": {"kind": "window", "low": -1024.0, "high": 3071.0}},
        },
    ),
    (
        "several modalities x what looks at channels alike",
        RECIPES["fedrdn"],
        {"data": {"modalities": ["t1", "t2"], "channels": 2}},
        RECIPES["fedavg"],
        {"data": {"modalities": ["t1", "t2"], "channels": 2}},
    ),
    (
        "a survey x patients who are held out",
        RECIPES["survey"],
        {**SURVEY, "data": {**SURVEY["data"], "splits": {"validation": 0.1, "test": 0.0}}},
        RECIPES["survey"],
        SURVEY,
    ),
    (
        "a survey x classes of whole images",
        RECIPES["survey"],
        {**SURVEY, "task": {"name": "classification"}, "model": {"name": "resnet"}},
        RECIPES["survey"],
        SURVEY,
    ),
    ("FedNova x equal steps", RECIPES["fednova"], {}, RECIPES["fednova"], {"train": {"epochs": 1.0}}),
]


def experiment(changes: dict[str, Any]) -> Experiment:
    """A small one; ``changes``: by table what is other."""
    tables: dict[str, Any] = {
        "name": "discs",
        "rounds": 3,
        "task": {"classes": ["disc"], "dimensions": 2},
        "data": {"patch": [16, 16]},
        "model": {},
        "train": {},
        "federation": {},
    }
    for table, fields in changes.items():
        tables[table] = {**tables.get(table, {}), **fields} if isinstance(fields, dict) else fields
    return Experiment.model_validate(tables)


def ids(cases: list[Any]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(("what", "wrong", "right"), PIECES, ids=ids(PIECES))
def test_pieces_that_do_not_go_together(what: str, wrong: Make, right: Make) -> None:
    (rule,) = [rule for rule in PIECE_RULES if rule.what == what]
    with pytest.raises(ValueError, match=re.escape(rule.why)) as caught:
        wrong()
    assert "' cannot be in it: " in str(caught.value)
    right()


@pytest.mark.parametrize(("what", "wrong", "asked", "right", "instead"), EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_experiments_that_a_recipe_does_not_allow(
    what: str, wrong: Recipe, asked: dict[str, Any], right: Recipe, instead: dict[str, Any]
) -> None:
    (rule,) = [rule for rule in EXPERIMENT_RULES if rule.what == what]
    with pytest.raises(ConfigError, match=re.escape(rule.why)) as caught:
        refuse(wrong, experiment(asked))
    assert (caught.value.field, caught.value.fix) == (rule.field, rule.fix)
    refuse(right, experiment(instead))


def test_every_rule_is_in_these_tables() -> None:
    assert {rule.what for rule in PIECE_RULES} == set(ids(PIECES))
    assert {rule.what for rule in EXPERIMENT_RULES} == set(ids(EXPERIMENTS))


def test_central_privacy_sends_no_running_statistics() -> None:
    asked = experiment({"model": {"norm": "batch"}})
    network = build_model(asked)
    for also, fine in ((Recipe(), False), (RECIPES["fedbn"], True), (RECIPES["silobn"], True)):
        recipe = Recipe(central_privacy=CLIPPED) + also
        with nullcontext() if fine else pytest.raises(ConfigError, match="leave without noise"):
            refuse_network(recipe, asked, network)
    refuse_network(Recipe(), asked, network)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_preset_is_allowed_by_some_experiment(name: str) -> None:
    changes = {"scaffold": SGD, "qffl": SGD, "fednova": {"train": {"epochs": 1.0}}, "survey": SURVEY}.get(
        name, {}
    )
    refuse(RECIPES[name], experiment(changes))


def test_what_should_be_known_is_said() -> None:
    assert warnings(Recipe(), experiment({})) == []
    own = warnings(Recipe(personal=OwnHead()), experiment({}))
    assert len(own) == 2
    assert "never predict a class" in own[0]
    secret = Recipe(secure=True, aggregator=Holders(), statistics=(Counts(),))
    assert warnings(secret, experiment({})) == ["a class that one site holds alone has a sum of one site"]
    (waits,) = warnings(RECIPES["fedbuff"], experiment({}))
    assert "hospitals that are still at work are waited for" in waits
    assert warnings(RECIPES["fedbuff"], experiment({"federation": {"evaluate_every": 3}})) == []

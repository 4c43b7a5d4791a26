"""Recipes add up, take settings, and say what is wrong with a name or a value."""

from __future__ import annotations

import pytest

from fedmed_common.config import RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_strategies.corrections.prox import Prox
from fedmed_strategies.longtail.weighted import Focal
from fedmed_strategies.presets import RECIPES, plain_of
from fedmed_strategies.recipe import Recipe, resolve
from fedmed_strategies.statistics.counts import Counts
from fedmed_strategies.statistics.operating_points import OperatingPoints
from fedmed_strategies.weights.fixed import ByPatients

CONFLICTS = [
    ("median", "rfa", "aggregator", "'median' and 'geometric_median'"),
    ("qffl", "feddisco", "weights", "'fair' and 'disco'"),
    ("fedadam", "fedyogi", "server optimizer", "'adam' and 'yogi'"),
    ("fedbn", "fedper", "personal", "'own_norms' and 'own_head'"),
    ("fedavgm", "fedadam", "server optimizer", "'momentum' and 'adam'"),
]


@pytest.mark.parametrize(("one", "other", "axis", "both"), CONFLICTS)
def test_two_that_say_something_else_of_the_same(one: str, other: str, axis: str, both: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RECIPES[one] + RECIPES[other]
    assert caught.value.problem == f"{both} are both for its {axis}, of which there is one"
    assert (caught.value.field, caught.value.fix) == ("recipe.also", "leave one of them out")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_fedavg_adds_nothing_to_any_and_none_adds_itself_twice(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe + RECIPES["fedavg"] == RECIPES["fedavg"] + recipe == recipe + recipe == recipe


def test_what_can_be_several_adds_up_in_order() -> None:
    recipe = RECIPES["focal"] + RECIPES["fedprox"] + RECIPES["class_balanced"] + RECIPES["rare"]
    assert [piece.name for piece in recipe.losses] == ["focal", "class_balanced"]
    assert [piece.name for piece in recipe.corrections] == ["prox"]
    assert recipe.sampler is not None
    assert recipe.sampler.name == "rare"
    assert [statistic.name for statistic in recipe.gathered()] == ["counts"]


def test_one_piece_with_two_settings_is_in_it_twice() -> None:
    with pytest.raises(ConfigError, match="'prox' is in it twice"):
        Recipe(corrections=(Prox(mu=0.1),)) + Recipe(corrections=(Prox(mu=0.2),))


def test_what_does_not_go_together_is_said_of_also() -> None:
    with pytest.raises(ConfigError, match="'dyn' cannot be in it") as caught:
        resolve(RecipeChoice(name="feddyn", also=("fedavgm",)), RECIPES)
    assert (caught.value.field or "").startswith("recipe.also")


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"proxx": {"mu": 1.0}}, "recipe.settings", "did you mean 'prox'?"),
        ({"momentom": {"rate": 1.0}}, "recipe.settings", "did you mean 'momentum'?"),
        ({"prox": {"mue": 1.0}}, "recipe.settings.prox.mue", "mu"),
        ({"prox": {"mu": -1.0}}, "recipe.settings.prox.mu", "greater than or equal to 0"),
        ({"prox": {"mu": "strong"}}, "recipe.settings.prox.mu", "number"),
        ({"momentum": {"rate": 0.0}}, "recipe.settings.momentum.rate", "greater than 0"),
    ],
)
def test_wrong_settings_name_field_and_fix(settings: dict, field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(RecipeChoice(name="fedprox", settings=settings), RECIPES)
    assert caught.value.field == field
    assert says in f"{caught.value.problem} {caught.value.fix}"


@pytest.mark.parametrize(
    ("choice", "field", "near"),
    [
        (RecipeChoice(name="fedavgg"), "recipe.name", "fedavg"),
        (RecipeChoice(name="scafold"), "recipe.name", "scaffold"),
        (RecipeChoice(name="fedavg", also=("trimed_mean",)), "recipe.also", "trimmed_mean"),
    ],
)
def test_unknown_names_give_the_nearest(choice: RecipeChoice, field: str, near: str) -> None:
    with pytest.raises(ConfigError, match="unknown name") as caught:
        resolve(choice, RECIPES)
    assert (caught.value.field, caught.value.fix) == (field, f"did you mean '{near}'?")


def test_settings_reach_pieces_and_the_statistics_that_they_ask_for() -> None:
    choice = RecipeChoice(
        name="logit_adjustment", settings={"logit_adjustment": {"tau": 2.0}, "counts": {"epsilon": 0.5}}
    )
    recipe = resolve(choice, RECIPES)
    assert [getattr(piece, "tau", None) for piece in recipe.losses] == [2.0]
    assert recipe.gathered() == (Counts(epsilon=0.5),)
    assert RECIPES["logit_adjustment"].gathered() == (Counts(),)


def test_settings_reach_the_statistic_of_a_stage() -> None:
    choice = RecipeChoice(
        name="longtail",
        settings={
            "operating_points": {"epsilon": 2.0},
            "operating_point": {"cost": 0.1},
            "counts": {"epsilon": 1.0},
        },
    )
    recipe = resolve(choice, RECIPES)
    (stage,) = recipe.stages
    assert (stage.statistic, stage.cost) == (OperatingPoints(epsilon=2.0), 0.1)
    assert {statistic.name: statistic.epsilon for statistic in recipe.gathered()} == {"counts": 1.0}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_plain_one_keeps_what_is_local_alone(name: str) -> None:
    recipe = RECIPES[name]
    plain = resolve(plain_of(RecipeChoice(name=name)), RECIPES)
    assert plain == Recipe(losses=recipe.losses, sampler=recipe.sampler, inputs=recipe.inputs)
    assert plain.weights == ByPatients()


def test_the_plain_one_keeps_the_settings_of_what_is_local() -> None:
    choice = RecipeChoice(
        name="fedprox", also=("rare", "focal"), settings={"prox": {"mu": 1.0}, "rare": {"temper": 1.0}}
    )
    assert plain_of(choice) == RecipeChoice(
        name="fedavg", also=("rare", "focal"), settings={"rare": {"temper": 1.0}}
    )


def test_the_plain_one_keeps_the_noise_of_the_statistics_that_its_loss_needs() -> None:
    settings = {"counts": {"epsilon": 0.3}, "momentum": {"momentum": 0.5}}
    choice = RecipeChoice(name="fedavgm", also=("rarity", "holders"), settings=settings)
    assert plain_of(choice) == RecipeChoice(
        name="fedavg", also=("rarity",), settings={"counts": {"epsilon": 0.3}}
    )


def test_what_is_local_in_a_mixed_recipe_is_named_by_its_own() -> None:
    assert plain_of(RecipeChoice(name="fedrdn_sam")) == RecipeChoice(name="fedavg", also=("fedrdn",))
    assert plain_of(RecipeChoice(name="fedrdn", also=("fedrdn_sam",))).also == ("fedrdn",)


def test_a_local_piece_that_no_recipe_has_alone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = RECIPES["median"] + Recipe(losses=(Focal(gamma=3.0),))
    monkeypatch.setitem(RECIPES, "mixed", mixed)
    with pytest.raises(ConfigError, match="no recipe is 'focal' alone, as 'mixed' has it"):
        plain_of(RecipeChoice(name="mixed"))

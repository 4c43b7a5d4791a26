"""Who is compared, with equal budgets and equal steps, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated import fedmed

from fedmed_common.config import RecipeChoice
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_experiment
from fedmed_simulations.compare.budget import competitors
from fedmed_simulations.compare.columns import thirds
from fedmed_simulations.compare.plan import Competitor, arms, last_rounds
from fedmed_simulations.compare.settings import (
    Candidate,
    Comparison,
    Groups,
    Held,
    changed,
    flat,
    load_comparison,
)
from fedmed_strategies import presets


def _competitors(file: Path) -> dict[str, Competitor]:
    base = load_experiment(file.parent / "discs.toml")
    return {one.name: one for one in competitors(load_comparison(file), base, file)}


def _settings(competitor: Competitor) -> list[dict[str, Any]]:
    return [dict(one.settings) for one in competitor.configurations]


def test_the_baselines_are_always_there(write_comparison) -> None:
    found = _competitors(write_comparison())
    assert {name: one.kind for name, one in found.items()} == {
        "fedavg": "federation",
        "pooled": "pooled",
        "local": "local",
    }
    assert [arm.baseline for arm in arms(found["local"], ["a", "b"])] == ["local:a", "local:b"]
    assert [arm.baseline for arm in arms(found["pooled"], ["a", "b"])] == ["pooled"]
    assert [arm.baseline for arm in arms(found["fedavg"], ["a", "b"])] == [""]


def test_a_smaller_grid_is_filled_from_that_of_all_and_everybody_tries_the_same_number(
    write_comparison,
) -> None:
    found = _competitors(
        write_comparison(
            "[grid]\ntrain.learning_rate = [0.01, 0.02, 0.03, 0.04]\n"
            '[[candidates]]\nname = "sgd"\nchanges = { train.optimizer = "sgd" }\ngrid = { train.momentum = [0.5, 0.9] }\n'
            '[[candidates]]\nname = "focal"\nchanges = { task.loss = "dice_focal" }'
        )
    )
    assert {name: len(one.configurations) for name, one in found.items()} == dict.fromkeys(found, 4)
    rates = [{"train.learning_rate": rate} for rate in (0.01, 0.02, 0.03, 0.04)]
    assert _settings(found["fedavg"]) == _settings(found["local"]) == _settings(found["focal"]) == rates
    assert _settings(found["sgd"]) == [{"train.momentum": 0.5}, {"train.momentum": 0.9}, *rates[1:3]]
    assert (found["sgd"].filled, found["fedavg"].filled) == (2, 0)
    assert {one.experiment.train.optimizer for one in found["sgd"].configurations} == {"sgd"}


def test_a_configuration_that_is_another_again_counts_once(write_comparison) -> None:
    found = _competitors(
        write_comparison(
            "[grid]\ntrain.learning_rate = [0.01, 0.02, 0.03]\n"
            '[[candidates]]\nname = "moments"\ngrid = { train.momentum = [0.9, 0.5] }'
        )
    )
    assert _settings(found["moments"]) == [
        {"train.momentum": 0.9},
        {"train.momentum": 0.5},
        {"train.learning_rate": 0.02},
    ]


def test_budgets_that_cannot_be_made_equal_are_refused(write_comparison) -> None:
    file = write_comparison('[[candidates]]\nname = "sgd"\ngrid = { train.optimizer = ["sgd", "adam"] }')
    with pytest.raises(ConfigError, match=r"'fedavg' has 1 configurations to try, others 2") as refused:
        _competitors(file)
    assert refused.value.field == "grid"
    assert refused.value.file == file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{ train.steps = 3 }", r"6 x 3 x 2, of the others 6 x 2 x 2"),
        ("{ rounds = 5 }", r"5 x 2 x 2, of the others"),
        ("{ seed = 3 }", r"'seed' is not that of the others"),
        ("{ data.splits.test = 0.1 }", r"'data.splits' is not"),
        ("{ data.spacing_mm = [1.0, 1.0, 1.0] }", r"'data.spacing_mm' is not"),
        ("{ federation.fraction = 0.5 }", r"'federation' is not"),
    ],
)
def test_what_would_be_no_comparison_is_refused_by_name(write_comparison, changes: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        _competitors(write_comparison(f'[[candidates]]\nname = "more"\nchanges = {changes}'))
    assert refused.value.field == "candidates.more"
    assert refused.value.fix


def test_other_rounds_are_fine_where_the_steps_are_equal(write_comparison) -> None:
    found = _competitors(
        write_comparison('[[candidates]]\nname = "often"\nchanges = { rounds = 12, train.steps = 1 }')
    )
    (configuration,) = found["often"].configurations
    assert last_rounds(configuration.experiment) == (8, 9, 10, 11, 12)


def test_fewer_evaluations_than_the_estimator_takes_are_refused(write_comparison) -> None:
    with pytest.raises(ConfigError, match="4 rounds are evaluated 4 times"):
        _competitors(write_comparison(rounds=4))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("sedes = [1]", ": sedes: unknown key\n  fix: did you mean 'seeds'?"),
        (
            '[[candidates]]\nname = "x"\nchanges = { "train.learning_rat" = 0.1 }',
            ": candidates.x.train.learning_rat: unknown key\n  fix: did you mean 'learning_rate'?",
        ),
        (
            "[grid]\ntrain.optimiser = ['sgd']",
            ": grid.train.optimiser: unknown key\n  fix: did you mean 'optimizer'?",
        ),
        ('[[candidates]]\nname = "fedavg"', "'fedavg' is the name of a baseline"),
        ('[[candidates]]\nname = "x"\n[[candidates]]\nname = "x"', "two candidates are called 'x'"),
        ("tuning_seeds = [1, 1]", ": tuning_seeds: a seed is named twice"),
        ('reference = "fedavgg"', ": reference: unknown name 'fedavgg'\n  fix: did you mean 'fedavg'?"),
        (
            "[groups]\nhead = ['dot']\ntail = ['dot']",
            ": groups: 'dot' is in two groups\n  fix: name each class once: dot, disc",
        ),
        ("[groups]\nhead = ['dott', 'disc']\ntail = ['dot']", ": groups: 'dott' is no class"),
        ("[groups]\nhead = []\ntail = ['dot']", ": groups: 'disc' is in no group"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_the_fix(write_comparison, lines: str, told: str) -> None:
    file = write_comparison(lines)
    with pytest.raises(ConfigError) as refused:
        _competitors(file)
    assert str(refused.value).startswith(str(file))
    assert told in str(refused.value)


def test_a_recipe_that_cannot_have_the_network_is_refused_before_anything_is_trained(
    write_comparison,
) -> None:
    file = write_comparison(
        '[[candidates]]\nname = "retrained"\n'
        'changes = { recipe = { name = "head_retraining", settings.head_retraining.from_share = 0.1 } }'
    )
    told = fedmed("compare", file, "--folder", file.parent / "out", check=False).stderr
    assert "candidates.retrained: model.name" in " ".join(told.split())
    assert "fix: use an architecture" in " ".join(told.split())
    assert not (file.parent / "out" / "trial").exists()


def test_fedavg_with_the_candidates_loss_is_a_row_unless_one_is_it_already(
    write_comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy that today's presets do not have stands in for those to come: what is not plain is called otherwise."""
    monkeypatch.setattr(presets, "plain_of", lambda _recipe: RecipeChoice(), raising=False)
    lines = (
        "[grid]\ntrain.learning_rate = [0.01, 0.02]\n"
        '[[candidates]]\nname = "a"\nchanges = { recipe.name = "other", task.loss = "dice_focal" }\n'
        '[[candidates]]\nname = "b"\nchanges = { recipe.name = "another", task.loss = "dice_focal" }\n'
        '[[candidates]]\nname = "c"\nchanges = { recipe.name = "other" }\n'
        '[[candidates]]\nname = "d"\nchanges = { task.loss = "focal" }\n'
    )
    found = _competitors(write_comparison(lines))
    assert [name for name in found if name.startswith("fedavg-like-")] == ["fedavg-like-a"]
    for one in found["fedavg-like-a"].configurations:
        assert (one.experiment.recipe, one.experiment.task.loss) == (RecipeChoice(), "dice_focal")


def test_a_grid_over_the_recipe_leaves_fewer_plain_configurations_which_are_filled(
    write_comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "plain_of", lambda _recipe: RecipeChoice(), raising=False)
    lines = (
        "[grid]\ntrain.learning_rate = [0.01, 0.02, 0.03, 0.04]\n"
        '[[candidates]]\nname = "a"\nchanges = { task.loss = "dice_focal" }\n'
        'grid = { recipe.name = ["one", "two"], train.learning_rate = [0.01, 0.05] }\n'
    )
    like = _competitors(write_comparison(lines))["fedavg-like-a"]
    assert _settings(like) == [{"train.learning_rate": rate} for rate in (0.01, 0.05, 0.02, 0.03)]
    assert like.filled == 2


def test_pooled_training_takes_the_steps_of_one_site_or_of_all(write_comparison) -> None:
    pooled = _competitors(write_comparison())["pooled"]
    (arm,) = arms(pooled, [])
    (configuration,) = pooled.configurations
    assert arm.experiment(configuration, 4).train.steps == 2
    total = arm.experiment(configuration, 4, times=3)
    assert (total.train.steps, total.seed, total.federation.minimum_sites) == (6, 4, 1)


def test_a_table_is_merged_unless_it_has_a_name() -> None:
    document = {"train": {"steps": 2, "momentum": 0.9}, "model": {"name": "unet", "channels": [4]}}
    assert changed(document, "train", {"momentum": 0.5})["train"] == {"steps": 2, "momentum": 0.5}
    assert changed(document, "train.momentum", 0.5)["train"] == {"steps": 2, "momentum": 0.5}
    assert changed(document, "model", {"name": "vnet"})["model"] == {"name": "vnet"}
    assert changed(document, "recipe.settings.prox.mu", 1)["recipe"] == {"settings": {"prox": {"mu": 1}}}
    assert document["train"]["momentum"] == 0.9
    assert flat({"a": {"b": [1], "c.d": [2]}}) == {"a.b": [1], "a.c.d": [2]}


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 2, 1)), (8, (3, 2, 3)), (11, (4, 3, 4))],
)
def test_thirds_of_the_classes(classes: int, sizes: tuple[int, int, int]) -> None:
    counts = {f"c{number}": 100.0 - number for number in range(classes)}
    groups = thirds(dict(reversed(counts.items())))
    assert tuple(len(groups[name]) for name in ("head", "medium", "tail")) == sizes
    assert [*groups["head"], *groups["medium"], *groups["tail"]] == list(counts)


def test_classes_as_frequent_as_each_other_stay_in_their_order() -> None:
    assert thirds({"b": 3, "a": 3, "c": 9}) == {"head": ("c",), "medium": ("b",), "tail": ("a",)}


def test_every_key_of_a_comparison_file_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "how-to" / "compare-strategies.md").read_text()
    keys = {name for model in (Comparison, Candidate, Held, Groups) for name in model.model_fields}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []

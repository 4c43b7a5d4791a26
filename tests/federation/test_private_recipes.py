"""Recipes under differential privacy: statistics with noise are charged, and what would tell more is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmed_client.ledger import Ledger
from fedmed_common import privacy
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone, RunEnded
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes
from fedmed_strategies.presets import recipe_of

PRIVATE = '[privacy]\nepsilon = 8.0\nsampling_rate = 0.5\n[recipe]\nname = "{name}"\n{more}'


def private(write_experiment: Callable[..., Path], name: str, more: str = "") -> tuple[Experiment, Path]:
    file = write_experiment(rounds=2, sites=2, extra=PRIVATE.format(name=name, more=more))
    return load_experiment(file), file


def test_a_noised_statistic_is_in_the_ledger_and_within_the_runs_epsilon(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    experiment, file = private(write_experiment, "logit_adjustment", "settings.counts.epsilon = 2.0")
    homes = make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites")
    folder = tmp_path / "run"
    folder.mkdir()
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=2))
    *_, last = records = list(history.read(folder / history.FILE))
    assert isinstance(last, RunEnded)
    assert last.status == "completed"
    recipe = recipe_of(experiment)
    (counts,) = recipe.gathered()
    for home in homes:
        rows = Ledger(home.folder).read()
        assert [row.steps for row in rows] == [1, experiment.train.steps, experiment.train.steps]
        assert (rows[0].noise_multiplier, rows[0].sampling_rate) == (counts.noise_multiplier, 1.0)
        cost = privacy.epsilon([row.spent for row in rows], 1e-5)
        (told,) = [
            result.epsilon_spent
            for record in records
            if isinstance(record, RoundDone) and record.round == 2
            for result in record.train
            if result.site == home.site.name
        ]
        assert told == pytest.approx(cost)
        assert cost <= 8.0
    alone = privacy.noise_multiplier(experiment)
    assert privacy.noise_multiplier(experiment, recipe.spent(experiment)) > alone


def test_with_a_buffer_a_site_trains_at_most_once_a_round_and_within_the_runs_epsilon(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    more = "settings.buffered.buffer = 1\nsettings.buffered.most_staleness = 0"
    experiment, file = private(write_experiment, "fedbuff", more)
    assert experiment.simulation is not None
    paced = experiment.simulation.model_copy(update={"pace_spread": 0.3})
    experiment = experiment.model_copy(update={"simulation": paced, "rounds": 5})
    homes = make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites")
    folder = tmp_path / "run"
    folder.mkdir()
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=2))
    *_, last = records = list(history.read(folder / history.FILE))
    assert isinstance(last, RunEnded)
    assert "(late: stale)" in last.status
    used = [
        r for record in records if isinstance(record, RoundDone) for r in record.train if r.outcome == "ok"
    ]
    for home in homes:
        rows = Ledger(home.folder).read()
        numbers = [row.round for row in rows]
        assert numbers == sorted(set(numbers))
        assert max(numbers) <= experiment.rounds
        assert len(rows) >= sum(result.site == home.site.name for result in used)
        assert privacy.epsilon([row.spent for row in rows], 1e-5) <= 8.0


def test_without_privacy_noised_statistics_may_cost_what_the_recipe_says_together(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    settings = "settings.counts.epsilon = 1.0\nsettings.operating_points.epsilon = 1.0\n"
    recipe = f'[recipe]\nname = "logit_adjustment"\nalso = ["operating_point"]\n{settings}'
    file = write_experiment(rounds=1, sites=2, extra=recipe)
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites")
    (tmp_path / "run").mkdir()
    run_inline(homes, RunRequest(experiment=experiment, folder=tmp_path / "run", command="test", sites=2))
    *_, last = history.read(tmp_path / "run" / history.FILE)
    assert isinstance(last, RunEnded)
    assert last.status == "completed"
    spent = recipe_of(experiment).spent(experiment)
    for home in homes:
        assert [row.spent for row in Ledger(home.folder).read()] == list(spent)
        assert len(spent) == 2


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("logit_adjustment", "", "recipe.settings: 'counts'"),
        ("rare", "", "recipe: 'rare'"),
        ("fedvls", "", "recipe: 'vacant'"),
        ("feddg_ga", "", "recipe: 'gap'"),
        ("ditto", "", "recipe: 'ditto'"),
        ("fedsam", "", "recipe: 'sharpness'"),
    ],
)
def test_what_would_tell_more_than_the_noise_hides_is_refused(
    name: str, more: str, said: str, write_experiment: Callable[..., Path]
) -> None:
    experiment, file = private(write_experiment, name, more)
    with pytest.raises(ConfigError) as refused:
        check_experiment(experiment, file)
    assert said in str(refused.value)
    assert "fix:" in str(refused.value)

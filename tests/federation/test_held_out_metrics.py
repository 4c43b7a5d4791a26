"""A federation whose sites differ in what leaves of metrics of held-out patients, to the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedmed_common.loading import load_experiment
from fedmed_server import history
from fedmed_server.app import RunRequest
from fedmed_server.history import RoundDone, RunEnded, RunStarted
from fedmed_server.report import write_report
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes


def test_where_every_site_keeps_them_no_round_is_called_the_best(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_experiment(rounds=3, sites=2, policy='least_patients = 1, held_out = "kept"')
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.toml").write_text(file.read_text())
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=2))
    *_, ended = history.read(folder / history.FILE)
    assert isinstance(ended, RunEnded)
    assert (ended.status, ended.best_round, set(ended.test)) == ("completed", 0, {"last"})
    assert "stayed at the site: site-0; site-1." in write_report(folder).read_text(encoding="utf-8")


def test_each_site_chooses_and_the_report_says_what(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_experiment(rounds=2, sites=3)
    experiment = load_experiment(file)
    homes = list(make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites"))
    for place, how in enumerate(("measured", "noised", "kept")):
        site = homes[place].site
        rules = site.policy.model_copy(update={"held_out": how, "held_out_epsilon": 500.0})
        homes[place] = replace(homes[place], site=site.model_copy(update={"policy": rules}))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.toml").write_text(file.read_text())
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=3))
    started, *records, ended = list(history.read(folder / history.FILE))
    assert isinstance(started, RunStarted)
    assert isinstance(ended, RunEnded)
    assert ended.status == "completed"
    assert [facts.held_out for facts in started.sites] == ["measured", "noised", "kept"]
    asked = [done.evaluation for done in records if isinstance(done, RoundDone)] + list(ended.test.values())
    for results in asked:
        plain, noisy, kept = results
        assert {result.outcome for result in results} == {"ok"}
        assert plain.metrics["dice/disc"][1] == plain.patients
        assert (plain.epsilon_spent, kept.epsilon_spent, kept.metrics) == (None, None, {})
        assert noisy.epsilon_spent is not None
        assert all(0 <= total <= weight <= noisy.patients for total, weight in noisy.metrics.values())
    epsilons = [results[1].epsilon_spent for results in asked[:2]]
    assert epsilons[0] is not None
    assert epsilons[1] is not None
    assert epsilons[0] < epsilons[1]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "left as measured, outside differential privacy: site-0." in page
    assert f"site-1 (epsilon: validation {epsilons[1]:.2f}, test " in page
    assert "stayed at the site: site-2." in page

"""A survey of whole sites: what it says of one patient more, what it costs with noise, and that nothing is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmed_client.ledger import Ledger
from fedmed_client.workbench import COHORTS
from fedmed_common.errors import QuorumError
from fedmed_common.loading import load_experiment
from fedmed_server.app import RunRequest
from fedmed_server.survey.planning import plan
from fedmed_server.survey.sheet import Sheet, read_sheet
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

NOISE = "[recipe.settings]\n" + "\n".join(
    f"{name} = {{ epsilon = 2.0 }}" for name in ("shapes", "intensities", "volumes", "landmarks")
)
SUMMED = "[secure_aggregation]\n"


def asked(write_experiment, runs: Path, extra: str = "", policy: str = "least_patients = 3") -> Sheet:
    """Survey the discs once more; the sites' own folders stay from one survey to the next."""
    recipe = '[recipe]\nname = "survey"\n'
    file = write_experiment(rounds=0, extra=recipe + extra, policy=policy)
    none_held_out = 'kind = "scale" }\nsplits = { validation = 0.0, test = 0.0 }'
    file.write_text(file.read_text().replace('kind = "zscore" }', none_held_out))
    COHORTS.forget()
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), runs / "sites")
    folder = runs / str(len(list(runs.iterdir())) if runs.exists() else 0)
    folder.mkdir(parents=True)
    run_inline(homes, RunRequest(experiment=experiment, folder=folder, command="test", sites=len(homes)))
    assert not (folder / "models").exists()
    return read_sheet(folder)


def one_more(folder: Path, name: str) -> None:
    for part in ("images", "labels"):
        files = sorted((folder / part).iterdir())
        shutil.copy(files[-1], folder / part / f"{name}.png")


def told(sheet: Sheet) -> dict[str, object]:
    return sheet.model_dump(exclude={"run"})


def test_one_patient_more_changes_no_bit_of_what_is_told_and_enough_do(
    write_experiment, tmp_path: Path
) -> None:
    before = asked(write_experiment, tmp_path / "runs")
    site = tmp_path / "data" / "site-0"
    for name in ("more-0", "more-1"):
        one_more(site, name)
        assert told(asked(write_experiment, tmp_path / "runs")) == told(before)
    one_more(site, "enough")
    after = asked(write_experiment, tmp_path / "runs")
    assert after.patients == before.patients + 3


def test_who_has_gone_would_be_seen_in_the_difference_so_the_site_refuses(
    write_experiment, tmp_path: Path
) -> None:
    asked(write_experiment, tmp_path / "runs")
    site = tmp_path / "data" / "site-0"
    cohort = sorted((site / "images").iterdir())
    for file in cohort[:2]:
        file.unlink()
        (site / "labels" / file.name).unlink()
    with pytest.raises(QuorumError, match="site-0: refused"):
        asked(write_experiment, tmp_path / "runs", "[federation]\nquorum = 1.0\n")


def test_with_noise_every_survey_is_in_the_ledger_and_no_two_are_alike(
    write_experiment, tmp_path: Path
) -> None:
    sheets = [asked(write_experiment, tmp_path / "runs", NOISE) for _ in range(2)]
    assert told(sheets[0]) != told(sheets[1])
    assert sheets[0].epsilon is not None and 2.0 < sheets[0].epsilon < 6.0
    assert all(deviation > 0 for deviation in sheets[0].deviation.values())
    for home in (tmp_path / "runs" / "sites").iterdir():
        assert len(Ledger(home).read()) == 8


def test_summed_in_secret_it_says_the_same(write_experiment, tmp_path: Path) -> None:
    plain = asked(write_experiment, tmp_path / "plain")
    secret = asked(write_experiment, tmp_path / "secret", SUMMED)
    for name in ("spacing_mm", "extent", "image", "foreground"):
        for one, other in zip(getattr(plain, name), getattr(secret, name), strict=True):
            np.testing.assert_allclose(one.counts, other.counts, atol=1e-3)
    assert plain.patients == pytest.approx(secret.patients, abs=1e-3)


def test_a_plan_comes_from_the_sheet(write_experiment, tmp_path: Path) -> None:
    planned = plan(asked(write_experiment, tmp_path / "runs"))
    assert planned.tables["data"]["patch"] == [32, 32]
    assert planned.tables["data"]["intensity"] == {"kind": "scale"}

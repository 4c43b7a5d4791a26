"""A survey of whole sites: what it says of one patient more, what it costs with noise, and that nothing is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from site_orders import ask

from fedmed_client.ledger import Ledger
from fedmed_client.site.withdrawals import SURVEYED
from fedmed_common import wire
from fedmed_common.errors import QuorumError
from fedmed_common.loading import load_experiment
from fedmed_common.models import build_model
from fedmed_common.params import from_model
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


def survey_file(
    write_experiment, extra: str = "", policy: str = "least_patients = 3", *, crop: bool = False
) -> Path:
    recipe = '[recipe]\nname = "survey"\n'
    file = write_experiment(rounds=0, extra=recipe + extra, policy=policy)
    none_held_out = 'kind = "scale" }\nsplits = { validation = 0.0, test = 0.0 }'
    file.write_text(file.read_text().replace('kind = "zscore" }', none_held_out))
    if crop:
        file.write_text(file.read_text().replace("[data]\n", "[data]\ncrop_to_foreground = true\n"))
    return file


def asked(
    write_experiment, runs: Path, extra: str = "", policy: str = "least_patients = 3", *, crop: bool = False
) -> Sheet:
    """Survey the discs once more; the sites' own folders stay from one survey to the next."""
    file = survey_file(write_experiment, extra, policy, crop=crop)
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


def test_summed_in_secret_one_patient_more_keeps_nobody_out(write_experiment, tmp_path: Path) -> None:
    before = asked(write_experiment, tmp_path / "runs", SUMMED)
    one_more(tmp_path / "data" / "site-0", "more")
    after = asked(write_experiment, tmp_path / "runs", SUMMED)
    assert after.patients == before.patients and not after.missed


def gone(site: Path) -> None:
    for file in sorted((site / "images").iterdir())[:2]:
        file.unlink()
        (site / "labels" / file.name).unlink()


def changed(site: Path) -> None:
    first, *_, last = sorted((site / "images").iterdir())
    shutil.copy(last, first)


@pytest.mark.parametrize("change", [gone, changed])
def test_who_has_gone_or_changed_would_be_seen_in_the_difference_so_the_site_refuses(
    change: Callable[[Path], None], write_experiment, tmp_path: Path
) -> None:
    asked(write_experiment, tmp_path / "runs")
    change(tmp_path / "data" / "site-0")
    with pytest.raises(QuorumError, match="site-0: refused"):
        asked(write_experiment, tmp_path / "runs", "[federation]\nquorum = 1.0\n")
    assert asked(write_experiment, tmp_path / "runs", NOISE).epsilon is not None


@pytest.mark.parametrize("policy", ["least_patients = 4", "least_patients = 1"])
def test_another_question_about_the_same_patients_is_refused(
    policy: str, write_experiment, tmp_path: Path
) -> None:
    """What two questions tell can be subtracted; where a site protects nobody, it is no matter."""
    asked(write_experiment, tmp_path / "runs", policy=policy)
    again = partial(asked, write_experiment, tmp_path / "runs", policy=policy, crop=True)
    if policy.endswith("1"):
        assert again().patients
        return
    with pytest.raises(QuorumError, match="refused"):
        again()
    for home in (tmp_path / "runs" / "sites").iterdir():
        (home / SURVEYED).unlink()
    assert again().patients


def test_what_was_told_is_not_forgotten_with_a_damaged_file_or_a_lost_key(
    write_experiment, tmp_path: Path
) -> None:
    asked(write_experiment, tmp_path / "runs")
    home = next((tmp_path / "runs" / "sites").iterdir())
    before = (home / SURVEYED).read_bytes()
    for damaged in (b"{}", b"[[1]]"):
        (home / SURVEYED).write_bytes(damaged)
        with pytest.raises(QuorumError):
            asked(write_experiment, tmp_path / "runs")
    (home / SURVEYED).write_bytes(before)
    (home / "withdrawn.key").unlink()
    with pytest.raises(QuorumError):
        asked(write_experiment, tmp_path / "runs")


def test_an_approved_survey_does_not_train(write_experiment, tmp_path: Path) -> None:
    """A server that asks for training under the name of a survey is refused."""
    file = survey_file(write_experiment)
    experiment = load_experiment(file)
    (home, *_) = make_homes(experiment, check_experiment(experiment, file), tmp_path / "sites")
    model = from_model(build_model(experiment))
    for kind in (wire.Kind.TRAIN, wire.Kind.EVALUATE):
        order = wire.Order(
            kind=kind, run="r", round=0, attempt=0, experiment=experiment.order_text(), parameters=model
        )
        reply = ask(home, order)
        assert (reply.code, reply.rule, reply.delta) == ("policy", "maximum_rounds", {})


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

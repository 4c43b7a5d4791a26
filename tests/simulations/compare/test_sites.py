"""No run of a comparison has a test patient, and what is measured on are test patients alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from simulated import fedmed

from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.loading import load_experiment
from fedmed_simulations.compare.sites import Sites

MakeSites = Callable[..., tuple[Sites, Experiment]]


def _held(folder: Path, names: list[str], called: str = "held") -> Path:
    """A federation of other patients, as a folder of sites; their pictures are those of the first site."""
    for name in names:
        site = folder / called / name
        site.mkdir(parents=True)
        (site / "site.toml").write_text(
            f'name = "{name}"\nlabels = {{ disc = ["1"], dot = ["2"] }}\n[policy]\nleast_patients = 1\n'
            f'[data]\nformat = "images"\nimage_labels = "values"\nroot = {json.dumps(str(folder / "data" / "site-0"))}'
        )
    return folder / called


@pytest.fixture
def make_sites(write_comparison) -> MakeSites:
    """Sites of a comparison; ``held``: names of sites with other test patients. ``extra``: of the experiment."""

    def make(*, held: list[str] | None = None, extra: str = "") -> tuple[Sites, Experiment]:
        folder = write_comparison().parent
        file = folder / "discs.toml"
        file.write_text(file.read_text() + "\n" + extra)
        experiment = load_experiment(file)
        test = None if held is None else _held(folder, held)
        sites = Sites(
            base=experiment, file=file, folder=folder / "sites", console=Console(), test_federation=test
        )
        return sites, experiment

    return make


@pytest.mark.parametrize("baseline", ["", "pooled", "local:site-1"])
def test_who_trains_has_no_test_patients_and_who_tests_no_others(
    make_sites: MakeSites, baseline: str
) -> None:
    sites, experiment = make_sites()
    whole = {home.site.name: home.cohort(experiment) for home in sites._all(experiment)}
    training = {home.site.name: home.cohort(experiment) for home in sites.training(experiment, baseline)}
    testing = {home.site.name: home.cohort(experiment) for home in sites.testing(experiment, baseline)}
    names = ["site-1"] if baseline.startswith("local") else ["site-0", "site-1"]
    assert list(testing) == names
    assert list(training) == (["pooled", *names] if baseline == "pooled" else names)
    assert sum(cohort.patients("train") for cohort in training.values()) == sum(
        whole[name].patients("train") for name in names
    )
    for name in names:
        assert {case.split for case in testing[name].cases} == {"train", "test"}
        held = {case.patient: case.image.tobytes() for case in testing[name].of("test")}
        assert held == {case.patient: case.image.tobytes() for case in whole[name].of("test")}
        assert training[name].patients("validation") == whole[name].patients("validation") > 0
    assert not any(cohort.of("test") for cohort in training.values())


def test_patients_of_a_test_federation_are_all_tested_under_every_seed(make_sites: MakeSites) -> None:
    sites, experiment = make_sites(held=["site-0", "site-1", "more"])
    found = []
    for seed in (1, 2):
        homes = sites.testing(experiment.model_copy(update={"seed": seed}), "")
        cohorts = {home.site.name: home.cohort(_under(experiment, seed)) for home in homes}
        found.append(
            {
                name: {case.patient: case.image.tobytes() for case in one.of("test")}
                for name, one in cohorts.items()
            }
        )
        assert not any(one.patients("validation") for one in cohorts.values())
    assert found[0] == found[1]
    assert {name: len(people) for name, people in found[0].items()} == {"site-0": 12, "site-1": 12}
    assert sites.same_patients_tested()


def _under(experiment: Experiment, seed: int) -> Experiment:
    """The experiment under a seed."""
    return experiment.model_copy(update={"seed": seed})


def test_a_site_without_test_patients_elsewhere_is_named(make_sites: MakeSites) -> None:
    with pytest.raises(ConfigError, match="no test patients for site-1") as refused:
        make_sites(held=["site-0"])
    assert refused.value.field == "test.federation"


def test_drawn_sites_have_no_test_patients_elsewhere(make_sites: MakeSites) -> None:
    with pytest.raises(ConfigError, match="sites are drawn"):
        make_sites(held=["site-0"], extra="[simulation.partition]\nsites = 2")


def test_drawn_sites_are_surveyed_too_and_seeds_deal_differently(make_sites: MakeSites) -> None:
    sites, experiment = make_sites(extra='[simulation.partition]\nsites = 3\nkind = "quantity"')
    surveys = [sites.survey(_under(experiment, seed)) for seed in (1, 2)]
    assert [list(survey) for survey in surveys] == [["drawn-1", "drawn-2", "drawn-3"]] * 2
    assert surveys[0]["drawn-1"].digest != surveys[1]["drawn-1"].digest
    assert sites.presence((1, 2)) == {
        name: sum(one.presence[name] for survey in surveys for one in survey.values())
        for name in ("dot", "disc")
    }


def test_each_seed_can_have_a_federation_of_its_own(write_comparison) -> None:
    folder = write_comparison().parent
    file = folder / "discs.toml"
    _held(folder, ["a", "b"], "sites-1")
    _held(folder, ["c"], "sites-2")
    _held(folder, ["a", "b"], "test-1")
    _held(folder, ["c"], "test-2")
    sites = Sites(
        base=load_experiment(file),
        file=file,
        folder=folder / "sites",
        console=Console(),
        first_seed=1,
        federations=folder / "sites-{seed}",
        test_federation=folder / "test-{seed}",
    )
    for seed, names in ((1, ["a", "b"]), (2, ["c"])):
        under = _under(sites.base, seed)
        assert [home.site.name for home in sites.training(under, "")] == names
        assert [home.site.name for home in sites.testing(under, "")] == names
        assert list(sites.survey(under)) == names
    assert not sites.same_patients_tested()
    with pytest.raises(ConfigError, match="sites-3"):
        sites.training(_under(sites.base, 3), "")


def test_a_comparison_on_a_balanced_test_federation(write_comparison) -> None:
    asked = (
        '[test]\nfederation = "held"\n[[candidates]]\nname = "flat"\nchanges = { "recipe.name" = "fedsam" }'
    )
    file = write_comparison(asked, seeds="[1]", rounds=5, steps=1)
    _held(file.parent, ["site-0", "site-1"])
    fedmed("compare", file, "--folder", file.parent / "out")
    measured = [json.loads(one.read_text()) for one in sorted(file.parent.glob("out/runs/*/test/5.json"))]
    assert sorted(len(people) for one in measured for people in one.values()) == [12] * 8
    found = json.loads((file.parent / "out" / "trial" / "comparison.json").read_text())
    assert any("the same under all seeds" in note for note in found["notes"])
    assert any("'flat' has a second pass in every step ('sharpness')" in note for note in found["notes"])
    assert all(np.isfinite(row["columns"]["mean"]).all() for row in found["competitors"].values())


def test_a_classification_is_compared_by_auroc_and_has_no_false_positives(write_comparison) -> None:
    file = write_comparison(seeds="[1]", rounds=5, steps=2)
    experiment = file.parent / "discs.toml"
    text = (
        experiment.read_text()
        .replace("[task]", '[task]\nname = "classification"')
        .replace("[16, 16]", "[24, 24]")
    )
    text = text.replace(
        "[model]\nchannels = [4, 8]\nresidual_units = 0", '[model]\nname = "resnet"\nwidth = 0.125'
    )
    experiment.write_text(text)
    fedmed("compare", file, "--folder", file.parent / "out")
    found = json.loads((file.parent / "out" / "trial" / "comparison.json").read_text())
    assert found["metric"] == "auroc"
    for row in found["competitors"].values():
        assert set(row["columns"]) == {"mean", "tail", "worst_site", "site_sd"}
        assert 0 <= row["columns"]["mean"][0] <= 1
    assert sorted(one.name for one in (file.parent / "out" / "trial" / "figures").iterdir()) == [
        "classes.png",
        "differences.png",
    ]

"""A simulation whose sites are dealt to regions, through the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from simulated import fedmed, only_run, weights

from fedmed_server import history
from fedmed_server.history import RoundDone

REGIONS = "[simulation]\nregions = 2"


def with_sgd(file: Path) -> Path:
    """Adam's first steps make much of the last digits of small gradients."""
    file.write_text(file.read_text().replace("[train]", '[train]\noptimizer = "sgd"\nmomentum = 0.0'))
    return file


def test_regions_give_the_model_of_the_sites(write_experiment, tmp_path: Path) -> None:
    flat, dealt = tmp_path / "flat", tmp_path / "dealt"
    fedmed("simulate", with_sgd(write_experiment(sites=4)), "--runs", flat)
    file = with_sgd(write_experiment(sites=4, extra=REGIONS))
    said = fedmed("simulate", file, "--runs", dealt, "--baseline", "pooled")
    assert "completed" in said.stdout
    runs = [
        folder
        for folder in dealt.iterdir()
        if "pooled" not in folder.name and (folder / "simulation.json").exists()
    ]
    wanted = weights(only_run(flat))
    for name, array in weights(runs[0]).items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=2e-6)
    rounds = [line for line in history.read(runs[0] / history.FILE) if isinstance(line, RoundDone)]
    assert [[one.site for one in line.train] for line in rounds] == [["region-1", "region-2"]] * 3


def test_what_regions_cannot_do_is_refused_before_anything_is_written(
    write_experiment, tmp_path: Path
) -> None:
    for extra, told in (
        (
            f'{REGIONS}\n[recipe]\nname = "median"',
            "a region answers with the mean of its sites by their patients",
        ),
        ("[simulation]\nregions = 5", "4 sites in 5 regions leave 0 in one"),
    ):
        said = fedmed(
            "simulate", write_experiment(sites=4, extra=extra), "--runs", tmp_path / "runs", check=False
        )
        assert said.returncode != 0
        assert told in " ".join(said.stderr.split()), said.stderr
        assert "simulation.regions" in said.stderr
    noised = 'least_patients = 1, held_out = "noised"'
    said = fedmed(
        *("simulate", write_experiment(sites=4, extra=REGIONS, policy=noised), "--runs", tmp_path / "runs"),
        check=False,
    )
    assert "site 'site-0' puts noise on what it measures" in " ".join(said.stderr.split()), said.stderr
    said = fedmed(
        *("simulate", write_experiment(sites=4, extra=REGIONS), "--runs", tmp_path / "runs"),
        *("--engine", "process"),
        check=False,
    )
    assert "use the engine inline" in said.stderr

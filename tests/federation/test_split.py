"""How an experiment's patients lie: told and drawn without training, and in the report of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pools import one_each, pool_of

from fedmed_client.data.cohort import regroup, without_annotation
from fedmed_client.data.splits import SPLITS
from fedmed_common.cli import root_command, run
from fedmed_common.config import Partition
from fedmed_common.loading import load_experiment
from fedmed_server.report.figures import load_figures
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.cli_split import table_of
from fedmed_simulations.federation import drawing
from fedmed_simulations.partition import draw_sites
from fedmed_simulations.partition.counts import Counts
from fedmed_simulations.partition.picture import draw_split, split_figure

LONG_TAIL = '[simulation.partition]\nkind = "even"\nsites = 2'


def test_counts_are_those_of_the_cohorts() -> None:
    pool = one_each([10, 4])
    settings = Partition(kind="presence", sites=3, imbalance=10, unannotated=1)
    drawn = draw_sites(pool, settings, 0)
    counts = Counts.of(drawn.sites, drawn)
    assert (counts.annotated == ~drawn.unannotated).all()
    assert counts.everyone.tolist() == [30, 12]
    assert counts.aims is not None
    assert counts.aims.tolist() == [30, 3]
    assert counts.left_out == 9
    assert counts.sizes.sum(axis=0).tolist() == [33, 14, 14]
    shown = [[site.presence().get(name, 0) for name in pool.classes] for site in drawn.sites]
    assert counts.shows.tolist() == shown
    assert not (counts.shows * drawn.unannotated).any()


def test_listed_sites_are_counted_as_they_are() -> None:
    pool = one_each([4, 4])
    sites = [regroup(pool, "one", range(20)), without_annotation(regroup(pool, "two", range(20, 40)), [0])]
    counts = Counts.of(sites)
    assert counts.shows.tolist() == [[12, 0], [0, 12]]
    assert counts.annotated.tolist() == [[True, True], [False, True]]
    assert (counts.left_out, counts.aims, counts.told) == (0, None, ())
    table = table_of(counts)
    assert [column.header for column in table.columns] == ["", "one", "two", "all sites"]
    assert [list(column.cells) for column in table.columns][1:3] == [
        ["12", "4", "4", "12", "0"],
        ["12", "4", "4", "-", "12"],
    ]


def test_many_sites_are_counted_and_not_all_are_listed() -> None:
    pool = one_each([100, 100])
    counts = Counts.of([regroup(pool, f"site-{number}", [number]) for number in range(100)])
    first, *columns = table_of(counts).columns
    names = list(first.cells)
    assert (len(names), names[59:]) == (62, ["site-59", "40 more sites", "all sites"])
    assert list(columns[0].cells)[-1] == str(counts.sizes[:, 0].sum())


@pytest.mark.parametrize(("sites", "classes"), [(1, 1), (3, 2), (60, 5)])
def test_the_picture_is_the_same_each_time_and_shows_it_all(sites: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    pool = pool_of((rng.random((200, classes)) < 0.4).tolist())
    drawn = draw_sites(pool, Partition(sites=sites, unannotated=int(classes > 1)), 0)
    counts = Counts.of(drawn.sites, drawn)
    first = draw_split(counts)
    assert first == draw_split(counts)
    others = [
        replace(counts, shows=counts.shows + counts.annotated),
        replace(counts, annotated=~counts.annotated),
        replace(counts, vacant=~counts.vacant),
        replace(counts, sizes=counts.sizes[:, ::-1] + 1),
        replace(counts, everyone=counts.everyone + 1),
        replace(counts, aims=counts.everyone),
    ]
    assert len({first, *map(draw_split, others)}) == 1 + len(others)


def test_the_figure_stays_on_this_machine() -> None:
    drawn = draw_sites(one_each([10, 4]), Partition(kind="presence", sites=2, imbalance=10), 0)
    figure = split_figure(Counts.of(drawn.sites, drawn))
    assert figure.of_patients
    assert "9 training patients are left out for the long tail" in figure.caption


def test_the_command_prints_and_draws_and_trains_nothing(
    write_experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_experiment(extra=LONG_TAIL)
    picture, runs = tmp_path / "split.png", tmp_path / "runs"
    assert run(root_command(), ["split", str(file), "--out", str(picture), "--runs", str(runs)]) == 0
    told = capsys.readouterr().out
    assert "drawn-1" in told
    assert f"picture: {picture}" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in runs.iterdir()] == [".sites"]


def test_another_seed_is_another_split(
    write_experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_experiment(extra='[simulation.partition]\nkind = "quantity"\nalpha = 0.2\nsites = 3')
    told = []
    for seed in ("7", "8", "7"):
        options = ["--seed", seed, "--out", str(tmp_path / "s.png"), "--runs", str(tmp_path / "runs")]
        assert run(root_command(), ["split", str(file), *options]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[2] != told[1]


def test_a_run_has_the_picture_in_its_report(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(rounds=1, extra=LONG_TAIL)
    assert run(root_command(), ["simulate", str(file), "--runs", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs").glob("*-discs-*")
    first = load_figures(folder)[0]
    assert first.title == "Who has what"
    listed = json.loads((folder / "figures" / "figures.json").read_text())[0]
    assert (listed["file"], listed["of_patients"]) == ("001.png", True)
    assert "Who has what" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('column = "vendor"\nindex = "none.csv"', "simulation.partition.index: no such file: "),
        (
            'column = "Manufacturer"',
            "simulation.partition.index: is missing: the files of site 'site-0', of format images",
        ),
    ],
)
def test_an_index_that_is_not_there_is_said_before_anything_is_written(
    write_experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, said: str
) -> None:
    file = write_experiment(extra=f'[simulation.partition]\nkind = "column"\n{lines}')
    for command in (["simulate"], ["split", "--out", str(tmp_path / "s.png")]):
        assert run(root_command(), [*command, str(file), "--runs", str(tmp_path / "runs")]) == 2
        assert f"error: {file}: {said}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "s.png").exists()


def test_a_column_makes_sites_of_what_the_index_says(write_experiment, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    rows = [
        f"site-{site},p{patient:02d}.png,{'AB'[patient % 2]}\n"
        for site in range(2)
        for patient in range(6 + site)
    ]
    index.write_text("site,image,Vendor\n" + "".join(rows))
    partition = '[simulation.partition]\nkind = "column"\ncolumn = "Vendor"\nindex = "index.csv"'
    file = write_experiment(sites=2, extra=partition)
    experiment = load_experiment(file)
    drawn = drawing(experiment, check_experiment(experiment, file), tmp_path / "homes")
    assert drawn is not None
    sizes = {site.site: sum(site.patients(split) for split in SPLITS) for site in drawn.sites}
    assert sizes == {"a": 7, "b": 6}

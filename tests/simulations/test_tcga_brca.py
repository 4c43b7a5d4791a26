"""FLamby's Fed-TCGA-BRCA: its files, the Cox model, and recipes on a plain network."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed_common import params
from fedmed_common.errors import ConfigError, DataError
from fedmed_simulations.published.plain import Course, Table, federate
from fedmed_simulations.published.survival import concordance, cox_loss
from fedmed_simulations.published.tcga_brca import PUBLISHED, c_indices, compare, loss
from fedmed_simulations.published.tcga_brca_files import COLUMNS, PATIENTS, SPLIT, Region, read
from fedmed_strategies.pieces import Layers, Memory, Scene
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import resolve

SEEDS = range(42, 47)
patients = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=9)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Invented patients in FLamby's columns and split."""
    rng = np.random.default_rng(3)
    folds = [
        (fold, n) for fold, sizes in PATIENTS.items() for n, size in enumerate(sizes) for _ in range(size)
    ]
    with (tmp_path / "brca.csv").open("w", newline="") as table, (tmp_path / SPLIT).open("w") as split:
        rows = csv.writer(table)
        rows.writerow(COLUMNS)
        split.write("pid,fold,fold2\n")
        for number, (fold, region) in enumerate(folds):
            bits = rng.integers(0, 2, 38)
            died, days = float(rng.random() < 0.3), float(rng.integers(0, 5000))
            rows.writerow([f"P-{number}", rng.integers(26, 91), *bits, died, days])
            split.write(f"P-{number},{fold},{fold}_{region}\n")
    return tmp_path / "brca.csv"


def test_the_regions_and_the_split_are_those_of_the_files(files: Path) -> None:
    regions = read(files)
    assert tuple(len(region.train.inputs) for region in regions) == PATIENTS["train"]
    assert tuple(len(region.test.inputs) for region in regions) == PATIENTS["test"]
    with files.open(newline="") as lines:
        first = next(itertools.islice(csv.reader(lines), 1, None))
    assert [*regions[0].train.inputs[0].tolist(), *regions[0].train.targets[0].tolist()] == [
        float(cell) for cell in first[1:]
    ]
    folder = files.parent / "dataset_creation_scripts"
    folder.mkdir()
    (files.parent / SPLIT).rename(folder / SPLIT)
    assert torch.equal(read(files)[5].test.targets, regions[5].test.targets)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("brca.csv", lambda text: text.replace("race_asian", "race_other", 1), "race_asian: column 5"),
        ("brca.csv", lambda text: text.replace("pid,", "", 1), "pid: column 1"),
        ("brca.csv", lambda text: "", "pid: column 1"),
        ("brca.csv", lambda text: text.replace("\nP-0,", "\nP-0,old,", 1), "line 2 has 43 cells"),
        ("brca.csv", lambda text: text.replace("\nP-0,", "\nP-0,x", 1), "age_at_index: line 2 has 'x"),
        ("brca.csv", lambda text: text.replace("\nP-0,", "\nsomebody,", 1), "247 patients are train_0"),
        (SPLIT, lambda text: text.replace("train_0", "train_6", 1), "fold2: line 2 has 'train_6'"),
        (SPLIT, lambda text: text.replace("P-1,", "P-0,", 1), "pid: line 3 has a patient a second time"),
        (SPLIT, lambda text: text.replace("fold2", "fold3", 1), "fold2: column 3"),
    ],
)
def test_a_wrong_file_is_named_with_its_column(
    files: Path, name: str, change: Callable[[str], str], says: str
) -> None:
    wrong = files.parent / name
    wrong.write_text(change(wrong.read_text()))
    with pytest.raises(ConfigError) as error:
        read(files)
    assert says in str(error.value)
    assert (str(wrong) if "247" not in says else str(files)) in str(error.value)
    assert "owkin/FLamby" in error.value.fix


def test_a_missing_file_is_named(files: Path) -> None:
    (files.parent / SPLIT).unlink()
    with pytest.raises(ConfigError, match=SPLIT):
        read(files)
    with pytest.raises(ConfigError, match=r"brca\.csv"):
        files.unlink()
        (files.parent / SPLIT).write_text("pid,fold,fold2\n")
        read(files)


@settings(deadline=None)
@given(patients)
def test_the_cox_loss_is_its_formula(some: list[tuple[int, bool, int]]) -> None:
    expected = sum(
        math.log(sum(math.exp(other - score) for other, _, later in some if later >= time))
        for score, died, time in some
        if died
    ) / len(some)
    scores, died, times = (torch.tensor(column, dtype=torch.float64) for column in zip(*some, strict=True))
    assert float(cox_loss(scores, died, times)) == pytest.approx(expected, abs=1e-12)


def test_the_cox_loss_has_the_gradient_of_its_differences_and_does_not_overflow() -> None:
    scores = torch.randn(12, dtype=torch.float64, generator=torch.manual_seed(1), requires_grad=True)
    died = torch.tensor([1.0, 0, 1] * 4, dtype=torch.float64)
    times = torch.tensor([5.0, 5, 5, 3, 3, 2, 8, 8, 1, 0, 0, 9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: cox_loss(one, died, times), scores)
    huge = torch.tensor([1e5, -1e5, 0.0], requires_grad=True)
    value = cox_loss(huge, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([3.0, 2.0, 1.0]))
    assert value.item() == pytest.approx(3e5 / 3)
    value.backward()  # type: ignore[no-untyped-call]
    assert huge.grad is not None
    assert torch.isfinite(huge.grad).all()


@given(patients)
def test_the_c_index_is_the_count_over_pairs(some: list[tuple[int, bool, int]]) -> None:
    right, known = 0.0, 0
    for (score, died, time), (other_score, other_died, other_time) in itertools.permutations(some, 2):
        if died and (time < other_time or (time == other_time and not other_died)):
            known += 1
            right += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    columns = [np.array(column, np.float64) for column in zip(*some, strict=True)]
    if known:
        assert concordance(*columns) == right / known
    else:
        with pytest.raises(DataError):
            concordance(*columns)


def test_scores_of_a_diverged_training_have_no_c_index() -> None:
    with pytest.raises(DataError, match="diverged"):
        concordance(np.array([np.nan, 1.0]), np.ones(2), np.array([1.0, 2.0]))


def _tables(sizes: tuple[int, ...]) -> dict[str, Table]:
    generator = torch.Generator().manual_seed(5)
    return {
        f"site_{number}": Table(
            inputs=torch.randn(size, 4, generator=generator),
            targets=torch.stack(
                [torch.arange(size) % 2, torch.randperm(size, generator=generator)], 1
            ).float(),
        )
        for number, size in enumerate(sizes)
    }


def _network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return torch.nn.Linear(4, 1)


def _batches(size: int, number: int) -> list[torch.Tensor]:
    """Two rounds of three batches of 4, as a site draws them with seed 7."""
    rng = np.random.default_rng([7, number])
    passes = [torch.from_numpy(rng.permutation(size)).split(4) for _ in range(6)]
    return list(itertools.chain.from_iterable(passes))[:6]


COURSE = Course(rounds=2, steps=3, batch=4, rate=0.1)


def test_a_federation_of_one_site_is_plain_training() -> None:
    tables, network, alone = _tables((10,)), _network(), _network()
    federate(RECIPES["fedavg"], network, tables, COURSE, loss, seed=7)
    optimizer = torch.optim.SGD(alone.parameters(), 0.1)
    for rows in _batches(10, 0):
        optimizer.zero_grad()
        loss(alone(tables["site_0"].inputs[rows]), tables["site_0"].targets[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, value in alone.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, atol=1e-6)


def test_scaffold_at_sites_of_one_size_is_flambys_form_of_it() -> None:
    """There a site adds (global - own last) / (rate steps) to its correction, and the server keeps nothing."""
    tables, network = _tables((8, 8, 8)), _network()
    federate(RECIPES["scaffold"], network, tables, COURSE, loss, seed=7)
    one, everyone = _network(), params.from_model(_network())
    last = dict.fromkeys(tables, everyone)
    corrections = {site: {name: 0.0 * array for name, array in everyone.items()} for site in tables}
    for start in (0, 3):
        for number, (site, table) in enumerate(tables.items()):
            corrections[site] = {
                name: old + (everyone[name] - last[site][name]) / (0.1 * 3)
                for name, old in corrections[site].items()
            }
            params.to_model(everyone, one)
            optimizer = torch.optim.SGD(one.parameters(), 0.1)
            for rows in _batches(8, number)[start : start + 3]:
                optimizer.zero_grad()
                pull = sum(
                    (p * torch.from_numpy(corrections[site][n])).sum() for n, p in one.named_parameters()
                )
                (loss(one(table.inputs[rows]), table.targets[rows]) - pull).backward()
                optimizer.step()
            last[site] = params.from_model(one)
        everyone = {name: sum(last[site][name] for site in tables) / np.float32(3) for name in everyone}
    for name, array in params.from_model(network).items():
        assert np.allclose(array, everyone[name], atol=1e-5)


@pytest.mark.parametrize("name", ["FedAdagrad", "FedAdam", "FedYogi"])
def test_the_servers_step_is_flambys_with_the_settings_of_the_row(name: str) -> None:
    choice = PUBLISHED[name].recipe
    (settings,) = choice.settings.values()
    optimizer = resolve(choice, RECIPES).server_optimizer
    parameters, memory = {"w": np.zeros(3, np.float32)}, Memory()
    scene = Scene(
        classes=("a",), background=False, layers=Layers(trained=("w",)), sites=(), round=1, rounds=3
    )
    m, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for update in np.array([[0.3, -2.0, 0.0], [0.001, 1.0, 5.0], [1.0, 0.0, -0.2]], np.float32):
        square = np.square(update, dtype=np.float64)
        m = 0.9 * m + 0.1 * update
        v = {
            "FedAdagrad": v + square,
            "FedAdam": 0.999 * v + 0.001 * square,
            "FedYogi": v - 0.001 * square * np.sign(v - square),
        }[name]
        expected += settings["rate"] * m / (np.sqrt(v) + 1e-8)
        parameters, memory = optimizer.step(parameters, {"w": update}, memory, scene)
    assert np.allclose(parameters["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["ditto", "feddisco", "qffl", "fedsam", "rare"])
def test_what_a_plain_network_cannot_do_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="plain network"):
        federate(RECIPES[name], _network(), _tables((8,)), COURSE, loss, seed=1)


def test_every_published_row_trains_and_is_replayable(files: Path) -> None:
    regions = tuple(
        Region(train=Table(inputs=one.train.inputs[:20], targets=one.train.targets[:20]), test=one.train)
        for one in read(files)
    )
    found = {name: c_indices(name, regions, seed=1, rounds=2) for name in PUBLISHED}
    assert all(0.0 <= value <= 1.0 for values in found.values() for value in values)
    assert c_indices("SCAFFOLD", regions, seed=1, rounds=2) == found["SCAFFOLD"]


def test_the_tolerance_is_two_standard_errors() -> None:
    outcome = compare("SCAFFOLD", [0.6, 0.7, 0.8, 0.7])
    assert outcome.tolerance == pytest.approx(2 * math.sqrt(0.0360**2 / 5 + (0.02 / 3) / 4))
    assert outcome.within
    assert not compare("FedAdagrad", [0.7, 0.701]).within


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table(name: str, fedmed_data: Path) -> None:
    file = fedmed_data / "tcga_brca" / "brca.csv"
    if not file.is_file():
        pytest.skip(f"{name} of FLamby's Fed-TCGA-BRCA: no tcga_brca/brca.csv in FEDMED_DATA")
    regions = read(file)
    ours = [float(np.mean(c_indices(name, regions, seed))) for seed in SEEDS]
    assert compare(name, ours).within, ours

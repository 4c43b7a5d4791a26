"""Changes in fewer bytes, in whole runs: whoever has the model before, all train from the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmed_client.agreed import LAST
from fedmed_common.errors import ConfigError, Interrupted
from fedmed_common.loading import load_experiment
from fedmed_server.app import RunRequest
from fedmed_server.history import FILE, RoundDone, read
from fedmed_server.state import model_file
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.engines import run_inline
from fedmed_simulations.federation import make_homes

BOTH = '[compression]\nup = "int8"\ndown = "int8"\n'


def carry_out(
    file: Path, folder: Path, on_round: Callable[[RunRequest, RoundDone], None] = lambda *_: None
) -> list[RoundDone]:
    """Run or resume; what the history says of the rounds."""
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), folder / "sites")
    folder.mkdir(parents=True, exist_ok=True)
    request = RunRequest(
        experiment=experiment,
        folder=folder,
        command="test",
        sites=len(homes),
        on_round=lambda record: on_round(request, record),
    )
    run_inline(homes, request)
    return rounds_of(folder)


def rounds_of(folder: Path) -> list[RoundDone]:
    return [record for record in read(folder / FILE) if isinstance(record, RoundDone)]


def assert_same_model(first: Path, second: Path) -> None:
    a, b = load_file(model_file(first, "last")), load_file(model_file(second, "last"))
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def stop_after(number: int) -> Callable[[RunRequest, RoundDone], None]:
    def stop(request: RunRequest, record: RoundDone) -> None:
        if record.round == number:
            request.stop.set()

    return stop


@pytest.mark.parametrize("zstd", ["", "zstd = true\n"], ids=["plain", "zstd"])
def test_a_run_that_is_resumed_and_sends_whole_models_again_is_the_same(
    write_experiment, tmp_path: Path, zstd: str
) -> None:
    """Error feedback at sites and at the server, and who has which model: none of it is lost or matters."""
    file = write_experiment(rounds=4, extra=BOTH + zstd)
    one, other = tmp_path / "one", tmp_path / "other"
    records = carry_out(file, one)
    with pytest.raises(Interrupted):
        carry_out(file, other, stop_after(2))
    LAST.__init__()  # type: ignore[misc]
    resumed = carry_out(file, other)
    assert_same_model(one, other)
    whole = records[0].train[0].bytes_down
    for before, after in zip(records, resumed, strict=True):
        assert [site.metrics for site in before.evaluation] == [site.metrics for site in after.evaluation]
        assert [site.bytes_up for site in before.train] == [site.bytes_up for site in after.train]
    assert [record.train[0].bytes_down for record in records] == [whole, 0, 0, 0]
    assert [record.train[0].bytes_down for record in resumed] == [whole, 0, whole, 0]
    assert all(0 < record.evaluation[0].bytes_down < whole / 2 for record in records)


def test_sites_that_were_not_drawn_are_sent_the_whole_model(write_experiment, tmp_path: Path) -> None:
    federation = "[federation]\nfraction = 0.4\nminimum_sites = 1\nevaluate_every = 4\n"
    file = write_experiment(rounds=4, sites=4, extra=BOTH + federation)
    records = carry_out(file, tmp_path / "run")
    whole, known = records[0].train[0].bytes_down, dict[str, int]()
    for record in records:
        for site in record.train:
            held = known.get(site.site) == record.round - 1
            assert (site.bytes_down < whole / 2) == held, (record.round, site.site)
            known[site.site] = record.round
    last = {site.site: site.bytes_down < whole / 2 for site in records[-1].evaluation}
    assert last == {name: known.get(name) == 4 for name in last}


def test_a_site_that_lost_the_model_is_sent_it_again(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(rounds=3, extra=BOTH)
    carry_out(file, tmp_path / "one")
    records = carry_out(file, tmp_path / "other", lambda *_: LAST.__init__())  # type: ignore[misc]
    assert_same_model(tmp_path / "one", tmp_path / "other")
    assert all(site.outcome == "ok" for record in records for site in record.train)
    assert records[1].train[0].bytes_down == records[0].train[0].bytes_down


def test_top_sends_few_bytes_and_keeps_the_rest(write_experiment, tmp_path: Path) -> None:
    plain = carry_out(write_experiment(rounds=1), tmp_path / "plain")
    asked = '[compression]\nup = "top"\nshare = 0.05\nzstd = true\n'
    records = carry_out(write_experiment(rounds=1, extra=asked), tmp_path / "run")
    assert records[0].train[0].bytes_up < 0.2 * plain[0].train[0].bytes_up
    (kept,) = (tmp_path / "run" / "sites" / "site-0").glob("personal/*/*.safetensors")
    left = load_file(kept)
    assert all(name.startswith("codec/") for name in left)
    count = sum(array.size for array in left.values())
    sent = sum(int((array == 0).sum()) for array in left.values())
    assert sent >= 0.05 * count
    assert sent < 0.5 * count


def test_private_updates_are_rounded_after_the_noise(write_experiment, tmp_path: Path) -> None:
    private = "[privacy]\nepsilon = 50.0\nsampling_rate = 0.5\n"
    file = write_experiment(rounds=1, extra=BOTH + private)
    (record,) = carry_out(file, tmp_path / "run")
    assert all(site.outcome == "ok" and site.epsilon_spent for site in record.train)
    assert not json.loads(record.model_dump_json())["train"][0]["metrics"]


def test_rounded_updates_do_not_go_with_secure_sums(write_experiment) -> None:
    with pytest.raises(ConfigError, match=r"compression\.up: under secure_aggregation"):
        load_experiment(write_experiment(extra=BOTH + "[secure_aggregation]\n"))
    load_experiment(write_experiment(sites=4, extra='[compression]\ndown = "int8"\n[secure_aggregation]\n'))

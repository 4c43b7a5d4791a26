"""The pooled baseline is pooled: in the process that trained the federation a moment ago, too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from fedmed_client.workbench import COHORTS
from fedmed_common.loading import load_experiment
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes, pooled_homes


def test_after_the_federation_only_the_pooled_site_trains(write_experiment, tmp_path: Path) -> None:
    file = write_experiment()
    experiment = load_experiment(file)
    homes = make_homes(experiment, check_experiment(experiment, file), tmp_path / "homes")
    order = experiment.order_text()
    federated = {home.site.name: COHORTS.get(home, order)[0] for home in homes}
    pooled, *others = [COHORTS.get(home, order)[0] for home in pooled_homes(homes)]
    assert pooled.patients("train") == sum(cohort.patients("train") for cohort in federated.values())
    for cohort in others:
        assert cohort.patients("train") == 0
        for split in ("validation", "test"):
            assert cohort.patients(split) == federated[cohort.site].patients(split)


def test_a_changed_label_table_is_another_cohort(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(sites=1)
    experiment = load_experiment(file)
    (home,) = make_homes(experiment, check_experiment(experiment, file), tmp_path / "homes")
    order = experiment.order_text()
    assert COHORTS.get(home, order)[0].presence()["disc"] > 0
    unlabelled = home.site.model_copy(update={"labels": {}, "ignore_labels": ("1",)})
    assert COHORTS.get(replace(home, site=unlabelled), order)[0].presence() == {}
    assert COHORTS.get(home, order)[0] is COHORTS.get(replace(home), order)[0]


def test_drawn_sites_follow_a_changed_label_table(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(sites=1, extra="[simulation.partition]\nsites = 2")
    experiment = load_experiment(file)
    sites = check_experiment(experiment, file)
    first = make_homes(experiment, sites, tmp_path / "homes")[0]
    assert COHORTS.get(first, experiment.order_text())[0].presence()["disc"] > 0
    unlabelled = sites[0].model_copy(update={"labels": {}, "ignore_labels": ("1",)})
    again = make_homes(experiment, [unlabelled], tmp_path / "homes")[0]
    assert COHORTS.get(again, experiment.order_text())[0].presence() == {}


_OPEN_ALL = """
import resource, sys
from pathlib import Path
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
from rich.console import Console
from fedmed_common.loading import load_experiment
from fedmed_simulations.checks import check_experiment
from fedmed_simulations.federation import make_homes
from fedmed_simulations.run import prepare
file = Path(sys.argv[1])
experiment = load_experiment(file)
prepare(make_homes(experiment, check_experiment(experiment, file), Path(sys.argv[2])), experiment, Console())
"""


def test_more_arrays_are_mapped_than_the_shell_lets_files_be_open(write_experiment, tmp_path: Path) -> None:
    file = write_experiment(sites=4)
    done = subprocess.run(
        [sys.executable, "-c", _OPEN_ALL, str(file), str(tmp_path / "homes")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

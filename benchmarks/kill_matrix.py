"""Every process of a consortium ended at every point of a round, by both signals: 56 runs with one fault each.

One consortium of two sites lives through all of them. The fault is in round 2 of 3. A run must end with weights that
are bit-identical to those of the run without a fault, or end degraded and name the site and the round; and the round must
be done within 30 s of the process's restart.

    python benchmarks/kill_matrix.py
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedmed_common.errors import FedmedError
from fedmed_common.failpoints import POINTS
from fedmed_common.loading import load_experiment
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import Consortium, write_experiment
from fedmed_simulations.rehearsal.faults import (
    EVERY_FAULT,
    ROLES,
    SIGNALS,
    Fault,
    Faults,
    Outcome,
    run_with_fault,
)
from fedmed_simulations.rehearsal.rehearse import SHIPPED

NAMES = {
    "superlink": "SuperLink",
    "serverapp": "ServerApp",
    "link": "SuperNode (link)",
    "worker": "ClientApp (worker)",
}
ROUNDS, FAULTED, LIMIT_SECONDS = 3, 2, 30.0


def prepared(folder: Path, faults: Faults) -> tuple[Consortium, Path]:
    """A consortium that is ready to start, and the experiment's file."""
    settings = PhantomSettings(sites=2, patients=5, shape=(32, 32, 16), seed=1)
    write_federation(folder / "federation", settings)
    shipped = load_experiment(SHIPPED)
    changed = {
        "rounds": ROUNDS,
        "train": shipped.train.model_copy(update={"steps": 3}),
        "model": shipped.model.model_copy(update={"channels": (4, 8)}),
        "federation": shipped.federation.model_copy(update={"evaluate_every": ROUNDS}),
    }
    write_experiment(shipped.model_copy(update=changed), folder / "federation", folder / "experiment.toml")
    consortium = Consortium(folder, [site.name for site in plan_federation(settings)], faults.environment)
    consortium.found(folder / "federation")
    return consortium, folder / "experiment.toml"


def carry_out(folder: Path, wanted: Sequence[tuple[str, str, str]]) -> tuple[list[Outcome], dict[str, str]]:
    """The outcomes, and by fault what went wrong."""
    faults = Faults(folder)
    outcomes: list[Outcome] = []
    problems: dict[str, str] = {}
    consortium, experiment = prepared(folder, faults)
    with consortium:
        consortium.start()
        whole = consortium.launch(experiment)
        consortium.wait_ended(whole)
        for number, (role, point, signal) in enumerate(wanted, start=1):
            fault = Fault(role=role, point=point, signal=signal, round=FAULTED, site=consortium.names[1])  # type: ignore[arg-type]
            before = time.monotonic()
            try:
                consortium.wait_connected(seconds=120)
                outcome = run_with_fault(consortium, faults, fault, experiment, consortium.run_folder(whole))
            except FedmedError as error:
                problems[fault.name] = str(error)
                faults.plan(consortium, [])
                print(f"{number:>2} {fault.name}: {error}", flush=True)
                continue
            outcomes.append(outcome)
            if outcome.problem:
                problems[fault.name] = outcome.problem
            print(
                f"{number:>2} {fault.name}: {verdict(outcome)}; {outcome.down_seconds:.1f} s down, "
                f"recovered {outcome.recovery_seconds:.1f} s after its restart; {time.monotonic() - before:.0f} s",
                flush=True,
            )
    return outcomes, problems


def verdict(outcome: Outcome) -> str:
    """In a word or two."""
    if outcome.problem:
        return f"**{outcome.problem}**"
    return "identical" if outcome.ended.status == "completed" else "degraded, named"


def page(outcomes: Sequence[Outcome], problems: dict[str, str], seconds: float) -> str:
    """The dated file."""
    slow = sum(outcome.recovery_seconds > LIMIT_SECONDS for outcome in outcomes)
    fine = [outcome.ended.status.split(":")[0] for outcome in outcomes if not outcome.problem]
    command = " ".join(["python", "benchmarks/kill_matrix.py", *sys.argv[1:]])
    lines = [
        f"# Kill matrix, {datetime.now(UTC).date().isoformat()}",
        "",
        f"`{command}`, {platform.machine()}, {os.cpu_count()} cores, fedmed {version('fedmed')}, flwr {version('flwr')}: "
        f"{len(problems.keys() | {o.fault.name for o in outcomes})} runs in {seconds / 60:.0f} minutes. "
        f"Two sites, {ROUNDS} rounds; the fault is in round {FAULTED}.",
        "",
        f"- bit-identical to the run without a fault: {fine.count('completed')}",
        f"- degraded, with site and round named: {fine.count('degraded')}",
        f"- anything else: {len(problems)}",
        f"- more than {LIMIT_SECONDS:g} s from the process's restart until the round was done: {slow}",
        "",
        "In each cell: the outcome, and the seconds from the process's restart until the faulted round was done.",
    ]
    found = {(o.fault.role, o.fault.point, o.fault.signal): o for o in outcomes}
    for signal in SIGNALS:
        lines += [
            "",
            f"## {signal}",
            "",
            f"| point | {' | '.join(NAMES[role] for role in ROLES)} |",
            "|---" * 5 + "|",
        ]
        for point in POINTS:
            cells = []
            for role in ROLES:
                outcome = found.get((role, point, signal))
                cells.append(
                    "-" if outcome is None else f"{verdict(outcome)}, {outcome.recovery_seconds:.1f} s"
                )
            lines.append(f"| {point} | {' | '.join(cells)} |")
    if outcomes:
        times = sorted(outcome.recovery_seconds for outcome in outcomes)
        down = sorted(outcome.down_seconds for outcome in outcomes)
        lines += [
            "",
            f"Recovery: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s. From the signal to the restart: "
            f"median {down[len(down) // 2]:.1f} s, longest {down[-1]:.1f} s.",
        ]
    lines += [f"- {name}: {problem}" for name, problem in problems.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the matrix and write a dated page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="cases whose name holds this, as 'worker' or 'SIGTERM'", default="")
    parser.add_argument(
        "--folder", type=Path, help="where the consortium is made and kept; absent: a temporary folder"
    )
    options = parser.parse_args()
    wanted = [case for case in EVERY_FAULT if options.only in "-".join(case)]
    before = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedmed-kill-matrix-") as temporary:
        outcomes, problems = carry_out(options.folder or Path(temporary), wanted)
    text = page(outcomes, problems, time.monotonic() - before)
    if not options.only:
        file = Path(__file__).parent / f"kill_matrix-{datetime.now(UTC).date().isoformat()}.md"
        file.write_text(text)
        print(file)
    print(text)
    sys.exit(bool(problems) or any(outcome.recovery_seconds > LIMIT_SECONDS for outcome in outcomes))


if __name__ == "__main__":
    main()

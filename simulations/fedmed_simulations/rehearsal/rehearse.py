"""The rehearsal: a consortium is made, runs an experiment, and its result is compared with the inline engine's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from fedmed_common.errors import ConfigError, FedmedError
from fedmed_common.loading import load_experiment
from fedmed_server.history import RoundDone, RunEnded
from fedmed_server.report import REPORT
from fedmed_server.state import model_file
from fedmed_server.tracking import tracked_rounds
from fedmed_simulations.phantom.plan import plan_federation
from fedmed_simulations.phantom.settings import PhantomSettings
from fedmed_simulations.phantom.write import write_federation
from fedmed_simulations.rehearsal.consortium import Consortium, write_experiment
from fedmed_simulations.rehearsal.equality import difference
from fedmed_simulations.rehearsal.machines import fedmed
from fedmed_simulations.rehearsal.namespaces import Namespaces

SHIPPED = Path(__file__).parents[1] / "experiments" / "rehearsal.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What a rehearsal found. ``run``: the run's folder. ``difference``: from the inline engine's weights, '' for none."""

    run: Path
    ended: RunEnded
    difference: str
    tracked: frozenset[int]
    seconds: float


class Steps:
    """A list of what was done, how long it took, and what is being done."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """One line, once the block is done."""
        before = time.perf_counter()
        with self.console.status(escape(doing)):
            try:
                yield
            except BaseException:
                self.console.print(f"[red]✗[/] {escape(doing)}")
                raise
        self.console.print(
            f"[green]✓[/] {escape(doing)}  [dim]{time.perf_counter() - before:.1f} s[/]", highlight=False
        )


def rehearse_and_tell(folder: Path, *, sites: int, rounds: int, patients: int, console: Console) -> None:
    """:func:`rehearse`, with its findings on the console.

    Raises:
        ConfigError: the folder is not new or empty.
        FedmedError: a step fails, or something is not as it must be.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            "is not empty", file=folder, field="folder", fix="name a new folder, or delete this one"
        )
    rehearsed = rehearse(folder, sites=sites, rounds=rounds, patients=patients, console=console)
    problems = check(rehearsed, rounds)
    if problems:
        raise FedmedError("; ".join(problems))
    console.print(
        f"[green]✓[/] final weights equal the inline engine's, bit for bit; MLflow holds {rounds} rounds"
    )
    console.print(
        f"{rehearsed.ended.status}; best round {rehearsed.ended.best_round}; {rehearsed.seconds:.0f} s in all"
    )
    console.print(f"report: {rehearsed.run / REPORT}", soft_wrap=True, highlight=False)


def rehearse(folder: Path, *, sites: int, rounds: int, patients: int, console: Console) -> Rehearsed:
    """Make a consortium in ``folder``, run the shipped experiment through it, and compare with the inline engine.

    Raises:
        FedmedError: a step fails; what the machines printed is below ``folder``/log.
    """
    began = time.perf_counter()
    steps = Steps(console)
    settings = PhantomSettings(sites=sites, patients=patients, shape=(48, 48, 24), seed=1)
    names = tuple(site.name for site in plan_federation(settings))
    federation, file = folder / "federation", folder / "rehearsal.toml"
    with steps.step(f"{sites} hospitals of {patients} patients, as DICOM"):
        write_federation(federation, settings)
    experiment = load_experiment(SHIPPED).model_copy(update={"rounds": rounds})
    write_experiment(experiment, federation, file)
    with ExitStack() as stack:
        networks = stack.enter_context(Namespaces(names)) if Namespaces.permitted() else None
        consortium = stack.enter_context(Consortium(folder, names, networks=networks))
        if networks is None:
            console.print("[dim]no network of its own for each hospital: that needs Linux, root and ip[/]")
        run, ended = _deployed(consortium, federation, file, steps)
    with steps.step("the same experiment on the inline engine"):
        inline = inline_run(file, folder / "inline")
    found = difference(model_file(run, "last"), model_file(inline, "last"))
    tracked = frozenset(tracked_rounds(run, experiment))
    return Rehearsed(
        run=run, ended=ended, difference=found, tracked=tracked, seconds=time.perf_counter() - began
    )


def inline_run(experiment: Path, runs: Path) -> Path:
    """Simulate the experiment; its run's folder."""
    fedmed("simulate", str(experiment), "--runs", str(runs))
    (report,) = runs.glob(f"*/{REPORT}")
    return report.parent


def check(rehearsed: Rehearsed, rounds: int) -> list[str]:
    """What is not as it must be, one sentence each."""
    problems = []
    if rehearsed.ended.status != "completed":
        problems.append(f"the run ended '{rehearsed.ended.status}'")
    if rehearsed.difference:
        problems.append(f"the weights differ from the inline engine's: {rehearsed.difference}")
    untracked = set(range(1, rounds + 1)) - rehearsed.tracked
    if untracked:
        problems.append(f"MLflow lacks the rounds {sorted(untracked)}")
    if not (rehearsed.run / REPORT).exists():
        problems.append("there is no report")
    return problems


def _deployed(consortium: Consortium, federation: Path, file: Path, steps: Steps) -> tuple[Path, RunEnded]:
    with steps.step("the consortium's authority, the server's home and a signed kit for each hospital"):
        consortium.provision()
    with steps.step("each hospital makes its key, and its certificate is signed"):
        for name in consortium.names:
            consortium.join(name, federation)
    with steps.step("the server starts"):
        consortium.start_server()
    with steps.step("the hospitals start, and connect with mutual TLS"):
        for name in consortium.names:
            consortium.start_site(name)
        consortium.wait_connected()
    with steps.step("the run is launched"):
        run = consortium.launch(file)

    def on_round(record: RoundDone) -> None:
        score = "" if record.criterion is None else f", validation Dice {record.criterion:.3f}"
        steps.console.print(
            f"  round {record.round}: {len(record.train)} hospitals{score}  [dim]{record.seconds['total']:.1f} s[/]",
            highlight=False,
        )

    with steps.step("its rounds"):
        ended = consortium.wait_ended(run, on_round=on_round)
    with steps.step("report, and all machines stop"):
        folder = consortium.run_folder(run)
        consortium.wait_reported(run)
        consortium.stop_all()
    return folder, ended

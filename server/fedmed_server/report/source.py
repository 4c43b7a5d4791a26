"""What the report is drawn from: a run folder, read once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedmed_common.config import Experiment
from fedmed_common.errors import CheckpointError, ConfigError
from fedmed_common.loading import experiment_from_order
from fedmed_common.metrics import Mean, Metrics, merge
from fedmed_server import history
from fedmed_server.folders import WEIGHTS
from fedmed_server.history import RoundDone, RunEnded, RunStarted, SiteFacts, SiteResult
from fedmed_server.report.audit import Finding, read_findings

EXPERIMENT, COMPARISON = "experiment.toml", "comparison.json"
_LOCAL_TABLES = ("simulation", "tracking")
_COMPARISON = TypeAdapter(dict[str, dict[str, tuple[float, float]]])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """A run folder's content. ``rounds`` in order, each once; ``ended`` is None while the run goes on or when it was killed.

    ``comparison``: metrics on the same test patients, by model, the run's own first; empty where it has no baselines.
    ``started_from``: what became of the file that the weights started from, in sentences; empty where they were drawn at random.
    ``findings``: of attacks on it.
    """

    name: str
    experiment: Experiment
    experiment_text: str
    starts: tuple[RunStarted, ...]
    rounds: tuple[RoundDone, ...]
    ended: RunEnded | None
    comparison: Mapping[str, Metrics]
    started_from: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def facts(self) -> tuple[SiteFacts, ...]:
        """The sites as they last declared themselves, by name."""
        return (
            tuple(sorted(self.starts[-1].sites, key=lambda site: in_order(site.name))) if self.starts else ()
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites that declared themselves or were asked to train."""
        names = {site.name for site in self.facts} | {r.site for done in self.rounds for r in done.train}
        return tuple(sorted(names, key=in_order))


def check_run(run: Path) -> None:
    """Raises ConfigError where ``run`` is not the folder of a run that has begun."""
    for name in (EXPERIMENT, history.FILE):
        if not (run / name).is_file():
            raise ConfigError(
                f"is not the folder of a run that has begun: it holds no {name}",
                file=run,
                fix="name a folder below runs/",
            )


def read_experiment(run: Path) -> Experiment:
    """The run's experiment without the simulation's folders, which need not exist where a report is drawn.

    Raises:
        ConfigError: the file is not an experiment of this version.
    """
    check_run(run)
    try:
        document = tomllib.loads((run / EXPERIMENT).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"not valid TOML: {error}", file=run / EXPERIMENT, fix="correct the line named above"
        ) from None
    document.pop("simulation", None)
    return experiment_from_order(json.dumps(document))


def read_run(run: Path) -> RunHistory:
    """The run as its folder tells it.

    Raises:
        ConfigError: not a run folder.
        CheckpointError: a line of the history, or the comparison with baselines, is damaged or of another version.
    """
    experiment = read_experiment(run)
    starts: list[RunStarted] = []
    rounds: dict[int, RoundDone] = {}
    ended: RunEnded | None = None
    try:
        for record in history.read(run / history.FILE):
            ended = record if isinstance(record, RunEnded) else None
            if isinstance(record, RunStarted):
                starts.append(record)
                rounds = {
                    number: done for number, done in rounds.items() if number <= record.resumed_from_round
                }
            elif isinstance(record, RoundDone):
                rounds[record.round] = record
    except ValidationError:
        raise CheckpointError(
            f"{run / history.FILE}: a line is damaged or of another version of fedmed"
        ) from None
    return RunHistory(
        name=run.absolute().name,
        experiment=experiment,
        experiment_text=(run / EXPERIMENT).read_text(encoding="utf-8"),
        starts=tuple(starts),
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        ended=ended,
        comparison=read_comparison(run),
        started_from=read_start(run),
        findings=read_findings(run),
    )


def read_comparison(run: Path) -> dict[str, Metrics]:
    """The metrics of the run and its baselines, by model; empty where there are none.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = run / COMPARISON
    if not file.exists():
        return {}
    try:
        models = _COMPARISON.validate_json(file.read_bytes())
    except ValidationError:
        raise CheckpointError(
            f"{file}: damaged or of another version of fedmed; without this file the report leaves out the baselines"
        ) from None
    return {model: {name: Mean(*pair) for name, pair in metrics.items()} for model, metrics in models.items()}


def read_start(run: Path) -> tuple[str, ...]:
    """What became of the file that the run's weights started from, and what is trained, in sentences; none where all is, from
    weights drawn at random.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = run / WEIGHTS
    if not file.exists():
        return ()
    try:
        return tuple(str(sentence) for sentence in json.loads(file.read_bytes())["sentences"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: damaged ({type(error).__name__}); without this file the report leaves out what the weights started from"
        ) from None


def in_order(name: str) -> tuple[tuple[str, int], ...]:
    """Sorts ``site-2`` before ``site-10``."""
    return tuple((text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name))


def merged(results: Sequence[SiteResult]) -> Metrics:
    """The metrics of all sites that answered."""
    return merge(result.means() for result in results if result.outcome == "ok")


def shareable_experiment(run: RunHistory) -> str:
    """The experiment file without the tables, and ``transfer.weights``, that name folders and addresses of this machine.

    With its comments; as JSON where the tables cannot be cut out line by line.
    """
    kept: list[str] = []
    table, local = "", False
    for line in run.experiment_text.splitlines():
        header = re.match(r"\s*\[\[?\s*\"?([\w-]+)", line)
        if header:
            table, local = header[1], header[1] in _LOCAL_TABLES
        key = rf"({'|'.join(_LOCAL_TABLES)})\s*[.=]" + (r"|weights\s*=" if table == "transfer" else "")
        if not local and not re.match(rf"\s*({key})", line):
            kept.append(line)
    text = "\n".join(kept).rstrip() + "\n"
    everything = {k: v for k, v in tomllib.loads(run.experiment_text).items() if k not in _LOCAL_TABLES}
    everything.get("transfer", {}).pop("weights", None)
    try:
        if tomllib.loads(text) == everything:
            return text
    except tomllib.TOMLDecodeError:
        pass
    return json.dumps(json.loads(run.experiment.order_text()), indent=2) + "\n"

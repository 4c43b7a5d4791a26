"""Which experiments this site carries out: each is offered once, by its hash, and decided here.

The hash covers the experiment and the version of the code, so a changed experiment is another one, and asks anew. One file
for each below ``approvals/``.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedmed_client.site.audit import AuditLog
from fedmed_client.site.home import SiteFolder
from fedmed_common.bundle import Approved
from fedmed_common.config import Experiment, RecipeChoice, Task
from fedmed_common.errors import ConfigError, FedmedError, PolicyRefusal
from fedmed_common.files import write_atomically
from fedmed_common.loading import experiment_from_order
from fedmed_common.site_config import Site
from fedmed_strategies.pieces import StatisticPiece
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.statistics.survey import Survey

State = Literal["pending", "approved", "rejected"]
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What was offered, and what was decided. ``by``: a person here, or the consortium's signature under ``site.toml``."""

    hash: str
    experiment: str
    code_version: str
    state: State
    first_seen: str
    decided: str = ""
    by: Literal["", "person", "signature"] = ""
    order_text: str = ""

    def asked(self) -> Experiment:
        """The experiment itself.

        Raises:
            ConfigError: the file was written by another version of fedmed.
        """
        return experiment_from_order(self.order_text)


def load(home: SiteFolder) -> list[Approval]:
    """All that were ever offered, the newest first."""
    files = home.approvals.glob("*.json") if home.approvals.exists() else ()
    found = [approval for file in files if _HASH.fullmatch(file.stem) and (approval := _read(file))]
    return sorted(found, key=lambda approval: approval.first_seen, reverse=True)


def check(home: SiteFolder, site: Site, offered: Approved) -> None:
    """Refuse what is not approved; what is offered for the first time is kept for somebody to decide.

    Raises:
        PolicyRefusal: ``approval_pending``, or ``approval``.
    """
    file = _file(home, offered.hash)
    known = _read(file)
    if known is None:
        if file.exists():
            raise PolicyRefusal("approval", f"{file} is damaged; delete it to be asked anew")
        known = _first_seen(offered)
        _write(home, known)
    if known.state == "rejected":
        raise PolicyRefusal("approval", f"{offered.hash[:12]} was rejected here")
    if known.state == "approved" and (known.by == "person" or site.approve == "consortium-signed"):
        return
    if site.approve == "consortium-signed":
        _decide(home, known, "approved", "signature")
        return
    if site.approve == "never":
        raise PolicyRefusal("approval", "site.toml says approve = 'never'")
    raise PolicyRefusal("approval_pending", f"decide with: fedmed site approve {offered.hash[:12]}")


def is_rejected(home: SiteFolder, hash: str) -> bool:
    """Whether somebody here has said no."""
    known = _read(_file(home, hash))
    return known is not None and known.state == "rejected"


def approve(home: SiteFolder, prefix: str) -> Approval:
    """Permit an experiment; a rejected one stays rejected.

    Raises:
        FedmedError: none, or more than one, has a hash that begins so; or it was rejected.
    """
    known = find(home, prefix)
    if known.state == "rejected":
        raise FedmedError(
            f"{known.experiment} ({known.hash[:12]}) was rejected on {known.decided[:10]}, and stays so\n"
            f"  fix: if that was a mistake, delete {_file(home, known.hash)}; it is offered anew when it is asked again"
        )
    if known.state == "approved" and known.by == "person":
        return known
    return _decide(home, known, "approved", "person")


def reject(home: SiteFolder, prefix: str) -> Approval:
    """Forbid an experiment, for good; work for it that runs is cancelled.

    Raises:
        FedmedError: none, or more than one, has a hash that begins so.
    """
    known = find(home, prefix)
    return known if known.state == "rejected" else _decide(home, known, "rejected", "person")


def find(home: SiteFolder, prefix: str) -> Approval:
    """The one that was offered whose hash begins so.

    Raises:
        FedmedError: there is none, or more than one.
    """
    found = [approval for approval in load(home) if prefix and approval.hash.startswith(prefix.lower())]
    if len(found) == 1:
        return found[0]
    many = "more than one" if found else "no"
    raise FedmedError(
        f"{many} experiment that was offered to this site has a hash that begins with '{prefix}'\n"
        "  fix: 'fedmed site runs' lists them"
    )


def describe(approval: Approval) -> list[str]:
    """What the experiment would do here, and what would leave, in lines for a person who decides."""
    try:
        asked = approval.asked()
    except ConfigError:
        return [f"{approval.experiment}: for fedmed {approval.code_version}, which this version cannot read"]
    task, train = asked.task, asked.train
    known = [
        f"{asked.name}, for fedmed {approval.code_version}",
        f"  hash      {approval.hash}",
        f"  state     {approval.state}{f' by {approval.by}' if approval.by else ''}",
        f"  task      {task.name} in {task.dimensions}D of {', '.join(task.classes)}",
    ]
    if not asked.rounds:
        return [
            *known,
            "  work      a survey: nothing is trained",
            "  leaves    once: the number of patients",
            *(f"            {line}" for line in _besides(asked)),
        ]
    return [
        *known,
        f"  model     {asked.model.label}: {asked.model.summary()}",
        f"  work      {asked.rounds} rounds of {train.steps} steps with {train.batch_size} {_samples(task)} each",
        f"  recipe    {_recipe(asked.recipe)}",
        "  leaves    once: numbers of patients by split, and of those who show each class",
        "            each round: the change of each of the network's numbers, the mean loss",
        f"            each validation: {_measured(task)}, with numbers of patients",
        *(f"            {line}" for line in _besides(asked)),
    ]


def _recipe(choice: RecipeChoice) -> str:
    changed = [
        f"{piece}.{name} = {value}"
        for piece, settings in choice.settings.items()
        for name, value in settings.items()
    ]
    return f"{choice.label}, with {', '.join(changed)}" if changed else choice.label


def _besides(asked: Experiment) -> list[str]:
    """What leaves because of the recipe, in lines for a person who decides."""
    try:
        recipe = recipe_of(asked)
    except ConfigError as error:
        return [f"this version cannot carry the recipe out: {error.problem}"]
    lines = [f"once: {_statistic(statistic)}" for statistic in recipe.gathered()]
    if recipe.sums_beside():
        lines.append(
            "each round: further numbers, as many as the network has, of which the sum over sites is used"
        )
    if scalars := recipe.scalars():
        lines.append(f"each round: {', '.join(scalars)} of this site, as numbers in the clear")
    return lines + [f"each validation: {_statistic(stage.statistic)}" for stage in recipe.stages]


def _statistic(statistic: StatisticPiece) -> str:
    epsilon = getattr(statistic, "epsilon", None)
    noise = f"with noise for an epsilon of {epsilon:g}" if epsilon else "without classes that few show"
    if isinstance(statistic, Survey):
        told = noise if epsilon else "no bar of which is of few patients"
        return f"histograms over patients of their '{statistic.name}', {told}"
    return f"the sum over training patients '{statistic.name}', {noise}"


def _samples(task: Task) -> str:
    """What a batch is made of."""
    if task.name == "segmentation":
        return "patches"
    return "whole images" if task.dimensions == 3 else "slices or pictures"


def _measured(task: Task) -> str:
    """The metrics of held-out patients that a reply has, in words."""
    by_class = ", ".join(score.title for score in task.scores if score.by_class)
    overall = "".join(f"; {score.title} over all of them" for score in task.scores if not score.by_class)
    return f"{by_class} by class{overall}"


def _decide(home: SiteFolder, known: Approval, state: State, by: Literal["person", "signature"]) -> Approval:
    decided = replace(known, state=state, decided=_now(), by=by)
    AuditLog(home.path).append(
        "approved" if state == "approved" else "rejected",
        hash=known.hash,
        experiment=known.experiment,
        by=by,
    )
    _write(home, decided)
    return decided


def _first_seen(offered: Approved) -> Approval:
    return Approval(
        hash=offered.hash,
        experiment=offered.experiment.name,
        code_version=offered.code_version,
        state="pending",
        first_seen=_now(),
        order_text=offered.experiment.order_text(),
    )


def _write(home: SiteFolder, approval: Approval) -> None:
    file = _file(home, approval.hash)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(asdict(approval), indent=1) + "\n").encode())


def _read(file: Path) -> Approval | None:
    """None where there is none that can be read."""
    try:
        document: dict[str, Any] = json.loads(file.read_bytes())
        approval = Approval(**document)
    except (OSError, ValueError, TypeError):
        return None
    return approval if approval.hash == file.stem else None


def _file(home: SiteFolder, hash: str) -> Path:
    return home.approvals / f"{hash}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""A run's model in the model registry, with its record: what it was trained on and how, what that cost, and what was missing."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmed_common.errors import ConfigError
from fedmed_common.files import write_atomically
from fedmed_server import points
from fedmed_server.history import SiteResult, largest_epsilons
from fedmed_server.report.source import RunHistory, read_run, shareable_experiment
from fedmed_server.state import model_file
from fedmed_server.tracking import Registered, register

Kind = Literal["best", "last"]

CARD, WEIGHTS, EXPERIMENT = "model-card.json", "model.safetensors", "experiment.json"
_KEY = "publishing.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version of a registered model. ``new``: it was not there before."""

    name: str
    version: str
    digest: str
    new: bool


def publish(
    run: Path, *, kind: Kind = "best", name: str = "", alias: str = "", uri: str | None = None
) -> Published:
    """Register the run's model as a version of ``name`` (absent: the experiment's), and let ``alias`` mean it.

    The same weights are registered once; called again, only the alias moves.

    Raises:
        ConfigError: the run has not ended well enough to have a model.
        TrackingAway: the registry cannot be reached or refuses.
    """
    history, file = read_run(run), model_file(run, kind)
    if history.ended is None or points.status(history.ended) not in {"completed", "degraded"}:
        raise ConfigError("has not ended", file=run, fix="wait for it, or go on with 'fedmed resume'")
    if not file.is_file():
        raise ConfigError(
            "has no such model", file=file, fix="publish --model last, or a run that was measured"
        )
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    files = {
        WEIGHTS: content,
        CARD: json.dumps(card(history, kind, digest, _key(run)), indent=1).encode(),
        EXPERIMENT: shareable_experiment(history).encode(),
    }
    registered: Registered = register(
        run,
        history.experiment,
        files,
        name=name or history.experiment.name,
        tags={"fedmed.sha256": digest, **_lineage(history, kind)},
        alias=alias,
        uri=uri,
    )
    return Published(
        name=name or history.experiment.name, version=registered.version, digest=digest, new=registered.new
    )


def card(history: RunHistory, kind: Kind, digest: str, key: bytes) -> dict[str, object]:
    """What goes with a model: sites under names that mean nothing elsewhere."""
    ended = history.ended
    assert ended is not None  # noqa: S101
    results = ended.test.get(kind, ended.test.get("last", ()))
    return {
        "experiment": history.experiment.name,
        "run": history.name,
        "model": kind,
        "round": _round(history, kind),
        "sha256": digest,
        "status": ended.status if points.status(ended) == "completed" else "degraded: see the run's report",
        "recipe": history.experiment.recipe.label,
        "architecture": history.experiment.model.name,
        "classes": list(history.experiment.task.classes),
        "sites": {
            pseudonym(facts.name, key): {"patients": facts.patients, "held_out": facts.held_out}
            for facts in history.facts
        },
        "epsilon": max(_spent(history).values(), default=None),
        "delta": None if history.experiment.privacy is None else history.experiment.privacy.delta,
        "test": {
            name: {"value": value.value, "patients": value.weight}
            for name, value in points.together(results).items()
        },
        "environment": dict(history.starts[-1].environment) if history.starts else {},
        "intended_use": "research; what it draws has to be looked at by a physician",
    }


def pseudonym(site: str, key: bytes) -> str:
    """A site's name in what is published; the key stays in the run's folder."""
    return "site-" + hmac.new(key, site.encode(), hashlib.sha256).hexdigest()[:12]


def _lineage(history: RunHistory, kind: Kind) -> dict[str, str]:
    ended, spent = history.ended, _spent(history)
    assert ended is not None  # noqa: S101
    found = {
        "fedmed.run_id": history.name,
        "fedmed.model": kind,
        "fedmed.round": str(_round(history, kind)),
        "fedmed.rounds": str(len(history.rounds)),
        "fedmed.sites": str(len(history.facts)),
        "fedmed.patients": str(sum(facts.patients.get("train", 0) for facts in history.facts)),
        "fedmed.status": points.status(ended),
        "fedmed.recipe": history.experiment.recipe.label,
        "fedmed.architecture": history.experiment.model.name,
    }
    return found | ({"fedmed.epsilon": f"{max(spent.values()):.4g}"} if spent else {})


def _round(history: RunHistory, kind: Kind) -> int:
    assert history.ended is not None  # noqa: S101
    last = history.rounds[-1].round if history.rounds else 0
    return history.ended.best_round if kind == "best" else last


def _spent(history: RunHistory) -> dict[str, float]:
    """By site, what the run has cost each patient there: of training, or of metrics of held-out patients, whatever is more."""
    results: list[SiteResult] = [
        result for done in history.rounds for result in (*done.train, *done.evaluation)
    ]
    if history.ended is not None:
        results += [result for tested in history.ended.test.values() for result in tested]
    return largest_epsilons(results)


def _key(run: Path) -> bytes:
    file = run / _KEY
    if not file.exists():
        write_atomically(file, secrets.token_bytes(32), mode=0o600)
    return file.read_bytes()

"""All attacks on one run, and what they found, in ``audit.json`` of the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from fedmed_client.data.sampler import PatchSampler
from fedmed_client.data.splits import Split
from fedmed_client.patient_gradients import Samples
from fedmed_client.private import Mechanism, mechanism_for
from fedmed_client.workbench import COHORTS, Bench, SiteHome, bench_for, numerics
from fedmed_common import params, privacy
from fedmed_common.config import Experiment
from fedmed_common.errors import ConfigError
from fedmed_common.files import write_atomically
from fedmed_common.models import build_model
from fedmed_server.report.audit import AUDIT, Finding
from fedmed_server.state import model_file
from fedmed_simulations.audit.bounds import most_advantage
from fedmed_simulations.audit.inversion import gradient, invert, likeness
from fedmed_simulations.audit.membership import losses, membership
from fedmed_simulations.audit.release import canary, one_run
from fedmed_strategies.presets import recipe_of

_OTHERS, _IMAGES = 3, 3


def audit(run: Path, experiment: Experiment, homes: Sequence[SiteHome], seed: int = 0) -> tuple[Finding, ...]:
    """Attack a finished run of a simulation by its own settings, on its own sites; what was found is in its folder then.

    Raises:
        ConfigError: it has no model yet.
    """
    model = model_file(run, "last")
    if not model.exists():
        raise ConfigError("has no model yet", file=run, fix="let the run end: fedmed resume")
    bench = bench_for(experiment.order_text())
    findings: list[Finding] = []
    with numerics(experiment, bench.device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        params.to_model(params.from_model(build_model(experiment)), bench.model)
        bench.model.eval()
        examples = list(_examples(homes, experiment, seed))
        if experiment.privacy is not None:
            mechanism = mechanism_for(
                experiment, _most_patients(homes, experiment), recipe_of(experiment).spent(experiment)
            )
            findings += _of_the_release(bench, experiment, mechanism, examples, seed)
            findings.append(
                _inverted(
                    bench, examples, lambda sent: _protected(mechanism, sent), "what a private step sends"
                )
            )
        findings.append(_inverted(bench, examples, list, "a step in the clear"))
        params.to_model(load_file(model), bench.model)
        findings.append(_of_members(bench, experiment, homes, seed))
    write_atomically(
        run / AUDIT, json.dumps([finding.model_dump() for finding in findings], indent=1).encode()
    )
    return tuple(findings)


def _of_the_release(
    bench: Bench, experiment: Experiment, mechanism: Mechanism, examples: Sequence[Samples], seed: int
) -> Iterator[Finding]:
    seen = canary(bench, mechanism, examples[:_OTHERS], _hostile(examples[0]))
    yield Finding(
        name="canary",
        question="Can one release tell whether a patient made for it is there?",
        measured=seen.separation,
        bound=seen.claimed,
        unit="deviations apart, from below; at most 1 / sigma",
        alarm=seen.alarm,
        details={"moved_of_C": seen.moved},
    )
    settings = privacy.settings_of(experiment)
    found = one_run(mechanism, experiment.rounds * experiment.train.steps, settings.delta, seed=seed)
    yield Finding(
        name="one run",
        question="How much do all releases of a run tell of a thousand patients made for it?",
        measured=found.epsilon,
        bound=found.claimed,
        unit="epsilon, from below; at most the accountant's",
        alarm=found.alarm,
        details={"guesses": found.guesses, "right": found.right, "steps": found.steps},
    )


def _inverted(
    bench: Bench, examples: Sequence[Samples], protect: Callable[[list[Tensor]], list[Tensor]], what: str
) -> Finding:
    found = []
    for number, (image, target, annotated) in enumerate(examples[:_IMAGES]):
        one = image[:1], target[:1], annotated[:1]
        sent = protect([part.detach() for part in gradient(bench, one)])
        found.append(likeness(one[0], invert(bench, sent, one, seed=number)))
    return Finding(
        name=f"inversion of {what}",
        question="Can an image be seen in it?",
        measured=float(np.mean(found)),
        bound=None,
        unit="mean correlation with the image; 1 is the image",
        alarm=False,
        details={f"image {number}": value for number, value in enumerate(found, start=1)},
    )


def _of_members(bench: Bench, experiment: Experiment, homes: Sequence[SiteHome], seed: int) -> Finding:
    sides: dict[Split, list[float]] = {"train": [], "test": []}
    for home in homes:
        cohort, _ = COHORTS.get(home, experiment.order_text())
        for split, values in sides.items():
            values.extend(losses(bench, cohort, split, seed).tolist())
    if not all(sides.values()):
        raise ConfigError(
            "no site has test patients, with whom its training patients could be compared",
            field="data.splits",
        )
    found = membership(sides["train"], sides["test"], seed)
    bound = None
    if experiment.privacy is not None:
        bound = most_advantage(experiment.privacy.epsilon, experiment.privacy.delta)
    return Finding(
        name="membership",
        question="Does the network tell by its loss who was in training?",
        measured=found.auroc,
        bound=None,
        unit="AUROC; 0.5 is guessing",
        alarm=bound is not None and found.low - 0.5 > bound,
        details={
            "low": found.low,
            "high": found.high,
            "advantage": found.advantage,
            "members": found.members,
            "others": found.others,
            **({} if bound is None else {"largest advantage at this epsilon": bound}),
        },
    )


def _examples(homes: Sequence[SiteHome], experiment: Experiment, seed: int) -> Iterator[Samples]:
    """Samples of some training patients, one patient each."""
    for number in range(max(_OTHERS, _IMAGES) + 1):
        home = homes[number % len(homes)]
        cohort, _ = COHORTS.get(home, experiment.order_text())
        sampler = PatchSampler(cohort.of("train"), experiment)
        yield sampler.of_patient(number % sampler.patients, np.random.default_rng([seed, number]))


def _most_patients(homes: Sequence[SiteHome], experiment: Experiment) -> int:
    return max(COHORTS.get(home, experiment.order_text())[0].patients("train") for home in homes)


def _hostile(sample: Samples) -> Samples:
    """A patient with many bright images."""
    image, target, annotated = sample
    times = 8
    return (
        torch.cat([image] * times) * 100 + 50,
        torch.cat([target] * times),
        torch.cat([annotated] * times),
    )


def _protected(mechanism: Mechanism, sent: list[Tensor]) -> list[Tensor]:
    """What a private step of one patient alone sends."""
    clipped = mechanism.clip(sent)
    return mechanism.release(clipped if clipped is not None else [torch.zeros_like(part) for part in sent])

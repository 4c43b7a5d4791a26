"""The site's composition root: what Flower calls a ClientApp.

An order is checked against the site's policy, carried out, and answered. Whatever goes wrong stays here: the reply
holds a code and the random id of an incident, whose text is in the site's ``incidents.log``.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmed_client import independence, policy, private
from fedmed_client.agreed import LAST
from fedmed_client.charges import charge, promised_by
from fedmed_client.data.cohort import Cohort
from fedmed_client.data.splits import SPLITS
from fedmed_client.engine.parallel import train_together
from fedmed_client.evaluate import measurements
from fedmed_client.held_out import with_noise
from fedmed_client.keeping import Keeping
from fedmed_client.ledger import Budget, Ledger
from fedmed_client.method import Method, Result, changed_inputs, in_full, own_normalisation
from fedmed_client.patient_gradients import patients_at_once
from fedmed_client.secure import Summing
from fedmed_client.site.audit import AuditLog, Event
from fedmed_client.site.withdrawals import Withdrawals
from fedmed_client.statistics import summed
from fedmed_client.summing import noise_shares, sum_of, summing_of
from fedmed_client.surveyed import surveyed, surveyed_patients
from fedmed_client.train import Update
from fedmed_client.work.outbox import Outbox
from fedmed_client.workbench import (
    COHORTS,
    Bench,
    SiteHome,
    bench_for,
    experiment_of,
    numerics,
)
from fedmed_common import entropy, params, privacy, wire
from fedmed_common.codecs import encoded, update_codec
from fedmed_common.config import Experiment
from fedmed_common.errors import FedmedError, Interrupted, PolicyRefusal
from fedmed_common.failpoints import reach
from fedmed_common.loading import load_site
from fedmed_common.metrics import Mean
from fedmed_common.params import Parameters
from fedmed_common.privacy import Spent
from fedmed_common.secure import circle
from fedmed_strategies.layers import sizes_of
from fedmed_strategies.pieces import SiteHalf, under
from fedmed_strategies.presets import recipe_of
from fedmed_strategies.secure import statistic_layout
from fedmed_strategies.server_half import shared

INCIDENTS = "incidents.log"
HOME_VARIABLE = "FEDMED_HOME"
_UNKNOWN, _CLIPPING_NORM = "unknown", "privacy/clipping_norm"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_version = cache(version)  # it looks through the folder of installed packages each time
_log = logging.getLogger(__name__)


def make_client_app(find_home: Callable[[Context], SiteHome]) -> ClientApp:
    """The ClientApp of the sites that ``find_home`` knows; it has one per SuperNode in hospitals, many in a simulation."""
    client_app = ClientApp()

    @client_app.query("facts")
    def facts(message: Message, context: Context) -> Message:
        return _answer(find_home, message, context, wire.Kind.FACTS)

    @client_app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        return _answer(find_home, message, context, wire.Kind.STATISTICS)

    @client_app.train()
    def on_train(message: Message, context: Context) -> Message:
        return _answer(find_home, message, context, wire.Kind.TRAIN)

    @client_app.evaluate()
    def on_evaluate(message: Message, context: Context) -> Message:
        return _answer(find_home, message, context, wire.Kind.EVALUATE)

    @client_app.query("secure")
    def on_secure(message: Message, context: Context) -> Message:
        return _answer(find_home, message, context, wire.Kind.SECURE)

    return client_app


def home_of(folder: Path) -> SiteHome:
    """A hospital's site as its folder says. Its ``site.toml`` is read anew, so that a stricter policy holds at once.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    site = load_site(folder / "site.toml")
    terms = site.policy.model_dump_json() + Withdrawals(folder).digest
    outbox = Outbox(folder=folder / "outbox", terms=terms)
    return SiteHome(site=site, folder=folder, outbox=outbox, audit=AuditLog(folder))


def _home_of_this_process(_context: Context) -> SiteHome:
    return home_of(Path(os.environ[HOME_VARIABLE]))


app = make_client_app(_home_of_this_process)
"""The ClientApp of the site whose folder ``FEDMED_HOME`` names, under the name that a run's bundle gives."""


def _answer(
    find_home: Callable[[Context], SiteHome], message: Message, context: Context, kind: wire.Kind
) -> Message:
    started: float | None = time.perf_counter()
    home: SiteHome | None = None
    order: wire.Order | None = None
    try:
        home = find_home(context)
        order = wire.unpack_order(message.content, kind)
        experiment = experiment_of(order.experiment)
        if _is_private(home, experiment, kind):
            started = None
        policy.check(home.site.policy, experiment, order.round)
        policy.check_device(home.site.device, experiment)
        if kind in {wire.Kind.TRAIN, wire.Kind.EVALUATE} and (not experiment.rounds or order.round < 1):
            raise PolicyRefusal("maximum_rounds", "a survey trains nothing, and measures no model")
        order = LAST.complete(order, experiment, partial(_shared, home, order))
        reply = _once(home, order, started)
    except Exception as error:
        reply = _timed(_refuse(home, order, error), started)
    return Message(wire.pack_reply(reply), reply_to=message)


def _is_private(home: SiteHome, experiment: Experiment, kind: wire.Kind) -> bool:
    if kind is wire.Kind.EVALUATE:
        return home.site.policy.held_out == "noised"
    return kind in {wire.Kind.TRAIN, wire.Kind.STATISTICS} and experiment.privacy is not None


def _once(home: SiteHome, order: wire.Order, started: float | None) -> wire.Reply:
    """Carry the order out and seal the reply; where a reply to the same is sealed already, that one again."""
    carry_out = _HANDLERS[order.kind]
    if home.outbox is None or order.kind in {wire.Kind.FACTS, wire.Kind.SECURE}:
        return _timed(carry_out(home, order), started)
    sealed = home.outbox.find(order)
    if sealed is not None:
        return sealed
    reply = _timed(carry_out(home, order), started)
    reach("before-seal", round=order.round, site=home.site.name)
    reply = home.outbox.seal(order, reply)
    reach("after-seal", round=order.round, site=home.site.name)
    if home.audit is not None:
        home.audit.append("sealed", run=order.run, round=order.round, kind=order.kind.value)
    return reply


def _timed(reply: wire.Reply, started: float | None) -> wire.Reply:
    """With how long it took; of private work (None) without, for that would tell of patients."""
    if started is None or reply.epsilon_spent is not None:
        return reply
    return replace(reply, seconds={**reply.seconds, "site": time.perf_counter() - started})


def _facts(home: SiteHome, order: wire.Order) -> wire.Reply:
    policy.check_statistics(home.site.policy)
    Ledger(home.folder).read(order.receipt)
    experiment = experiment_of(order.experiment)
    if experiment.privacy is not None and home.site.policy.least_noise:
        spent = recipe_of(experiment).spent(experiment)
        policy.check_noise(home.site.policy, privacy.noise_multiplier(experiment, spent))
    if not experiment.rounds:
        return _reply(home, order, facts=_facts_of_survey(home, order))
    cohort, _ = COHORTS.get(home, order.experiment)
    patients: dict[str, int] = {split: cohort.patients(split) for split in SPLITS}
    presence = _told_presence(home, order, cohort)
    facts = wire.Facts(
        patients=patients,
        presence=presence,
        version=_version("fedmed"),
        withdrawn_from=Withdrawals(home.folder).affected_runs,
        held_out=home.site.policy.held_out,
    )
    return _reply(home, order, facts=facts)


def _facts_of_survey(home: SiteHome, order: wire.Order) -> wire.Facts:
    """That it takes part, with how many patients: those of the survey alone. Whoever came since the last one is looked at."""
    COHORTS.close(home, order.experiment)
    patients = surveyed_patients(home, order)
    counts: dict[str, int] = {split: patients if split == "train" else 0 for split in SPLITS}
    return wire.Facts(
        patients=counts, presence={}, version=_version("fedmed"), held_out=home.site.policy.held_out
    )


def _told_presence(home: SiteHome, order: wire.Order, cohort: Cohort) -> dict[str, int]:
    one_each = experiment_of(order.experiment).task.labels == "single"
    return policy.releasable_counts(home.site.policy, cohort.presence("train"), one_each=one_each)


def _train(home: SiteHome, order: wire.Order) -> wire.Reply:
    cohort, sampler = COHORTS.get(home, order.experiment)
    policy.check_patients(home.site.policy, cohort.patients("train"))
    if sampler is None:
        raise PolicyRefusal("least_patients", "the site has no training patients")
    bench = _bench(home, order)
    before = time.perf_counter()

    def on_step(step: int) -> None:
        reach("training", round=order.round, site=home.site.name)
        home.on_step(home.site.name, step)

    method = Method.of(home, bench, order, cohort, sampler)
    summing = summing_of(home, order)
    policy.check_steps(home.site.policy, bench.experiment.train.steps_of(sampler.patients))
    policy.check_scalars(home.site.policy, method.recipe.scalars())
    if cohort.keys:
        used = {cohort.keys[case.patient] for case in cohort.of("train")}
        Withdrawals(home.folder).note_use(order.run, bench.experiment.name, used)
    if bench.experiment.privacy is not None:
        return _train_privately(home, order, method, summing, on_step)

    with numerics(bench.experiment, bench.device, home.site.device.threads):
        if bench.experiment.train.processes > 1:
            result = train_together(home, order, on_step)
        else:
            result = method.train(home.site.name, in_full(method, on_step))
    return _trained(
        home,
        order,
        (method, summing),
        result,
        metrics=policy.permitted(home.site.policy, {"loss": result.update.loss}),
        seconds={"train": time.perf_counter() - before, "wait": result.update.waited},
    )


def _train_privately(
    home: SiteHome,
    order: wire.Order,
    method: Method,
    summing: Summing | None,
    on_step: Callable[[int], None],
) -> wire.Reply:
    """Reserve what it spends, durably, then train. No loss leaves, and no time: neither has noise on it."""
    bench, sampler = method.bench, method.sampler
    also = method.recipe.spent(bench.experiment)
    sharing = noise_shares(bench.experiment, summing)
    mechanism = private.mechanism_for(bench.experiment, sampler.patients, also, sharing)
    noise_multiplier = privacy.noise_multiplier(bench.experiment, also)
    policy.check_noise(home.site.policy, noise_multiplier)
    cost = Spent(
        noise_multiplier=noise_multiplier,
        sampling_rate=mechanism.sampling_rate,
        steps=bench.experiment.train.steps,
    )

    reached = method.memory.get(_CLIPPING_NORM)
    if mechanism.following is not None and reached is not None:
        mechanism = replace(mechanism, clipping_norm=float(reached))
    left = [mechanism]

    def train_it(start: Parameters, halves: Sequence[SiteHalf], _seed: np.random.SeedSequence) -> Update:
        change, after = private.train(bench, sampler, start, order.round, mechanism, on_step, halves, at_once)
        left.append(after)
        return Update(delta=change, loss=Mean(0.0, 0.0))

    with numerics(bench.experiment, bench.device, home.site.device.threads):
        example = sampler.of_patient(0, entropy.generator())
        independence.check(bench, order.parameters, example)
        at_once = patients_at_once(bench, example, math.ceil(mechanism.sampling_rate * sampler.patients))
        spent, receipt = charge(home, order, promised_by(bench.experiment, order), cost, sharing)
        result = method.train(home.site.name, train_it)
    if mechanism.following is not None:
        kept = {**result.left.memory, _CLIPPING_NORM: np.array(left[-1].clipping_norm)}
        result = replace(result, left=replace(result.left, memory=kept))
    return _trained(home, order, (method, summing), result, epsilon_spent=spent, receipt=receipt)


def _trained(
    home: SiteHome,
    order: wire.Order,
    by: tuple[Method, Summing | None],
    result: Result,
    **fields: object,
) -> wire.Reply:
    """Keep what the recipe keeps here, durably; then the reply with what it sends, masked where it is for a secure sum."""
    method, summing = by
    sent, delta = result.left, result.update.delta
    if summing is not None:
        told = _told_presence(home, order, method.cohort)
        layout, arrays = method.for_sum(summing.party, home.site.name, delta, sent.sums, told)
        fields |= summing.reply(layout, arrays)
    else:
        codec = update_codec(method.bench.experiment)
        if codec is not None:
            delta, left = encoded(codec, delta, method.memory)
            sent = replace(sent, memory={**sent.memory, **left})
        fields |= {"delta": delta, "sums": sent.sums}
    Keeping(home.folder, order.run).write(order.round, sent.memory, order.best)
    return _reply(home, order, scalars=sent.scalars, **fields)


def _secure(home: SiteHome, order: wire.Order) -> wire.Reply:
    """A site's part in a secure sum but for the masked vector itself, which comes of the work that is summed."""
    given = sum_of(home, order).answer(circle.wanted(order.secure))
    return _reply(home, order, secure=circle.to_text(given))


def _statistics(home: SiteHome, order: wire.Order) -> wire.Reply:
    """A sum over the training patients that the order's recipe asks for."""
    cohort, sampler = COHORTS.get(home, order.experiment)
    bench = _bench(home, order)
    recipe = recipe_of(bench.experiment)
    statistic = next((one for one in recipe.asked() if one.name == order.statistic), None)
    if statistic is None or sampler is None:
        raise PolicyRefusal("statistics", f"'{order.statistic}' is not what the recipe asks of this site")
    policy.check_statistics(home.site.policy, statistic.name)
    policy.check_patients(home.site.policy, cohort.patients("train"))
    summing = summing_of(home, order)
    few, sharing = home.site.policy.least_patients, noise_shares(bench.experiment, summing)
    spending: dict[str, object] = {}

    def reserve() -> None:
        promise = promised_by(bench.experiment, order)
        limit = Budget(
            epsilon=privacy.epsilon(recipe.spent(bench.experiment), statistic.delta),
            delta=statistic.delta,
            source="the recipe's statistics",
            run=order.run,
            split="train",
        )
        policy.check_noise(home.site.policy, statistic.noise_multiplier)
        (cost,) = statistic.spent
        spent, receipt = charge(home, order, promise or limit, cost, sharing)
        spending.update(epsilon_spent=spent, receipt=receipt)

    cases = cohort.of("train")
    if not bench.experiment.rounds and statistic.epsilon is None:
        cases = surveyed(home, bench.experiment, cohort)
    arrays = own_normalisation(cohort) if recipe.inputs is not None else {}
    with (
        numerics(bench.experiment, bench.device, home.site.device.threads),
        changed_inputs(bench.model, recipe, arrays),
    ):
        if statistic.with_model:
            params.to_model(order.parameters, bench.model)
        bench.model.eval()
        sums = under(statistic.name, summed(statistic, bench, cases, few, reserve, sharing))
    if summing is None:
        return _reply(home, order, sums=sums, **spending)
    sensitivity = statistic.sensitivity(sizes_of(bench.experiment, bench.model))
    layout = statistic_layout(statistic, sums, sensitivity, summing.party)
    arrays = {name: array.astype(np.float64) for name, array in sums.items()}
    return _reply(home, order, **summing.reply(layout, arrays), **spending)


def _evaluate(home: SiteHome, order: wire.Order) -> wire.Reply:
    """Metrics of held-out patients, as far as the site lets them out."""
    before, rules = time.perf_counter(), home.site.policy
    if rules.held_out == "kept":
        return _reply(home, order)
    bench, patients = _bench(home, order), measurements(home, order)
    if rules.held_out == "noised":
        each = [bench.task.summarise([cases]) for cases in patients.values()]
        noise_multiplier = privacy.calibrate(rules.held_out_epsilon, rules.budget_delta, 1.0, 1)
        cost = Spent(noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=1)
        spent, receipt = charge(home, order, None, cost)
        permits = partial(policy.is_permitted, rules)
        noisy = with_noise(each, bench.experiment.task, permits, noise_multiplier)
        metrics = policy.over_enough(rules, noisy)
        return _reply(home, order, metrics=metrics, epsilon_spent=spent, receipt=receipt)
    metrics = bench.task.summarise(patients.values())
    return _reply(
        home,
        order,
        metrics=policy.releasable(home.site.policy, metrics),
        seconds={"evaluate": time.perf_counter() - before},
    )


def _shared(home: SiteHome, order: wire.Order) -> tuple[str, ...]:
    """Names of the arrays that a round changes at all sites."""
    bench = _bench(home, order)
    return shared(recipe_of(bench.experiment), bench.layers)


def _bench(home: SiteHome, order: wire.Order) -> Bench:
    return bench_for(order.experiment, gpu=home.site.device.gpu != "none")


_HANDLERS: dict[wire.Kind, Callable[[SiteHome, wire.Order], wire.Reply]] = {
    wire.Kind.FACTS: _facts,
    wire.Kind.STATISTICS: _statistics,
    wire.Kind.TRAIN: _train,
    wire.Kind.EVALUATE: _evaluate,
    wire.Kind.SECURE: _secure,
}


def _reply(home: SiteHome | None, order: wire.Order | None, **fields: object) -> wire.Reply:
    identity = (order.run, order.round, order.attempt) if order is not None else ("", 0, 0)
    run, number, attempt = identity
    site = home.site.name if home is not None else _UNKNOWN
    return wire.Reply(site=site, run=run, round=number, attempt=attempt, **fields)  # type: ignore[arg-type]


def _refuse(home: SiteHome | None, order: wire.Order | None, error: Exception) -> wire.Reply:
    """Nothing may be raised here: Flower would send its text."""
    if isinstance(error, OSError) and error.errno in _FULL:
        error = PolicyRefusal("disk", "no space is left")  # it passes, and the order may be asked again
    code = error.code if isinstance(error, FedmedError) else "internal"
    rule = error.rule if isinstance(error, PolicyRefusal) else ""
    incident = secrets.token_hex(8)
    try:
        if home is None:
            raise error
        _keep(home, incident, error)
        if home.audit is not None and order is not None:
            event: Event = "cancelled" if code == Interrupted.code else "refused" if rule else "failed"
            home.audit.append(
                event, run=order.run, round=order.round, kind=order.kind.value, code=code, rule=rule
            )
    except Exception as problem:
        _log.error("an incident (%s) could not be kept: %s", type(error).__name__, type(problem).__name__)
        incident = ""
    return _reply(home, order, code=code, rule=rule, incident=incident)


def _keep(home: SiteHome, incident: str, error: Exception) -> None:
    home.folder.mkdir(parents=True, exist_ok=True)
    with (home.folder / INCIDENTS).open("a", encoding="utf-8", errors="backslashreplace") as log:
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        log.write(f"{moment} incident {incident}\n{''.join(traceback.format_exception(error))}\n")

"""The site's composition root: what Flower calls a ClientApp.

An order is checked against the site's policy, carried out, and answered. Whatever goes wrong stays here: the reply
holds a code and the random id of an incident, whose text is in the site's ``incidents.log``.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmed_client import policy
from fedmed_client.data.splits import SPLITS
from fedmed_client.evaluate import evaluate
from fedmed_client.train import train
from fedmed_client.workbench import COHORTS, SiteHome, bench_for, numerics, seed_for
from fedmed_common import wire
from fedmed_common.errors import FedmedError, PolicyRefusal
from fedmed_common.loading import experiment_from_order

INCIDENTS = "incidents.log"
_log = logging.getLogger(__name__)


def make_client_app(find_home: Callable[[Context], SiteHome]) -> ClientApp:
    """The ClientApp of the sites that ``find_home`` knows; it has one per SuperNode in hospitals, many in a simulation."""
    app = ClientApp()

    @app.query("facts")
    def facts(message: Message, context: Context) -> Message:
        return _answer(find_home(context), message, wire.Kind.FACTS)

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        return _answer(find_home(context), message, wire.Kind.TRAIN)

    @app.evaluate()
    def on_evaluate(message: Message, context: Context) -> Message:
        return _answer(find_home(context), message, wire.Kind.EVALUATE)

    return app


def _answer(home: SiteHome, message: Message, kind: wire.Kind) -> Message:
    started = time.perf_counter()
    order: wire.Order | None = None
    try:
        order = wire.unpack_order(message.content, kind)
        policy.check(home.site.policy, experiment_from_order(order.experiment))
        reply = _HANDLERS[kind](home, order)
    except Exception as error:
        reply = _refuse(home, order, error)
    reply = replace(reply, seconds={**reply.seconds, "site": time.perf_counter() - started})
    return Message(wire.pack_reply(reply), reply_to=message)


def _facts(home: SiteHome, order: wire.Order) -> wire.Reply:
    cohort, _ = COHORTS.get(home, order.experiment)
    patients: dict[str, int] = {split: cohort.patients(split) for split in SPLITS}
    presence = policy.releasable_counts(home.site.policy, cohort.presence("train"))
    return _reply(
        home, order, facts=wire.Facts(patients=patients, presence=presence, version=version("fedmed"))
    )


def _train(home: SiteHome, order: wire.Order) -> wire.Reply:
    cohort, sampler = COHORTS.get(home, order.experiment)
    policy.check_patients(home.site.policy, cohort.patients("train"))
    if sampler is None:
        raise PolicyRefusal("least_patients", "the site has no training patients")
    bench = bench_for(order.experiment)
    before = time.perf_counter()
    with numerics(bench.experiment, bench.device):
        seed = seed_for(bench.experiment.seed, order.round, home.site.name)
        update = train(
            bench,
            sampler,
            order.parameters,
            order.round,
            seed,
            lambda step: home.on_step(home.site.name, step),
        )
    return _reply(
        home,
        order,
        delta=update.delta,
        metrics={"loss": update.loss},
        seconds={"train": time.perf_counter() - before},
    )


def _evaluate(home: SiteHome, order: wire.Order) -> wire.Reply:
    bench = bench_for(order.experiment)
    cohort, _ = COHORTS.get(home, order.experiment)
    before = time.perf_counter()
    with numerics(bench.experiment, bench.device):
        metrics = evaluate(bench, cohort.of(order.split), order.parameters)
    return _reply(
        home,
        order,
        metrics=policy.releasable(home.site.policy, metrics),
        seconds={"evaluate": time.perf_counter() - before},
    )


_HANDLERS: dict[wire.Kind, Callable[[SiteHome, wire.Order], wire.Reply]] = {
    wire.Kind.FACTS: _facts,
    wire.Kind.TRAIN: _train,
    wire.Kind.EVALUATE: _evaluate,
}


def _reply(home: SiteHome, order: wire.Order | None, **fields: object) -> wire.Reply:
    identity = (order.run, order.round, order.attempt) if order is not None else ("", 0, 0)
    run, number, attempt = identity
    return wire.Reply(site=home.site.name, run=run, round=number, attempt=attempt, **fields)  # type: ignore[arg-type]


def _refuse(home: SiteHome, order: wire.Order | None, error: Exception) -> wire.Reply:
    """Nothing may be raised here: Flower would send its text."""
    incident = secrets.token_hex(8)
    try:
        _keep(home, incident, error)
    except OSError as problem:
        _log.error("an incident (%s) could not be kept: %s", type(error).__name__, type(problem).__name__)
        incident = ""
    code = error.code if isinstance(error, FedmedError) else "internal"
    rule = error.rule if isinstance(error, PolicyRefusal) else ""
    return _reply(home, order, code=code, rule=rule, incident=incident)


def _keep(home: SiteHome, incident: str, error: Exception) -> None:
    home.folder.mkdir(parents=True, exist_ok=True)
    with (home.folder / INCIDENTS).open("a", encoding="utf-8", errors="backslashreplace") as log:
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        log.write(f"{moment} incident {incident}\n{''.join(traceback.format_exception(error))}\n")

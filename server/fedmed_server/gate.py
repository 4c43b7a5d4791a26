"""The gate: every reply is hostile until it has been matched to what was asked.

One bad reply never harms the round: it is rejected alone, with a reason of ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedmed_common import params, wire
from fedmed_common.codecs import Codec
from fedmed_common.config import Task
from fedmed_common.errors import RejectedReply, WireError
from fedmed_common.metrics import Metrics, score_called
from fedmed_common.site_config import HeldOut

UNREADABLE, OVERSIZED = "unreadable objects", "more than was asked for"
UNREAD = {901: UNREADABLE, 902: OVERSIZED}
"""Codes by which a grid says that a reply was rejected before it was a record, and why."""
_LARGEST_COUNT = 10_000_000
_LARGEST_SECONDS = 1e9
_LARGEST_EPSILON = 1e15
_TRAINING_METRICS = frozenset({"loss"})
_HELD_OUT = frozenset(get_args(HeldOut))
_SPLITS = frozenset({"train", "validation", "test"})
_PHASES = frozenset({"train", "wait", "evaluate", "site"})
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", re.ASCII)
_CODE = re.compile(r"[a-z][a-z\-]{0,31}|")
_RULE = re.compile(r"[a-z][a-z_]{0,31}|")
_INCIDENT = re.compile(r"[0-9a-f]{0,32}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_\-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a reply must answer. ``template``: the parameters sent in a training order, else None; ``codec``: how their change is
    sent, None: as it is.

    ``patients``: how many the roster says the site has of what was asked, ``steps``: how many it was asked to take; no metric
    may claim more (``None``: not known yet). ``sums``, ``scalars``, ``masked``: see :class:`fedmed_server.exchange.Extras`.
    ``private``: the work is to be differentially private. ``sites``: of a region, how many sites it has said that it has; 0: it
    is a hospital; None: not known yet."""

    site: str | None
    run: str
    round: int
    attempt: int
    kind: wire.Kind
    classes: tuple[str, ...]
    metrics: frozenset[str] = frozenset()
    patients: int | None = None
    steps: int | None = None
    template: Mapping[str, NDArray[np.float32]] | None = None
    codec: Codec | None = None
    norm_limit: float = math.inf
    sums: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    sums_limit: float = math.inf
    scalars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    masked: int = 0
    private: bool = False
    sites: int | None = 0


def allowed_metrics(kind: wire.Kind, task: Task) -> frozenset[str]:
    """The metric names a reply of this kind may carry."""
    if kind in {wire.Kind.FACTS, wire.Kind.STATISTICS, wire.Kind.SECURE}:
        return frozenset()
    if kind is wire.Kind.TRAIN:
        return _TRAINING_METRICS
    by_class = {f"{score.name}/{klass}" for score in task.scores if score.by_class for klass in task.classes}
    return frozenset(by_class | {score.name for score in task.scores if not score.by_class})


def admit(content: RecordDict, expected: Expected) -> wire.Reply:
    """The reply, or why it is refused.

    Raises:
        RejectedReply: with a short reason that holds nothing from the reply.
    """
    template, codec = expected.template, expected.codec
    try:
        forms = template if codec is None or template is None else codec.forms(template)
        reply = wire.unpack_reply(content, forms, expected.sums, expected.masked)
        if codec is not None and template is not None and reply.delta:
            reply = replace(reply, delta=codec.decode(reply.delta, template))
    except WireError as error:
        raise RejectedReply(str(error)) from None
    except Exception as error:
        raise RejectedReply(f"unreadable ({type(error).__name__})") from None
    _check_identity(reply, expected)
    _check_words(reply)
    _check_seconds(reply.seconds)
    if reply.code:
        results = (reply.delta, reply.sums, reply.scalars, reply.metrics, reply.facts, reply.secure)
        others = (reply.epsilon_spent, reply.receipt, reply.masked, reply.region)
        if any(results) or any(other is not None for other in others):
            raise RejectedReply("a refusal that carries results")
        return reply
    _check_region(reply.region, expected)
    _check_metrics(reply.metrics, expected)
    _check_privacy(reply, expected)
    if expected.kind is wire.Kind.FACTS:
        _check_facts(reply.facts, expected.classes)
    elif reply.facts is not None:
        raise RejectedReply("undeclared facts")
    if bool(reply.secure) != (expected.kind is wire.Kind.SECURE or bool(expected.masked)):
        raise RejectedReply("secure aggregation")
    if (reply.masked is not None) != bool(expected.masked):
        raise RejectedReply("no masked vector" if expected.masked else "undeclared masked vector")
    _check_sums(reply.sums, expected)
    _check_scalars(reply.scalars, expected)
    if expected.template is not None:
        _check_delta(reply.delta, expected)
    return reply


def _check_identity(reply: wire.Reply, expected: Expected) -> None:
    if expected.site is not None and reply.site != expected.site:
        raise RejectedReply("another site's name")
    if reply.run != expected.run:
        raise RejectedReply("another run's reply")
    if reply.round != expected.round:
        old = reply.round < expected.round
        raise RejectedReply("reply of an old round" if old else "reply of a round to come")
    if reply.attempt != expected.attempt:
        old = reply.attempt < expected.attempt
        raise RejectedReply("stale attempt" if old else "attempt that was not made")


def _check_words(reply: wire.Reply) -> None:
    """Text of a site is shown, tracked and reported: it is a word of a known form, or it is not taken."""
    words = ((_SITE, reply.site), (_CODE, reply.code), (_RULE, reply.rule), (_INCIDENT, reply.incident))
    if not all(form.fullmatch(word) for form, word in words):
        raise RejectedReply("words of no known form")


def _check_seconds(seconds: Mapping[str, float]) -> None:
    if not _PHASES.issuperset(seconds) or not all(
        0 <= value <= _LARGEST_SECONDS for value in seconds.values()
    ):
        raise RejectedReply("seconds")


def _check_region(region: wire.Region | None, expected: Expected) -> None:
    """A region answers for no more sites and patients than it has said that it has, and nobody else is one."""
    if expected.sites is None and region is None:
        return
    if (region is not None) != (expected.sites != 0):
        raise RejectedReply(
            "no word on the region's sites" if region is None else "a site that says it is a region"
        )
    if region is None:
        return
    sites = _LARGEST_COUNT if expected.sites is None else expected.sites
    patients = _LARGEST_COUNT if expected.patients is None else expected.patients
    if not region.missed < region.asked <= sites or region.patients > patients:
        raise RejectedReply("the region's sites")


def _check_metrics(metrics: Metrics, expected: Expected) -> None:
    """What is there must be possible. That there is less, or nothing, is no reason to refuse a reply, also of a site that has
    patients: its policy keeps back metrics over few patients and those that it does not permit, and does not say which.
    """
    for name, mean in metrics.items():
        if name not in expected.metrics:
            raise RejectedReply("undeclared metric")
        if not (
            math.isfinite(mean.total) and math.isfinite(mean.weight) and 0 < mean.weight <= _LARGEST_COUNT
        ):
            raise RejectedReply("metric value")
        most = expected.steps if expected.kind is wire.Kind.TRAIN else expected.patients
        if most is not None and mean.weight > most:
            raise RejectedReply("metric over more than the site was asked for")
        score = score_called(name)
        if score is not None and score.share and not -1e-6 <= mean.total <= mean.weight * (1 + 1e-6):
            raise RejectedReply("metric out of range")
        if not 0 <= mean.total <= 1e12:
            raise RejectedReply("metric value")


def _check_privacy(reply: wire.Reply, expected: Expected) -> None:
    """What is private says what it has spent, and nothing else does; training says nothing more but the change."""
    if (reply.epsilon_spent is not None) != expected.private:
        raise RejectedReply("no word on privacy" if expected.private else "privacy that was not asked for")
    if (reply.receipt is not None) != expected.private:
        raise RejectedReply("no receipt" if expected.private else "a receipt that was not asked for")
    if reply.receipt is not None and not reply.receipt.is_possible:
        raise RejectedReply("receipt")
    if reply.epsilon_spent is None:
        return
    if not 0 <= reply.epsilon_spent <= _LARGEST_EPSILON:
        raise RejectedReply("epsilon")
    if reply.seconds or (reply.metrics and expected.kind is not wire.Kind.EVALUATE):
        raise RejectedReply("more than private work tells")


def _check_sums(sums: params.Parameters, expected: Expected) -> None:
    if bool(sums) != bool(expected.sums):
        raise RejectedReply("no sums")
    length = params.rough_norm(sums)
    if not math.isfinite(length):
        raise RejectedReply("non-finite sums")
    if length > expected.sums_limit:
        raise RejectedReply("sums too large")


def _check_scalars(scalars: Mapping[str, float], expected: Expected) -> None:
    if scalars.keys() != expected.scalars.keys():
        raise RejectedReply("undeclared numbers")
    for name, (low, high) in expected.scalars.items():
        if not low <= scalars[name] <= high:
            raise RejectedReply("number out of range")


def _check_facts(facts: wire.Facts | None, classes: tuple[str, ...]) -> None:
    if facts is None or not _VERSION.fullmatch(facts.version):
        raise RejectedReply("facts")
    if set(facts.patients) != _SPLITS or not set(facts.presence) <= set(classes):
        raise RejectedReply("facts")
    if not 0 <= facts.withdrawn_from <= _LARGEST_COUNT or facts.held_out not in _HELD_OUT:
        raise RejectedReply("facts")
    if any(not 0 <= count <= _LARGEST_COUNT for count in facts.patients.values()):
        raise RejectedReply("patient counts")
    if any(not -1 <= count <= facts.patients["train"] for count in facts.presence.values()):
        raise RejectedReply("class counts")


def _check_delta(delta: params.Parameters, expected: Expected) -> None:
    if not delta:
        raise RejectedReply("no parameters")
    length = params.rough_norm(delta)
    if not math.isfinite(length):
        raise RejectedReply("non-finite parameters")
    if expected.sites:
        length = _regional_length(delta)
    if length > expected.norm_limit:
        raise RejectedReply("update too large")
    for name, start in (expected.template or {}).items():
        if params.is_variance(name) and float((start + delta[name]).min(initial=0.0)) < 0:
            raise RejectedReply("negative variance")


def _regional_length(delta: params.Parameters) -> float:
    """The length of a region's update, in which running variances are those of its sites together: what their means are apart
    counts there squared, and so does its root here."""
    variances = {name: array for name, array in delta.items() if params.is_variance(name)}
    others = {name: array for name, array in delta.items() if name not in variances}
    return max(params.rough_norm(others), math.sqrt(params.rough_norm(variances)))

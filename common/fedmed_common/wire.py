"""What crosses the wire between coordinator and site, and nothing else.

An order goes to a site; a reply comes back. Each is one dataclass here, and this is the only module that knows Flower's record
keys. A reply can hold: the change of the parameters, sums and numbers that the recipe's pieces declare, metrics with their
weights, counts of patients, seconds spent, or, when the site refuses or fails, a code and the random id of an incident that
only the site can look up. There is no field for text of an exception, a path, a UID or a header value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmed_common.errors import WireError
from fedmed_common.metrics import Mean, Metrics
from fedmed_common.params import Parameters
from fedmed_common.receipts import Receipt
from fedmed_common.wire_arrays import ENCODED, FLOAT32, Types, matched, packed, packed_alone, unpacked
from fedmed_common.wire_files import Filed

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)
VERSION = 8
DECISION = "decision"
"""Below this name an order of evaluation holds how the model's predictions are decided on: ``tasks.Decision``."""
NO_BASE = "base"
WAITING_RULES = frozenset({"approval_pending", "window", "disk", NO_BASE})
"""Rules by which a site refuses an order for now: it may be asked again until the deadline. By ``NO_BASE`` it says that it has
not the model that the order's changes are of."""
_LONGEST_EXPERIMENT, _LONGEST_SECURE = 1_000_000, 4_000_000
_ORDER, _REPLY, _PARAMETERS, _DOWN, _FACTS, _COUNTS = (
    "order",
    "reply",
    "parameters",
    "down",
    "facts",
    "patients",
)
_SUMS, _SCALARS, _METRICS, _SECONDS, _PRIVACY = "sums", "scalars", "metrics", "seconds", "privacy"
_RECEIPT, _SECURE, _MASKED, _ENCODED, _REGION = "receipt", "secure", "masked", "encoded", "region"
_REPLY_RECORDS = frozenset(
    {
        _REPLY,
        _PARAMETERS,
        _SUMS,
        _SCALARS,
        _METRICS,
        _SECONDS,
        _COUNTS,
        _FACTS,
        _PRIVACY,
        _RECEIPT,
        _SECURE,
        _MASKED,
        _REGION,
    }
)
_REGION_FIELDS = frozenset({"asked", "missed", "patients"})
_REPLY_FIELDS = frozenset({"version", "site", "run", "round", "attempt", "code", "rule", "incident"})


class Kind(StrEnum):
    """What a site is asked for. The value is Flower's message type."""

    FACTS = "query.facts"
    STATISTICS = "query.statistics"
    TRAIN = "train"
    EVALUATE = "evaluate"
    SECURE = "query.secure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the coordinator asks of one site in one attempt at one round.

    ``experiment`` is ``Experiment.order_text()``. ``down``: what the recipe's pieces send beside the parameters. ``best``: the
    run's best round so far, of which a site keeps what it would need to be measured again. ``statistic``: the one that is asked
    for. ``receipt``: of the site's privacy ledger, the newest that the coordinator has.
    ``secure``: of a secure sum, ``secure.circle.Wanted`` as text. ``model``: a name for the parameters, where the site is to have
    them at hand for what comes next; ``base``: of such parameters, to which ``encoded`` is what changed since, in the place of
    ``parameters``; it is empty where nothing has."""

    kind: Kind
    run: str
    round: int
    attempt: int
    experiment: str
    split: Literal["validation", "test"] = "validation"
    statistic: str = ""
    best: int = 0
    receipt: Receipt | None = None
    secure: str = ""
    model: str = ""
    base: str = ""
    parameters: Parameters = field(default_factory=dict, repr=False)
    encoded: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    down: Parameters = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A site's cohort in counts. ``presence``: by annotated class, training patients who show it; -1 hides a count that is
    positive but below the site's least number of patients. ``withdrawn_from``: how many runs had trained on patients who
    withdrew afterwards. ``held_out``: what leaves of metrics of validation and test patients."""

    patients: dict[str, int]
    presence: dict[str, int]
    version: str
    withdrawn_from: int = 0
    held_out: str = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What a region says of the sites behind its answer: how many were asked, how many of them are missing in it, and how many
    patients those have who are not."""

    asked: int
    missed: int
    patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A site's answer. ``code`` is empty when it did what was asked.

    ``delta``: the change of the parameters, or what its codec makes of it. ``sums``: arrays of which only the sum over
    sites matters; ``scalars``: numbers of this site. Both are those that the recipe's pieces declare, and no others.
    ``epsilon_spent``: of private training, what the run has cost each of the site's patients so far, at the experiment's delta;
    ``receipt``: of the ledger that counts it.
    ``masked``: in the place of ``delta`` and ``sums``, the site's part of a secure sum, ``(length,)``; ``secure``:
    ``secure.circle.Given`` as text. ``region``: of a region, which answers for sites; a hospital has none."""

    site: str
    run: str
    round: int
    attempt: int
    code: str = ""
    rule: str = ""
    incident: str = ""
    delta: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    sums: Parameters = field(default_factory=dict, repr=False)
    scalars: dict[str, float] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: Facts | None = None
    epsilon_spent: float | None = None
    receipt: Receipt | None = None
    masked: NDArray[np.uint32] | None = field(default=None, repr=False)
    secure: str = ""
    region: Region | None = None


def pack_order(
    order: Order, parameters: ArrayRecord | None = None, down: ArrayRecord | None = None
) -> RecordDict:
    """An order as Flower's records. ``parameters`` and ``down``, already packed, stand in for the order's. Of an order with a
    ``base`` they are its encoded changes."""
    fields = ConfigRecord(
        {
            "version": VERSION,
            "run": order.run,
            "round": order.round,
            "attempt": order.attempt,
            "experiment": order.experiment,
            "split": order.split,
            "statistic": order.statistic,
            "best": order.best,
            "model": order.model,
            "base": order.base,
        }
    )
    record = RecordDict({_ORDER: fields})
    if order.receipt is not None:
        record[_RECEIPT] = _pack_receipt(order.receipt)
    if order.secure:
        record[_SECURE] = ConfigRecord({"text": order.secure})
    if down or order.down:
        record[_DOWN] = down or packed(order.down)
    arrays = order.encoded if order.base else order.parameters
    if parameters or arrays:
        record[_ENCODED if order.base else _PARAMETERS] = parameters or packed(arrays)
    return record


def unpack_order(record: RecordDict, kind: Kind, *, arrays: bool = True) -> Order:
    """The order in Flower's records; without its ``arrays`` for those who only pass it on.

    Raises:
        WireError: the records are not an order of this version.
    """
    fields = _config(record, _ORDER)
    if fields.get("version") != VERSION:
        raise WireError(f"the order is of wire version {fields.get('version')!r}; this site speaks {VERSION}")
    split = fields.get("split")
    if split not in ("validation", "test"):
        raise WireError("split field")
    return Order(
        kind=kind,
        run=_text(fields, "run"),
        round=_integer(fields, "round"),
        attempt=_integer(fields, "attempt"),
        experiment=_experiment(fields),
        split=split,
        statistic=_text(fields, "statistic"),
        best=_integer(fields, "best"),
        receipt=_receipt(record),
        secure=_secure(record),
        model=_text(fields, "model"),
        base=_text(fields, "base"),
        parameters=_any_arrays(record, _PARAMETERS) if arrays else {},
        encoded=_any_arrays(record, _ENCODED, ENCODED) if arrays else {},
        down=_any_arrays(record, _DOWN) if arrays else {},
    )


def pack_reply(reply: Reply) -> RecordDict:
    """A reply as Flower's records; only the fields declared above can get in."""
    fields = {
        "version": VERSION,
        "site": reply.site,
        "run": reply.run,
        "round": reply.round,
        "attempt": reply.attempt,
        "code": reply.code,
        "rule": reply.rule,
        "incident": reply.incident,
    }
    record = RecordDict({_REPLY: ConfigRecord(fields)})  # type: ignore[arg-type]
    if reply.delta:
        record[_PARAMETERS] = packed(reply.delta)
    if reply.sums:
        record[_SUMS] = packed(reply.sums)
    if reply.scalars:
        record[_SCALARS] = MetricRecord({name: float(value) for name, value in reply.scalars.items()})
    if reply.metrics:
        record[_METRICS] = MetricRecord(
            {name: [float(m.total), float(m.weight)] for name, m in reply.metrics.items()}
        )
    if reply.seconds:
        record[_SECONDS] = MetricRecord({name: float(value) for name, value in reply.seconds.items()})
    if reply.facts is not None:
        record[_FACTS] = ConfigRecord(
            {
                "version": reply.facts.version,
                "withdrawn_from": reply.facts.withdrawn_from,
                "held_out": reply.facts.held_out,
            }
        )
        counts = {f"patients/{split}": count for split, count in reply.facts.patients.items()}
        counts |= {f"presence/{name}": count for name, count in reply.facts.presence.items()}
        record[_COUNTS] = MetricRecord({**counts})
    if reply.epsilon_spent is not None:
        record[_PRIVACY] = MetricRecord({"epsilon_spent": float(reply.epsilon_spent)})
    if reply.receipt is not None:
        record[_RECEIPT] = _pack_receipt(reply.receipt)
    if reply.secure:
        record[_SECURE] = ConfigRecord({"text": reply.secure})
    if reply.masked is not None:
        record[_MASKED] = packed_alone(_MASKED, reply.masked)
    if reply.region is not None:
        record[_REGION] = ConfigRecord({name: getattr(reply.region, name) for name in _REGION_FIELDS})
    return record


def unpack_reply(
    record: RecordDict,
    template: Mapping[str, NDArray[Any]] | None,
    sums: Mapping[str, NDArray[np.float32]] | None = None,
    masked: int = 0,
) -> Reply:
    """The reply in Flower's records, matched to the template before any array is inflated.

    ``template``: arrays like those of the update that is expected, ``sums``: arrays like the sums that are; None where there must
    be none.
    ``masked``: the length of the part of a secure sum that is expected; 0: none.

    Raises:
        WireError: a record, key, type, shape or size that is not declared. The message is ours alone.
    """
    if set(record.keys()) - _REPLY_RECORDS:
        raise WireError("undeclared record")
    fields = _config(record, _REPLY)
    if fields.get("version") != VERSION:
        raise WireError("wire version")
    if fields.keys() != _REPLY_FIELDS:
        raise WireError("undeclared field")
    arrays = _part(record, _PARAMETERS, ArrayRecord)
    if arrays is not None and template is None:
        raise WireError("undeclared parameters")
    summed = _part(record, _SUMS, ArrayRecord)
    if summed is not None and not sums:
        raise WireError("undeclared sums")
    return Reply(
        site=_text(fields, "site"),
        run=_text(fields, "run"),
        round=_integer(fields, "round"),
        attempt=_integer(fields, "attempt"),
        code=_text(fields, "code"),
        rule=_text(fields, "rule"),
        incident=_text(fields, "incident"),
        delta=matched(arrays, template) if arrays is not None and template is not None else {},
        sums=matched(summed, sums) if summed is not None and sums else {},
        scalars={name: _number(value) for name, value in _numbers(record, _SCALARS).items()},
        metrics=_metrics(record),
        seconds={name: _number(value) for name, value in _numbers(record, _SECONDS).items()},
        facts=_facts(record),
        epsilon_spent=_epsilon(record),
        receipt=_receipt(record),
        masked=_masked(record, masked),
        secure=_secure(record),
        region=_region(record),
    )


def parameter_bytes(record: RecordDict) -> int:
    """How many bytes the record's arrays take on the wire, in the message and beside it."""
    records = [part for part in record.values() if isinstance(part, ArrayRecord)]
    data = [array.data for arrays in records for array in arrays.values()]
    return sum(one.size if isinstance(one, Filed) else len(one) for one in data)


def _masked(record: RecordDict, length: int) -> NDArray[np.uint32] | None:
    arrays = _part(record, _MASKED, ArrayRecord)
    if arrays is None:
        return None
    if not length or list(arrays) != [_MASKED]:
        raise WireError("undeclared masked vector")
    return matched(arrays, {_MASKED: np.broadcast_to(np.uint32(0), (length,))})[_MASKED]


def _secure(record: RecordDict) -> str:
    if _SECURE not in record:
        return ""
    fields = _config(record, _SECURE)
    text = fields.get("text")
    if fields.keys() != {"text"} or not isinstance(text, str) or not 0 < len(text) <= _LONGEST_SECURE:
        raise WireError("secure aggregation")
    return text


def _any_arrays(record: RecordDict, name: str, types: Types = FLOAT32) -> dict[str, NDArray[Any]]:
    return unpacked(_part(record, name, ArrayRecord) or {}, types)


def _metrics(record: RecordDict) -> Metrics:
    metrics: Metrics = {}
    for name, pair in _numbers(record, _METRICS).items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise WireError("metric")
        metrics[name] = Mean(_number(pair[0]), _number(pair[1]))
    return metrics


def _facts(record: RecordDict) -> Facts | None:
    counts = _part(record, _COUNTS, MetricRecord)
    if counts is None:
        return None
    groups: dict[str, dict[str, int]] = {"patients": {}, "presence": {}}
    for name, count in counts.items():
        group, _, key = name.partition("/")
        if group not in groups or not key or type(count) is not int:
            raise WireError("count")
        groups[group][key] = count
    fields = _config(record, _FACTS)
    if fields.keys() != {"version", "withdrawn_from", "held_out"}:
        raise WireError("undeclared field")
    return Facts(
        **groups,
        version=_text(fields, "version"),
        withdrawn_from=_integer(fields, "withdrawn_from"),
        held_out=_text(fields, "held_out"),
    )


def _epsilon(record: RecordDict) -> float | None:
    if _PRIVACY not in record:
        return None
    numbers = _numbers(record, _PRIVACY)
    if set(numbers) != {"epsilon_spent"}:
        raise WireError("undeclared number")
    return _number(numbers["epsilon_spent"])


def _pack_receipt(receipt: Receipt) -> ConfigRecord:
    return ConfigRecord({"sequence": receipt.sequence, "mac": receipt.mac})


def _receipt(record: RecordDict) -> Receipt | None:
    if _RECEIPT not in record:
        return None
    fields = _config(record, _RECEIPT)
    if fields.keys() != {"sequence", "mac"}:
        raise WireError("undeclared field")
    return Receipt(sequence=_integer(fields, "sequence"), mac=_text(fields, "mac"))


def _region(record: RecordDict) -> Region | None:
    if _REGION not in record:
        return None
    fields = _config(record, _REGION)
    if fields.keys() != _REGION_FIELDS:
        raise WireError("undeclared field")
    return Region(**{name: _integer(fields, name) for name in _REGION_FIELDS})


def _config(record: RecordDict, name: str) -> dict[str, Any]:
    part = _part(record, name, ConfigRecord)
    if part is None:
        raise WireError(f"no {name} record")
    return dict(part)


def _numbers(record: RecordDict, name: str) -> Mapping[str, Any]:
    return _part(record, name, MetricRecord) or {}


def _part(record: RecordDict, name: str, kind: type[R]) -> R | None:
    """A record of one kind. Flower's own views by kind leave a cycle of references, which keeps a whole model in memory."""
    part = record.get(name)
    return part if isinstance(part, kind) else None


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A word that people read in logs and terminals: nothing in it begins a line of its own or steers a terminal."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise WireError(f"{name} field")
    return value


def _experiment(fields: Mapping[str, Any]) -> str:
    value = fields.get("experiment")
    if not isinstance(value, str) or len(value) > _LONGEST_EXPERIMENT:
        raise WireError("experiment field")
    return value


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise WireError(f"{name} field")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("number")
    return float(value)

"""A reply out of Flower's object store: read one object at a time, and never more than a reply may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from fedmed_common.errors import RejectedReply, TransportAway, TransportLost
from fedmed_server import gate

_LEVELS: tuple[tuple[type[InflatableObject], ...], ...] = (
    (Message,),
    (RecordDict,),
    (ArrayRecord, ConfigRecord, MetricRecord),
    (Array,),
)
_NPY_HEADER = 512
_RECORDS, _PER_ARRAY, _PER_OBJECT = 2**16, 2048, 128
Pull = Callable[[str], bytes]


@dataclass(slots=True, kw_only=True)
class Budget:
    """What is left for a reply to take: bytes of arrays, bytes of all else, objects."""

    arrays: int
    rest: int
    objects: int

    @classmethod
    def of(cls, size: int, arrays: int) -> Budget:
        """Room for so many bytes in so many arrays, and for what Flower wraps around them."""
        objects = 16 + 2 * arrays
        size += _NPY_HEADER * arrays
        return cls(arrays=size, rest=_RECORDS + _PER_ARRAY * arrays + _PER_OBJECT * objects, objects=objects)

    def take(self, *, arrays: int = 0, rest: int = 0, objects: int = 0) -> None:
        """Raises :class:`RejectedReply` when there is less."""
        self.arrays -= arrays
        self.rest -= rest
        self.objects -= objects
        if min(self.arrays, self.rest, self.objects) < 0:
            raise RejectedReply(gate.OVERSIZED)


def read_message(pull: Pull, message_id: str, budget: Budget) -> Message:
    """The message whose objects ``pull`` gives by their ids.

    Raises:
        RejectedReply: the objects are not a message, or more than ``budget``.
        ObjectUnavailableError: an object has not been uploaded yet.
        ObjectPullError: an object is gone.
        TransportAway, TransportLost: from ``pull``.
    """
    try:
        return cast(Message, _read(pull, message_id, budget, {}, 0))
    except (RejectedReply, ObjectUnavailableError, ObjectPullError, TransportAway, TransportLost):
        raise
    except Exception:
        raise RejectedReply(gate.UNREADABLE) from None


def _read(
    pull: Pull, object_id: str, budget: Budget, known: dict[str, InflatableObject], level: int
) -> InflatableObject:
    if object_id in known:
        return known[object_id]
    content = pull(object_id)
    budget.take(rest=len(content), objects=1)
    name, parts = _head(content)
    kind = {kind.__qualname__: kind for kind in _LEVELS[level]}[name]
    if kind is Array:
        made: InflatableObject = _read_array(pull, content, parts, budget)
    elif parts and kind in (ConfigRecord, MetricRecord):
        raise RejectedReply(gate.UNREADABLE)
    else:
        made = kind.inflate(content, {part: _read(pull, part, budget, known, level + 1) for part in parts})
    known[object_id] = made
    return made


def _head(content: bytes) -> tuple[str, list[str]]:
    """An object's kind and the ids of its parts; its head must state the length of its body."""
    name, parts, length = get_object_head_values_from_object_content(content)
    if length != len(content) - content.index(HEAD_BODY_DIVIDER) - len(HEAD_BODY_DIVIDER):
        raise RejectedReply(gate.UNREADABLE)
    return name, parts


def _read_array(pull: Pull, content: bytes, parts: list[str], budget: Budget) -> Array:
    """An array, which is one chunk: a larger one's numbers do not come inside a message."""
    described = json.loads(get_object_body(content, Array))
    if len(parts) != 1 or described["arraychunk_ids"] != [0]:
        raise RejectedReply(gate.UNREADABLE)
    chunk = _chunk(pull(parts[0]))
    budget.take(arrays=len(chunk), objects=1)
    return Array(described["dtype"], tuple(described["shape"]), described["stype"], bytes(chunk))


def _chunk(content: bytes) -> memoryview:
    if _head(content) != (ArrayChunk.__qualname__, []):
        raise RejectedReply(gate.UNREADABLE)
    data: memoryview = ArrayChunk.inflate(content).data
    return data

"""Replies of a site that means harm, or is broken: by name, and drawn at random, as records and as objects.

``RECORDS`` turns a good reply to a training order into what such a site might answer; ``OBJECTS`` does the same one level
below, with the objects that Flower stores a reply as.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from hypothesis import strategies as st
from superlink import Parcel

from fedmed_common import wire
from fedmed_common.metrics import Mean
from fedmed_common.wire_arrays import layout, packed

Spoil = Callable[[wire.Reply], RecordDict]
Tamper = Callable[[Parcel], Parcel]


# Records


def _array(value: np.ndarray, **changes: object) -> Array:
    good = Array(value)
    fields = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, "data": good.data, **changes}
    return Array(**fields)  # type: ignore[arg-type]


def _fortran(value: np.ndarray) -> Array:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(value.reshape(2, -1)), allow_pickle=False)
    return _array(value, data=stream.getvalue())


def _swap(make: Callable[[np.ndarray], Array]) -> Spoil:
    """Another array in the place of the row of all numbers."""

    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        record["parameters"] = ArrayRecord({layout(reply.delta): make(_row(reply))})
        return record

    return spoil


def _row(reply: wire.Reply) -> np.ndarray:
    return np.concatenate([array.ravel() for array in reply.delta.values()])


def _bytes(change: Callable[[bytes], bytes]) -> Spoil:
    return _swap(lambda value: _array(value, data=change(Array(value).data)))


def _parameters(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Spoil:
    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        record["parameters"] = packed(change(dict(reply.delta)))
        return record

    return spoil


def _named(reply: wire.Reply) -> RecordDict:
    record = wire.pack_reply(reply)
    record["parameters"] = ArrayRecord({name: Array(array) for name, array in reply.delta.items()})
    return record


def _more(count: int) -> Spoil:
    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        others = {f"x{number}": Array(np.ones(1, np.float32)) for number in range(count)}
        record["parameters"] = ArrayRecord({**record.array_records["parameters"], **others})
        return record

    return spoil


def _filled(value: float) -> Spoil:
    def spoil(reply: wire.Reply) -> RecordDict:
        name = min(reply.delta, key=lambda name: reply.delta[name].size)
        return wire.pack_reply(
            replace(reply, delta={**reply.delta, name: np.full_like(reply.delta[name], value)})
        )

    return spoil


def _with(**changes: object) -> Spoil:
    return lambda reply: wire.pack_reply(replace(reply, **changes))  # type: ignore[arg-type]


def _number(field: str, step: int) -> Spoil:
    return lambda reply: wire.pack_reply(replace(reply, **{field: getattr(reply, field) + step}))  # type: ignore[arg-type]


def _edit(**fields: object) -> Spoil:
    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        record["reply"] = ConfigRecord({**record.config_records["reply"], **fields})  # type: ignore[arg-type]
        return record

    return spoil


def _add(name: str, other: Callable[[], ConfigRecord | MetricRecord | ArrayRecord]) -> Spoil:
    def spoil(reply: wire.Reply) -> RecordDict:
        record = wire.pack_reply(reply)
        record[name] = other()
        return record

    return spoil


def _refusal(**changes: object) -> Spoil:
    refusal = {"delta": {}, "metrics": {}, "code": "policy", "rule": "maximum_steps", "incident": "0123"}
    return _with(**{**refusal, **changes})


RECORDS: dict[str, Spoil] = {
    "nan": _filled(math.nan),
    "inf": _filled(math.inf),
    "huge": _filled(1e30),
    "norm above the limit": _filled(1e9),
    "wrong shape": _swap(lambda value: Array(np.ones(value.size + 1, np.float32))),
    "broadcastable shape": _swap(lambda _value: Array(np.ones((), np.float32))),
    "same size, other shape": _swap(lambda value: Array(value.reshape(-1, 1))),
    "double precision": _swap(lambda value: Array(value.astype(np.float64))),
    "half precision": _swap(lambda value: Array(value.astype(np.float16))),
    "complex": _swap(lambda value: Array(value.astype(np.complex64))),
    "strings": _swap(lambda value: Array(np.full(value.shape, "abcd"))),
    "big endian": _swap(lambda value: Array(value.astype(">f4"))),
    "integers of the same size": _swap(lambda value: Array(value.astype(np.int32))),
    "fortran order": _swap(_fortran),
    "not npy": _bytes(lambda data: b"x" * len(data)),
    "truncated": _bytes(lambda data: data[:-1]),
    "trailing bytes": _bytes(lambda data: data + b"\0"),
    "very long header": _bytes(lambda data: data + b"\0" * 4096),
    "empty bytes": _bytes(lambda _data: b""),
    "other serialisation": _swap(lambda value: _array(value, stype="pickle")),
    "missing parameter": _parameters(lambda arrays: dict(list(arrays.items())[1:])),
    "extra parameter": _parameters(lambda arrays: {**arrays, "extra": np.ones(1, np.float32)}),
    "other order of parameters": _parameters(lambda arrays: dict(reversed(arrays.items()))),
    "ten thousand parameters": _parameters(
        lambda arrays: {**arrays, **{f"x{n}": np.ones(1, np.float32) for n in range(10_000)}}
    ),
    "arrays of their own": _named,
    "another array besides": _more(1),
    "ten thousand arrays besides": _more(10_000),
    "no parameters": _with(delta={}),
    "another site": _with(site="beta"),
    "another run": _with(run="run-2"),
    "an old round": _number("round", -1),
    "a round to come": _number("round", 1),
    "an attempt to come": _number("attempt", 1),
    "negative round": _edit(round=-1),
    "round as text": _edit(round="3"),
    "other wire version": _edit(version=99),
    "site name of a million letters": _edit(site="a" * 1_000_000),
    "examples without end": _edit(**{"num-examples": 10**12}),
    "weight of its own": _add("weight", lambda: MetricRecord({"num-examples": 1e12})),
    "undeclared record": _add("notes", lambda: ConfigRecord({"text": "a name"})),
    "second array record": _add("more", lambda: ArrayRecord({"x": Array(np.ones(1, np.float32))})),
    "undeclared metric": _with(metrics={"loss/Jane Doe": Mean(1.0, 1.0)}),
    "metric nan": _with(metrics={"loss": Mean(math.nan, 1.0)}),
    "metric with infinite weight": _with(metrics={"loss": Mean(1.0, math.inf)}),
    "metric with negative weight": _with(metrics={"loss": Mean(1.0, -4.0)}),
    "metric without weight": _with(metrics={"loss": Mean(2.0, 0.0)}),
    "metric over more steps than were asked": _with(metrics={"loss": Mean(2.0, 1e6)}),
    "metric of three numbers": _add("metrics", lambda: MetricRecord({"loss": [1.0, 2.0, 3.0]})),
    "metric of one number": _add("metrics", lambda: MetricRecord({"loss": 1.0})),
    "seconds nan": _with(seconds={"train": math.nan}),
    "seconds by a strange name": _with(seconds={"../etc": 1.0}),
    "seconds by a name of its own": _with(seconds={"Jane_Doe": 1.0}),
    "refusal with a sentence for a code": _refusal(code="cannot read /data/Jane^Doe"),
    "refusal with a sentence for a rule": _refusal(rule="Jane Doe is not permitted"),
    "refusal with a sentence for an incident": _refusal(incident="see /data/Jane^Doe"),
    "refusal with results": _with(code="policy"),
    "facts nobody asked for": _with(facts=wire.Facts(patients={"train": 1}, presence={}, version="1")),
    "no reply record": lambda _reply: RecordDict({}),
}
"""None of these may count in a round."""


_SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(max_size=40), st.binary(max_size=40)
)
_NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.lists(st.floats(), max_size=4))
_FIELDS = ("version", "site", "run", "round", "attempt", "code", "rule", "incident", "more")
_NAMES = ("reply", "parameters", "metrics", "seconds", "patients", "facts", "notes")
_DTYPES = ("float32", ">f4", "float64", "float16", "int32", "complex64", "bool", "U3", "S4", "datetime64[s]")


@st.composite
def records(draw: st.DrawFn, reply: wire.Reply) -> RecordDict:
    """What a site that should have given this reply gives: wrong by name, or in one to three drawn ways."""
    if draw(st.integers(0, 9)) == 0:
        return RECORDS[draw(st.sampled_from(sorted(RECORDS)))](reply)
    record = wire.pack_reply(reply)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["field", "array", "array", "drop", "metric", "record"]))
        if kind == "field":
            words = dict(record.config_records.get("reply", {}))
            record["reply"] = ConfigRecord({**words, draw(st.sampled_from(_FIELDS)): draw(_SCALARS)})
        elif kind == "drop":
            record.pop(draw(st.sampled_from(_NAMES)), None)
        elif kind == "metric":
            names = st.sampled_from(["loss", "train", "dice/disc", "patients/train"])
            metrics = draw(st.dictionaries(names, _NUMBERS, max_size=3))
            record[draw(st.sampled_from(_NAMES))] = MetricRecord(metrics)
        elif kind == "record":
            words = {draw(st.text(max_size=10)): draw(_SCALARS)}
            record[draw(st.sampled_from(_NAMES))] = ConfigRecord(words)
        else:
            arrays = dict(record.array_records.get("parameters", {}))
            name = draw(
                st.sampled_from([layout(reply.delta), layout(dict(list(reply.delta.items())[:1])), "x"])
            )
            record["parameters"] = ArrayRecord({**arrays, name: draw(_arrays(_row(reply)))})
    return record


@st.composite
def _arrays(draw: st.DrawFn, value: np.ndarray) -> Array:
    kind = draw(st.sampled_from(["bytes", "header", "dtype", "shape", "values", "flip"]))
    if kind == "bytes":
        return _array(value, data=draw(st.binary(max_size=400)))
    if kind == "header":
        return _array(value, stype=draw(st.text(max_size=20)), dtype=draw(st.sampled_from(_DTYPES)))
    if kind == "dtype":
        return Array(np.zeros(value.shape, draw(st.sampled_from(_DTYPES))))
    if kind == "shape":
        return Array(np.zeros(draw(st.lists(st.integers(0, 5), max_size=4)), np.float32))
    if kind == "values":
        return Array(np.full(value.shape, draw(st.floats(width=32)), np.float32))
    data = bytearray(Array(value).data)
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return _array(value, data=bytes(data))


# Objects


def _content(kind: str, parts: list[str], body: bytes) -> bytes:
    return f"{kind} {','.join(parts)} {len(body)}".encode() + b"\0" + body


def _open(content: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = content.partition(b"\0")
    kind, parts, _ = head.decode().split(" ")
    return kind, parts.split(",") if parts else [], body


def _of_kind(parcel: Parcel, kind: str) -> str:
    """The id of the largest object of a kind."""
    names = [name for name, content in parcel.objects.items() if content.startswith(kind.encode() + b" ")]
    return max(names, key=lambda name: len(parcel.objects[name]))


def _put(parcel: Parcel, name: str, content: bytes) -> Parcel:
    return replace(parcel, objects={**parcel.objects, name: content})


def _change(kind: str, change: Callable[[list[str], bytes], bytes]) -> Tamper:
    def tamper(parcel: Parcel) -> Parcel:
        name = _of_kind(parcel, kind)
        _, parts, body = _open(parcel.objects[name])
        return _put(parcel, name, change(parts, body))

    return tamper


def _chunks(use: Callable[[int], object]) -> Tamper:
    """The largest array with other indices of its chunks."""

    def change(parts: list[str], body: bytes) -> bytes:
        return _content(
            "Array", parts, json.dumps({**json.loads(body), "arraychunk_ids": use(len(parts))}).encode()
        )

    return _change("Array", change)


def _many_names(parts: list[str], body: bytes) -> bytes:
    first = json.loads(body)[next(iter(json.loads(body)))]
    return _content("ArrayRecord", [first], json.dumps({f"x{n}": first for n in range(50_000)}).encode())


def _many_chunks(parcel: Parcel) -> Parcel:
    array = _of_kind(parcel, "Array")
    _, _, body = _open(parcel.objects[array])
    empty = {
        hashlib.sha256(str(n).encode()).hexdigest(): _content("ArrayChunk", [], b"") for n in range(2_000)
    }
    body = json.dumps({**json.loads(body), "arraychunk_ids": list(range(len(empty)))}).encode()
    return _put(
        replace(parcel, objects={**parcel.objects, **empty}), array, _content("Array", list(empty), body)
    )


def _itself(parcel: Parcel) -> Parcel:
    name = _of_kind(parcel, "RecordDict")
    return _put(parcel, name, _content("RecordDict", [name], json.dumps({"reply": name}).encode()))


def _lost(kind: str) -> Tamper:
    def tamper(parcel: Parcel) -> Parcel:
        gone = _of_kind(parcel, kind)
        return replace(parcel, objects={name: c for name, c in parcel.objects.items() if name != gone})

    return tamper


def _flat(parcel: Parcel) -> Parcel:
    return replace(parcel, tree=ObjectTree(object_id=parcel.root))


def _larger(times: int) -> Tamper:
    return _change("ArrayChunk", lambda _parts, body: _content("ArrayChunk", [], body * times))


OBJECTS: dict[str, Tamper] = {
    "chunk named a thousand times": _chunks(lambda chunks: list(range(chunks)) * 1_000),
    "chunk named before the first": _chunks(lambda _chunks: [-1] * 1_000),
    "chunk named beyond the last": _chunks(lambda chunks: [chunks]),
    "chunk named by a word": _chunks(lambda _chunks: ["0"]),
    "chunks in lists": _chunks(lambda _chunks: [[0], [0]]),
    "no list of chunks": _chunks(lambda _chunks: None),
    "two thousand empty chunks": _many_chunks,
    "chunk twice as large": _larger(2),
    "chunk a byte short": _change("ArrayChunk", lambda _parts, body: _content("ArrayChunk", [], body[:-1])),
    "chunk that is an array": _change("ArrayChunk", lambda _parts, body: _content("Array", [], body)),
    "array under fifty thousand names": _change("ArrayRecord", _many_names),
    "array without its description": _change("Array", lambda parts, _body: _content("Array", parts, b"{}")),
    "description a hundred thousand deep": _change(
        "Array", lambda parts, _body: _content("Array", parts, b"[" * 100_000)
    ),
    "record that holds itself": _itself,
    "record of words with parts": _change(
        "ConfigRecord", lambda _parts, body: _content("ConfigRecord", ["0" * 64], body)
    ),
    "words of a megabyte": _change(
        "ConfigRecord", lambda _parts, body: _content("ConfigRecord", [], body * 4_000)
    ),
    "words that are no words": _change(
        "ConfigRecord", lambda _parts, _body: _content("ConfigRecord", [], b"\xff" * 99)
    ),
    "record that is a message": _change("RecordDict", lambda parts, body: _content("Message", parts, body)),
    "message that is a record": _change("Message", lambda parts, body: _content("RecordDict", parts, body)),
    "message without content": _change("Message", lambda _parts, body: _content("Message", [], body)),
    "message of two contents": _change("Message", lambda parts, body: _content("Message", parts * 2, body)),
    "message of a class of its own": _change("Message", lambda parts, body: _content("Exploit", parts, body)),
    "message of noise": _change("Message", lambda _parts, _body: b"\xff\xfe" * 50),
    "message of nothing": _change("Message", lambda _parts, _body: b"x"),
    "chunk that is not there": _lost("ArrayChunk"),
    "message that is not there": _lost("Message"),
    "tree that hides the arrays": _flat,
}
"""None of these may count in a round, nor take more memory than the update that was asked for."""


@st.composite
def objects(draw: st.DrawFn, parcel: Parcel) -> Parcel:
    """A reply's objects: wrong by name, or with one to three of them changed in drawn ways."""
    if draw(st.integers(0, 4)) == 0:
        return OBJECTS[draw(st.sampled_from(sorted(OBJECTS)))](parcel)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(parcel.objects)))
        changed = draw(_contents(parcel.objects[name], sorted(parcel.objects)))
        if draw(st.integers(0, 3)) == 0:
            changed = _damaged(draw, changed)
        parcel = _put(parcel, name, changed or b"x")
    return parcel


@st.composite
def _contents(draw: st.DrawFn, content: bytes, names: list[str]) -> bytes:
    """Another content whose head fits its body."""
    try:
        kind, parts, body = _open(content)
        described = json.loads(body) if body.startswith(b"{") else {}
    except (ValueError, RecursionError):
        return content
    way = draw(st.sampled_from(["body", "body", "json", "kind", "parts"]))
    if way == "kind":
        kinds = (
            "Message",
            "RecordDict",
            "ArrayRecord",
            "ConfigRecord",
            "MetricRecord",
            "Array",
            "ArrayChunk",
        )
        kind = draw(st.sampled_from(kinds))
    elif way == "parts":
        parts = draw(st.lists(st.sampled_from(names), max_size=6))
    elif way == "json" and described:
        keys = sorted({*described, "parameters", "metrics", "conv.weight"})
        values = (
            st.sampled_from(names)
            | st.lists(st.integers(-1, 9), max_size=5)
            | st.text(max_size=9)
            | st.none()
        )
        body = json.dumps({**described, draw(st.sampled_from(keys)): draw(values)}).encode()
    else:
        body = _damaged(draw, body)
    return _content(kind, parts, body)


def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    way = draw(st.sampled_from(["flip", "flip", "flip", "cut", "noise"]))
    if way == "flip" and data:
        place = draw(st.integers(0, len(data) - 1))
        return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    return data[: draw(st.integers(0, len(data)))] if way == "cut" else draw(st.binary(max_size=200))

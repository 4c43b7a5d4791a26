"""Changes of a model in fewer bytes: what is sent in the place of float32 numbers, and what it is read as.

All trained numbers of a change are one row, in the order of its arrays. Running statistics of batch norms stay float32 arrays of
their own: a rounded variance could be negative. What rounding loses is for the sender to keep and to add to its next change
(:func:`encoded`; Seide et al. 2014, '1-bit stochastic gradient descent', section 2; Karimireddy et al. 2019, 'Error feedback
fixes SignSGD', algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmed_common import squeezing
from fedmed_common.config import Experiment
from fedmed_common.errors import WireError
from fedmed_common.params import Parameters, is_statistic
from fedmed_common.training_config import CodecName, Compression

Arrays = Mapping[str, NDArray[Any]]
Encoded = dict[str, NDArray[Any]]
_NUMBERS, _SCALES, _PLACES, _VALUES = "/numbers", "/scales", "/places", "/values"
_LEVELS = 127
_LEFT = "codec/"


@dataclass(frozen=True, slots=True)
class RowCodec:
    """``forms``: arrays like those that are sent for a change; ``encode``: those arrays; ``decode``: the row that they stand for,
    of a change with arrays like the template's."""

    forms: Callable[[Arrays], Encoded]
    encode: Callable[[Arrays], Encoded]
    decode: Callable[[Arrays, Arrays], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Codec:
    """A row's codec, with running statistics beside it, and all of it squeezed where the experiment says so."""

    row: RowCodec
    zstd: bool
    feedback: bool

    def forms(self, template: Arrays) -> Encoded:
        """Arrays like those of an encoded change, in their order, which take no memory. What is squeezed is one array, at most
        as long as this one."""
        trained, statistics = _parted(template)
        forms = {**self.row.forms(trained), **statistics}
        return squeezing.bound(forms) if self.zstd else forms

    def encode(self, change: Parameters) -> Encoded:
        """What is sent for the change."""
        trained, statistics = _parted(change)
        sent = {**self.row.encode(trained), **statistics}
        return squeezing.squeeze(sent) if self.zstd else sent

    def decode(self, sent: Arrays, template: Arrays) -> Parameters:
        """The change that was sent, with arrays like the template's.

        Raises:
            WireError: what no sender can have sent.
        """
        trained, statistics = _parted(template)
        forms = {**self.row.forms(trained), **statistics}
        if self.zstd:
            sent = squeezing.unsqueeze(sent, forms)
        if [*map(_form_of, sent.items())] != [*map(_form_of, forms.items())]:
            raise WireError("encoded change")
        parts = dict(zip(trained, _split(self.row.decode(sent, trained), trained), strict=True))
        return {name: parts[name] if name in parts else sent[name] for name in template}


def codec_of(name: CodecName, settings: Compression) -> Codec:
    """The codec that an experiment asks for by name."""
    share = settings.share

    def kept(template: Arrays) -> int:
        return max(1, math.ceil(share * _size(template)))

    rows = {
        "bf16": RowCodec(_bf16_forms, _to_bf16, _from_bf16),
        "int8": RowCodec(_int8_forms, _to_int8, _from_int8),
        "top": RowCodec(
            lambda template: {
                _PLACES: _form(np.uint32, kept(template)),
                _VALUES: _form(np.float32, kept(template)),
            },
            lambda change: _to_top(change, kept(change)),
            _from_top,
        ),
    }
    return Codec(rows[name], settings.zstd, settings.error_feedback)


def update_codec(experiment: Experiment) -> Codec | None:
    """Of sites' updates; None where they are sent as they are."""
    settings = experiment.compression
    return None if settings is None or settings.up is None else codec_of(settings.up, settings)


def change_codec(experiment: Experiment) -> Codec | None:
    """Of what a round changed in the global model; None where sites are sent all of it."""
    settings = experiment.compression
    return None if settings is None or settings.down is None else codec_of(settings.down, settings)


def added(parameters: Parameters, change: Parameters) -> Parameters:
    """What changed, after the change: server and sites add in one way, so that they have the same numbers."""
    return {name: parameters[name] + array for name, array in change.items()}


def encoded(codec: Codec, change: Parameters, memory: Arrays) -> tuple[Encoded, Encoded]:
    """What is sent for a change, and what the sender keeps, by names of this module's own: what could not be sent.

    ``memory``: what it has kept before, which is added to the change where the codec has error feedback.

    Raises:
        FloatingPointError: the change is not finite.
    """
    if not all(np.isfinite(array).all() for array in change.values()):
        raise FloatingPointError("the change of the model is not finite")
    if not codec.feedback:
        return codec.encode(change), {}
    whole = {
        name: array + memory[_LEFT + name] if _LEFT + name in memory else array
        for name, array in change.items()
    }
    sent = codec.encode(whole)
    read = codec.decode(sent, whole)
    return sent, {_LEFT + name: whole[name] - read[name] for name in whole if not is_statistic(name)}


def _to_bf16(change: Arrays) -> Encoded:
    """The upper half of each float32, rounded to the nearest, ties to even."""
    bits = _row(change).view(np.uint32)
    return {_NUMBERS: ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)}


def _from_bf16(sent: Arrays, _template: Arrays) -> NDArray[np.float32]:
    return (sent[_NUMBERS].astype(np.uint32) << 16).view(np.float32)


def _bf16_forms(template: Arrays) -> Encoded:
    return {_NUMBERS: _form(np.uint16, _size(template))}


def _to_int8(change: Arrays) -> Encoded:
    """Whole numbers between -127 and 127 of a scale for each channel: the first axis of what has several, all of what has one."""
    numbers, scales = np.empty(_size(change), np.int8), []
    for array, part in zip(change.values(), _split(numbers, change), strict=True):
        rows = _channels(array)
        scale = np.abs(rows).max(axis=1, initial=0.0) / np.float32(_LEVELS)
        divisor = np.where(scale > 0, scale, np.float32(1.0))[:, None]
        _channels(part)[...] = np.clip(np.rint(rows / divisor), -_LEVELS, _LEVELS)
        scales.append(scale)
    return {_NUMBERS: numbers, _SCALES: np.concatenate(scales)}


def _from_int8(sent: Arrays, template: Arrays) -> NDArray[np.float32]:
    row, scales, first = np.empty(_size(template), np.float32), sent[_SCALES], 0
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise WireError("encoded change")
    for numbers, part in zip(_split(sent[_NUMBERS], template), _split(row, template), strict=True):
        source = _channels(numbers)
        np.multiply(source, scales[first : first + len(source), None], out=_channels(part), casting="unsafe")
        first += len(source)
    return row


def _int8_forms(template: Arrays) -> Encoded:
    channels = sum(_channel_count(array) for array in template.values())
    return {_NUMBERS: _form(np.int8, _size(template)), _SCALES: _form(np.float32, channels)}


def _to_top(change: Arrays, kept: int) -> Encoded:
    """The largest numbers, and how far each is from the one before it; of equal ones whichever."""
    row = _row(change)
    places = np.sort(np.argpartition(np.abs(row), len(row) - kept)[len(row) - kept :])
    return {_PLACES: np.diff(places, prepend=0).astype(np.uint32), _VALUES: row[places]}


def _from_top(sent: Arrays, template: Arrays) -> NDArray[np.float32]:
    row, places = np.zeros(_size(template), np.float32), np.cumsum(sent[_PLACES], dtype=np.int64)
    if places[-1] >= len(row) or not (sent[_PLACES][1:] > 0).all():
        raise WireError("encoded change")
    row[places] = sent[_VALUES]
    return row


def _parted(arrays: Arrays) -> tuple[Encoded, Encoded]:
    trained = {name: array for name, array in arrays.items() if not is_statistic(name)}
    return trained, {name: array for name, array in arrays.items() if is_statistic(name)}


def _row(arrays: Arrays) -> NDArray[np.float32]:
    return np.concatenate([array.ravel() for array in arrays.values()])


def _split(row: NDArray[Any], template: Arrays) -> Iterator[NDArray[Any]]:
    """Views of the row in the shapes of the template's arrays."""
    first = 0
    for array in template.values():
        yield row[first : first + array.size].reshape(array.shape)
        first += array.size


def _channels(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(_channel_count(array), -1)


def _channel_count(array: NDArray[Any]) -> int:
    return array.shape[0] if array.ndim > 1 and array.size else 1


def _size(template: Arrays) -> int:
    return sum(array.size for array in template.values())


def _form_of(item: tuple[str, NDArray[Any]]) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    name, array = item
    return name, array.shape, array.dtype


def _form(kind: type[np.generic], count: int) -> NDArray[Any]:
    return np.broadcast_to(kind(0), (count,))

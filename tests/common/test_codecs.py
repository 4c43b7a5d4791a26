"""Changes in fewer bytes: read as they were meant, with what was lost known, and nothing read that nobody can have sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmed_common import codecs
from fedmed_common.codecs import Codec, codec_of
from fedmed_common.errors import WireError
from fedmed_common.squeezing import SQUEEZED
from fedmed_common.training_config import Compression

NAMES = ("bf16", "int8", "top")
FINITE = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
LARGEST = 2.0**-8
"""The relative error of eight bits of mantissa, the first of which is not written."""


def codec(name: str, *, zstd: bool = False, share: float = 0.1, error_feedback: bool = True) -> Codec:
    given = {"share": share} if name == "top" else {}
    settings = Compression(up=name, zstd=zstd, error_feedback=error_feedback, **given)  # type: ignore[arg-type]
    return codec_of(settings.up, settings)  # type: ignore[arg-type]


def change(seed: int = 0) -> dict[str, np.ndarray]:
    """Of a convolution, a batch norm and a number without a dimension, each of another size."""
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.running_mean": (4,), "norm.running_var": (4,), "scale": ()}
    return {
        name: np.asarray(rng.normal(0, 10.0**-place, shape), np.float32)
        for place, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_has_the_forms_that_were_announced_and_is_read_as_a_change(
    name: str, zstd: bool
) -> None:
    one, sent = codec(name, zstd=zstd), codec(name, zstd=zstd).encode(change())
    forms = one.forms(change())
    assert list(sent) == list(forms)
    for key, array in sent.items():
        assert array.dtype == forms[key].dtype
        assert array.nbytes <= forms[key].nbytes if key == SQUEEZED else array.shape == forms[key].shape
    read = one.decode(sent, change())
    assert list(read) == list(change())
    for key, array in change().items():
        assert (read[key].shape, read[key].dtype) == (array.shape, np.float32)
        if "running" in key:
            assert read[key].tobytes() == array.tobytes()


@given(arrays(np.float32, 20, elements=FINITE))
def test_bf16_is_rounded_as_torch_rounds(row: np.ndarray) -> None:
    one = codec("bf16")
    read = one.decode(one.encode({"w": row}), {"w": row})["w"]
    expected = torch.from_numpy(row).to(torch.bfloat16).float().numpy()
    assert read.tobytes() == expected.tobytes()
    assert (np.abs(read - row) <= np.abs(row) * LARGEST + np.float32(1e-38)).all()


@given(arrays(np.float32, (3, 7), elements=st.floats(-100, 100, width=32)))
def test_int8_is_off_by_half_a_step_of_its_channel_at_most(rows: np.ndarray) -> None:
    one = codec("int8")
    read = one.decode(one.encode({"w": rows}), {"w": rows})["w"]
    steps = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(read.astype(np.float64) - rows) <= steps * (0.5 + 1e-4) + 1e-44).all()


@given(arrays(np.float32, 50, elements=FINITE))
def test_top_sends_the_largest_as_they_are_and_no_others(row: np.ndarray) -> None:
    one = codec("top", share=0.1)
    read = one.decode(one.encode({"w": row}), {"w": row})["w"]
    kept = read != 0
    assert kept.sum() <= 5
    assert read[kept].tobytes() == row[kept].tobytes()
    assert np.sort(np.abs(read))[-5:].tolist() == np.sort(np.abs(row))[-5:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_sent_is_sent_later(name: str) -> None:
    """Of a change that is the same ten times, what was read and what is left are ten of it, to rounding."""
    one, left, read = codec(name), dict[str, np.ndarray](), np.zeros((4, 3, 3, 3))
    for _ in range(10):
        sent, left = codecs.encoded(one, change(), left)
        read += one.decode(sent, change())["conv.weight"]
    assert set(left) == {"codec/conv.weight", "codec/scale"}
    expected = change()["conv.weight"].astype(np.float64) * 10
    np.testing.assert_allclose(read + left["codec/conv.weight"], expected, rtol=1e-5, atol=1e-5)
    without, nothing = codecs.encoded(codec(name, error_feedback=False), change(), left)
    assert nothing == {}
    assert all(np.array_equal(without[key], array) for key, array in one.encode(change()).items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_rounded_to_one(value: float) -> None:
    spoilt = {"w": np.array([1.0, value], np.float32)}
    with pytest.raises(FloatingPointError, match="not finite"):
        codecs.encoded(codec("bf16"), spoilt, {})


@pytest.mark.parametrize(
    ("name", "array", "value"),
    [
        ("int8", "/scales", np.nan),
        ("int8", "/scales", np.inf),
        ("int8", "/scales", -1.0),
        ("top", "/places", 2**32 - 1),
        ("top", "/places", 0),
    ],
)
def test_numbers_that_nobody_can_have_sent_are_refused(name: str, array: str, value: float) -> None:
    sent = codec(name).encode(change())
    sent[array] = sent[array].copy()
    sent[array][1:] = value
    with pytest.raises(WireError, match="encoded change"):
        codec(name).decode(sent, change())


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_other_forms_are_refused(name: str) -> None:
    sent = codec(name).encode(change())
    first = next(iter(sent))
    spoilt = ({**sent, first: sent[first][:-1]}, {**sent, first: sent[first].astype(np.float64)}, {})
    for other in (*spoilt, dict(reversed(sent.items()))):
        with pytest.raises(WireError):
            codec(name).decode(other, change())


def _frames() -> dict[str, bytes]:
    good = codec("int8", zstd=True).encode(change())[SQUEEZED].tobytes()
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    size = len(zstandard.ZstdDecompressor().decompress(good))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))
    return {
        "a bomb": bomb,
        "cut off": good[:-3],
        "no frame": b"Jane Doe",
        "of another size": zstandard.ZstdCompressor().compress(bytes(size + 1)),
        "of a size that is not told": unsized,
        "nothing": b"",
    }


@pytest.mark.parametrize("kind", _frames())
def test_what_is_no_frame_of_that_size_is_not_inflated(kind: str) -> None:
    sent = {SQUEEZED: np.frombuffer(_frames()[kind], np.uint8)}
    with pytest.raises(WireError, match="squeezed arrays"):
        codec("int8", zstd=True).decode(sent, change())


@given(st.data())
def test_whatever_has_the_forms_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    forms = codec(name).forms(change())
    sent = {
        key: data.draw(arrays(form.dtype, form.shape)) if form.size < 40 else form
        for key, form in forms.items()
    }
    try:
        read = codec(name).decode(sent, change())
    except WireError:
        return
    assert {key: array.shape for key, array in read.items()} == {
        key: array.shape for key, array in change().items()
    }


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="set one of them"):
        Compression()
    with pytest.raises(ValueError, match="share is for 'top'"):
        Compression(up="int8", share=0.1)

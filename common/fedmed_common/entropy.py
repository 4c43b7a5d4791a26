"""Randomness that nobody outside this process can know or repeat: AES-256 in counter mode under a key of the operating system.

Privacy rests on it. The experiment's seed is known to the coordinator, who could subtract noise that was drawn from it, and see
who was drawn. Nothing here is ever seeded, saved or logged.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_AT_ONCE = 2**18
_GRID_BITS = 20
FINENESS = 2.0**-_GRID_BITS
"""The spacing of noise is at most this part of its deviation."""
_FAR = 2**20


def normal(count: int) -> Tensor:
    """``count`` standard normal numbers, float64, on the CPU: the inverse distribution function of 64 random bits each, of which
    one is the sign; the few that fall farthest out take 52 bits more, so that there are no gaps there either."""
    result = torch.empty(count, dtype=torch.float64)
    for start in range(0, count, _AT_ONCE):
        part = result[start : start + _AT_ONCE]
        words = _words(len(part))
        signs = torch.from_numpy(1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64))
        torch.mul(torch.special.ndtri(_tails(words >> np.uint64(1))), signs, out=part)
    return result


def _tails(words: NDArray[np.uint64]) -> Tensor:
    """Uniform in (0, 1/2), of 63 random bits each."""
    middles = words.astype(np.float64) + 0.5
    far = np.flatnonzero(words < _FAR)
    if far.size:
        middles[far] = words[far] + _uniform(far.size).numpy()
    return torch.from_numpy(middles * 2.0**-64)


def grid(deviation: float) -> float:
    """The spacing of the grid on which noise of this deviation lies: a power of two, a millionth of the deviation or less.

    Doubles are not evenly spaced, so which ones can come out of an addition tells what was added (Mironov 2012, 'On significance
    of the least significant bits for differential privacy'). Where what is hidden and the noise are multiples of one spacing, the
    sum is exact, and every multiple can come of every other (Canonne, Kamath and Steinke 2020, 'The discrete Gaussian for
    differential privacy', of which rounded normal noise at this spacing differs by less than one part in 10^11). 0 without noise.
    """
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - _GRID_BITS) if deviation else 0.0


def noise(count: int, deviation: float, normal: Callable[[int], Tensor] = normal) -> Tensor:
    """``count`` normal numbers of this deviation, each a multiple of its :func:`grid`; float64, on the CPU."""
    spacing, result = grid(deviation), torch.zeros(count, dtype=torch.float64)
    for part in torch.split(result, _AT_ONCE) if spacing else ():
        torch.mul(normal(len(part)).mul_(deviation / spacing).round_(), spacing, out=part)
    return result


def poisson_sample(population: int, rate: float) -> list[int]:
    """The numbers below ``population`` that are drawn when each is with chance ``rate``, on its own."""
    return (_uniform(population) < rate).nonzero().flatten().tolist()


def generator() -> np.random.Generator:
    """A generator in a state that only chance knows."""
    return np.random.default_rng(secrets.randbits(256))


def _uniform(count: int) -> Tensor:
    """Uniform in (0, 1), never an end: the middles of 2^52 equal parts, each of which is a double."""
    return torch.from_numpy(((_words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def _words(count: int) -> NDArray[np.uint64]:
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * count)), np.uint64)

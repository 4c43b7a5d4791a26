"""Randomness that nobody outside this process can know or repeat: AES-256 in counter mode under a key of the operating system.

Privacy rests on it. The experiment's seed is known to the coordinator, who could subtract noise that was drawn from it, and see
who was drawn. Nothing here is ever seeded, saved or logged.
"""

from __future__ import annotations

import math
import os
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_AT_ONCE = 2**20
_SUMMED = 4


def normal(count: int) -> Tensor:
    """``count`` standard normal numbers, float64, on the CPU.

    Each is the sum of four, divided by two; each of these is the inverse distribution function of 52 random bits. Which doubles
    can come out of one such draw can tell what was added to it (Mironov 2012, 'On significance of the least significant bits
    for differential privacy'); of a sum of several no attack is known (Holohan and Braghin 2021, 'Secure random sampling in
    differential privacy', section 4).
    """
    result = torch.empty(count, dtype=torch.float64)
    for start in range(0, count, _AT_ONCE):
        part = result[start : start + _AT_ONCE]
        part.zero_()
        for _ in range(_SUMMED):
            part += torch.special.ndtri(_uniform(len(part)))
        part /= math.sqrt(_SUMMED)
    return result


def poisson_sample(population: int, rate: float) -> list[int]:
    """The numbers below ``population`` that are drawn when each is with chance ``rate``, on its own."""
    return (_uniform(population) < rate).nonzero().flatten().tolist()


def generator() -> np.random.Generator:
    """A generator in a state that only chance knows."""
    return np.random.default_rng(secrets.randbits(256))


def _uniform(count: int) -> Tensor:
    """Uniform in (0, 1), never an end: the middles of 2^52 equal parts, each of which is a double."""
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    words = np.frombuffer(stream.update(bytes(8 * count)), np.uint64) >> np.uint64(12)
    return torch.from_numpy((words.astype(np.float64) + 0.5) * 2.0**-52)

"""Numbers of a declared range as integers modulo 2^32, whose sum over sites cannot overflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmed_common.errors import PolicyRefusal

BYTES = 4
_HALF = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An array of a sum. ``limit``: the sum over all sites is no larger, to which end each site bounds its own part."""

    name: str
    shape: tuple[int, ...]
    limit: float

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a site's vector holds: blocks, one after the other, for a sum over ``sites``.

    A number x is round(x s) with s = (2^31 - 1 - sites) / limit, so that the sum of all sites' numbers stays between -2^31 and
    2^31. The sum's error is at most sites / (2 s), which is sites / 2^32 of the limit.
    """

    blocks: tuple[Block, ...]
    sites: int

    @property
    def length(self) -> int:
        """Of the vector."""
        return sum(block.size for block in self.blocks)

    def described(self) -> list[object]:
        """All of it, for those who have to agree on it."""
        return [self.sites, *([block.name, list(block.shape), block.limit] for block in self.blocks)]

    def scale(self, block: Block) -> float:
        """By what its numbers are multiplied."""
        return (_HALF - 1 - self.sites) / block.limit

    def error(self, block: Block) -> float:
        """By how much a sum's number can be off."""
        return self.sites / (2 * self.scale(block))

    def encode(self, arrays: Mapping[str, NDArray[np.floating]]) -> NDArray[np.uint32]:
        """A site's arrays as its vector ``(length,)``.

        Raises:
            PolicyRefusal: ``secure_range``, where a number is larger than its block's limit, or none.
        """
        vector = np.empty(self.length, np.uint32)
        for block, part in zip(self.blocks, self._parts(vector), strict=True):
            values = np.asarray(arrays[block.name], np.float64).ravel()
            check_range(block.name, values, block.limit)
            part[:] = np.rint(values * self.scale(block)).astype(np.int64).astype(np.uint32)
        return vector

    def decode(self, total: NDArray[np.uint32]) -> dict[str, NDArray[np.float64]]:
        """The arrays of a sum of vectors."""
        return {
            block.name: (part.view(np.int32).astype(np.float64) / self.scale(block)).reshape(block.shape)
            for block, part in zip(self.blocks, self._parts(total), strict=True)
        }

    def _parts(self, vector: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
        ends = np.cumsum([block.size for block in self.blocks])[:-1]
        return np.split(vector, ends)


def check_range(name: str, array: NDArray[np.floating], limit: float) -> None:
    """Refuse numbers that a sum is not made for.

    Raises:
        PolicyRefusal: ``secure_range``, where a number is larger than the limit, or none.
    """
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= limit:
        raise PolicyRefusal(
            "secure_range", f"'{name}' holds {largest:g}; sums are computed for numbers up to {limit:g}"
        )


def blocks_of(arrays: Mapping[str, NDArray[np.floating]], limit: float, prefix: str = "") -> Sequence[Block]:
    """A block for each array, of one limit."""
    return [
        Block(name=f"{prefix}{name}", shape=tuple(array.shape), limit=limit) for name, array in arrays.items()
    ]

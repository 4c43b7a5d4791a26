"""Shamir's secret sharing of 32 bytes, as two secrets of 16 over GF(2^128): any ``threshold`` shares give it, fewer tell nothing.

Source: Shamir 1979, 'How to share a secret', as PyCryptodome has it. The polynomials' numbers come from the operating system.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET_BYTES = 32
_HALF = SECRET_BYTES // 2


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares 1 to ``count``, of 32 bytes each.

    Raises:
        ValueError: the secret has another length, or the threshold is impossible.
    """
    if len(secret) != SECRET_BYTES or not 2 <= threshold <= count:
        raise ValueError("no such sharing")
    halves = [Shamir.split(threshold, count, part, False) for part in (secret[:_HALF], secret[_HALF:])]
    return [left[1] + right[1] for left, right in zip(*halves, strict=True)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of ``threshold`` shares by their numbers. Fewer, or one that is wrong, give another one, and nobody can tell.

    Raises:
        ValueError: a share has another length.
    """
    if any(len(share) != SECRET_BYTES for share in shares.values()):
        raise ValueError("no share")
    return b"".join(
        Shamir.combine([(number, share[part]) for number, share in shares.items()], False)
        for part in (slice(0, _HALF), slice(_HALF, None))
    )

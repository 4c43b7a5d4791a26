"""Masks: long random vectors that whoever knows a short secret can compute, and to everybody else are uniform."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
_AT_ONCE = 2**20
_ANY = bytes(range(KEY_BYTES))


def agreed(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """The 32 bytes that two parties share, each from its own private key and the other's public one (X25519, RFC 7748; HKDF with
    SHA-256, RFC 5869). ``purpose``: all that it is for, and for whom; with another one it is another secret.

    Raises:
        ValueError: the public key is none.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return derived(secret, purpose)


def is_public(key: bytes) -> bool:
    """Whether a secret can be agreed on with it; with a point of small order everybody would know the secret."""
    try:
        agreed(_ANY, key, b"")
    except ValueError:
        return False
    return True


def derived(secret: bytes, purpose: bytes) -> bytes:
    """A key of its own for one purpose."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def public_of(private: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def add_mask(vector: NDArray[np.uint32], key: bytes, sign: int) -> None:
    """Add the key's mask to the vector in place, modulo 2^32, or with ``sign`` -1 subtract it. The stream of ChaCha20 (RFC 8439)
    under a key that is used once, in order of bytes as on little-endian machines."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    zeros = bytes(4 * min(_AT_ONCE, len(vector)))
    for start in range(0, len(vector), _AT_ONCE):
        part = vector[start : start + _AT_ONCE]
        mask = np.frombuffer(stream.update(zeros[: 4 * len(part)]), "<u4")
        if sign > 0:
            np.add(part, mask, out=part)
        else:
            np.subtract(part, mask, out=part)

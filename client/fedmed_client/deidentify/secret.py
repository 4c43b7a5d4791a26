"""What only this site can compute: pseudonyms, new UIDs and the time by which a patient's dates are moved.

All follow from the site's secret by HMAC-SHA-256: the same patient, the same pseudonym, also next year and in another process;
and nobody without the secret can tell who it is, not by trying all patient numbers either.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydicom.uid import UID_dictionary

from fedmed_client.data.headers import LABEL_MAP_SEGMENTATION
from fedmed_common.errors import ConfigError
from fedmed_common.files import write_atomically

_BYTES = 32
_MOST_DAYS = 3650
_LEAST_DAYS = 365
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True, repr=False)
class SiteSecret:
    """A site's secret. Keep it where the originals are: with it and a patient's number the pseudonym can be found again."""

    key: bytes

    @classmethod
    def open(cls, file: Path) -> SiteSecret:
        """The one in the file, which is made where there is none, readable by its owner alone.

        Raises:
            ConfigError: the file holds something else.
        """
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, secrets.token_bytes(_BYTES), mode=0o600)
        key = file.read_bytes()
        if len(key) != _BYTES:
            raise ConfigError(
                f"holds {len(key)} bytes and not a secret of {_BYTES}",
                file=file,
                fix="put back the file from a backup; a new one gives every patient another pseudonym",
            )
        return cls(key)

    def uid(self, uid: str) -> str:
        """The UID that stands for one of the site's; those that the standard registers stay (PS3.5 B.2 for the form)."""
        if not uid or uid in UID_dictionary or uid == LABEL_MAP_SEGMENTATION:
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def pseudonym(self, patient: str) -> str:
        """Sixteen letters and digits. ``patient``: normalised, with the issuer."""
        return base64.b32encode(self._digest("patient", patient)[:10]).decode("ascii")

    def shift(self, patient: str) -> timedelta:
        """The time that is taken off all dates of a patient: one to ten years, to the second."""
        digest = self._digest("shift", patient)
        days = _LEAST_DAYS + int.from_bytes(digest[:8], "big") % (_MOST_DAYS - _LEAST_DAYS)
        return timedelta(days=days, seconds=int.from_bytes(digest[8:16], "big") % _DAY_SECONDS)

    def _digest(self, use: str, text: str) -> bytes:
        return hmac.digest(self.key, f"{use}\0{text}".encode(), "sha256")

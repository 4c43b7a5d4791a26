"""How far a site's privacy ledger has come, as the site says it and the coordinator remembers it for the site."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAC = re.compile(r"[0-9a-f]{64}")
_MOST_ROWS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """So many rows, and the code (HMAC-SHA-256) of the last, of which nobody can make anything without the site's key.

    A site that is shown a receipt of its own knows whether its ledger lost rows since, was put back from a copy, or goes on in a
    copy of the site besides.
    """

    sequence: int
    mac: str

    @property
    def is_possible(self) -> bool:
        """Whether a site can have written it."""
        return 1 <= self.sequence <= _MOST_ROWS and _MAC.fullmatch(self.mac) is not None

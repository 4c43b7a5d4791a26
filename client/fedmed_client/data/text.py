"""Untrusted text from headers and paths: made safe to show, and equal where it means the same."""

from __future__ import annotations

import re
import unicodedata


def printable(text: str) -> str:
    """Text from a header or a path without anything that could steer a terminal."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown
    )


def normalise_patient(identifier: str, issuer: str) -> str:
    """``"id|issuer"``: equal for spellings that differ in width, case, white space or invisible characters."""
    return "|".join(
        normalise(part).replace("\\", "\\\\").replace("|", "\\|") for part in (identifier, issuer)
    )


def without_issuer(patient: str) -> str:
    """The patient's key as it is without an issuer; a bar within the identifier has a backslash before it."""
    match = re.match(r"(?:\\.|[^\\|])*\|", patient)
    return match[0] if match else patient


def normalise(text: str) -> str:
    """NFKC, no control or format characters, inner white space collapsed, casefolded."""
    compatible = unicodedata.normalize("NFKC", text)
    kept = (c for c in compatible if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFKC", " ".join("".join(kept).split()).casefold())

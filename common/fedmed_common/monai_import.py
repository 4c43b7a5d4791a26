"""MONAI without transformers.

MONAI imports transformers, where it is installed, for one network that is not used here: a third of the seconds that a process
takes to start.
"""

from __future__ import annotations

import sys
from types import ModuleType


def load_monai() -> None:
    """Import MONAI, and not transformers with it; call it before the first ``import monai`` of a process."""
    if "monai" in sys.modules or "transformers" in sys.modules:
        return
    hidden: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    hidden["transformers"] = None
    try:
        import monai  # noqa: F401
    finally:
        del hidden["transformers"]

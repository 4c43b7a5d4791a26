"""Set-up of worker processes. Imports nothing heavy: it must run before the numeric libraries read their settings."""

from __future__ import annotations

import os

from fedmed_common.processes import prepare_worker


def prepare() -> None:
    """One thread per process, since there is one process per core."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    prepare_worker()

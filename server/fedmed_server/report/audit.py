"""What attacks on a run found, as they are kept in its folder and told in its report."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedmed_common.errors import CheckpointError

AUDIT = "audit.json"


class Finding(BaseModel):
    """One attack. ``bound``: what it cannot exceed where all is as promised; None where there is no such number. ``alarm``: it
    did."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    question: str
    measured: float
    bound: float | None
    unit: str
    alarm: bool
    details: dict[str, float] = Field(default_factory=dict)


_FINDINGS = TypeAdapter(tuple[Finding, ...])


def read_findings(run: Path) -> tuple[Finding, ...]:
    """Those of a run; empty where nobody attacked it.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = run / AUDIT
    if not file.exists():
        return ()
    try:
        return _FINDINGS.validate_json(file.read_bytes())
    except ValidationError:
        raise CheckpointError(f"{file}: is damaged\n  fix: delete it, and run 'fedmed audit' again") from None

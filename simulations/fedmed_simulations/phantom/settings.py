"""What a synthetic federation is made of: the classes and the few numbers that decide everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import uuid
from dataclasses import dataclass

from fedmed_common.errors import ConfigError

ORGANS = ("liver", "spleen", "kidneys", "pancreas", "aorta", "spine")
"""Classes that every patient shows."""

LESIONS = ("liver_lesion", "kidney_cyst", "spleen_lesion", "bone_lesion", "pancreas_cyst")
"""Classes that only some patients show, the commonest first."""

FORMAT = 1
"""Raised whenever the same settings give other bytes."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "phantom.fedmed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomSettings:
    """One synthetic federation; the same settings always give the same bytes.

    ``patients``: per site. ``shape``: voxels along a slice's columns, its rows, and slices; the field of view stays, so fewer
    voxels are larger ones. ``imbalance``: patients with the commonest lesion class over patients with the rarest. ``alpha``:
    Dirichlet concentration of a lesion class over the sites, smaller is more uneven. ``head_share``: share of all patients who
    show the commonest lesion class. ``vacant`` and ``unannotated``: lesion classes per site without a positive patient, and
    without annotation; each class keeps one site that is neither, so a few sites have none of the one or the other.
    ``held_out``: other patients of the same hospitals and scanners, to test on: every site labels every class, and each lesion
    class is shown by ``head_share`` of its patients, so that ``imbalance``, ``alpha`` and the gaps do not matter.

    Raises:
        ConfigError: a number is out of its range.
    """

    sites: int = 4
    patients: int = 24
    shape: tuple[int, int, int] = (96, 96, 48)
    seed: int = 0
    imbalance: float = 10.0
    alpha: float = 0.5
    head_share: float = 0.5
    vacant: int = 1
    unannotated: int = 1
    held_out: bool = False

    def __post_init__(self) -> None:
        _within("sites", self.sites, 1, 1000)
        _within("patients", self.patients, 1, 9999)
        if len(self.shape) != 3:
            raise ConfigError("needs three numbers", field="shape", fix="columns,rows,slices as in 96,96,48")
        for size, least in zip(self.shape, (16, 16, 8), strict=True):
            _within("shape", size, least, 1024)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("imbalance", self.imbalance, 1.0, 1e6)
        _within("alpha", self.alpha, 1e-3, 1e6)
        _within("head_share", self.head_share, 0.0, 1.0)
        _within("vacant", self.vacant, 0, len(LESIONS))
        _within("unannotated", self.unannotated, 0, len(LESIONS) - self.vacant)

    def text(self) -> str:
        """Canonical JSON, equal for equal federations."""
        fields = dataclasses.asdict(self)
        if not self.held_out:
            del fields["held_out"]
        return json.dumps({"format": FORMAT, **fields}, sort_keys=True, indent=2) + "\n"

    def uid(self, *parts: str | int) -> str:
        """A DICOM UID (of the kind derived from UUIDs) that no other part and no other settings share."""
        digest = hashlib.sha256(self.text().encode()).hexdigest()
        return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, (digest, *parts)))).int}"


def _within(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(f"{value} is out of range", field=field, fix=f"choose from {low} to {high}")

"""Voxels with their place in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """An image and where it lies.

    ``voxels``: float32 ``(C, X, Y, Z)``; C is 1 but for colour. ``affine``: ``(4, 4)`` float64, voxel index ``(x, y, z, 1)`` to
    millimetres in the RAS frame of NIfTI. A photograph is ``(C, rows, columns, 1)`` with the identity.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.voxels.shape[1:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along x, y, z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

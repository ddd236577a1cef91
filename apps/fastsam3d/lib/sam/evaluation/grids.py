"""Whether two grids are the same, up to rounding in their files."""

from __future__ import annotations

import itertools

import numpy as np

from ..grid import Grid

_SHARE = 0.5


def apart_mm(first: Grid, second: Grid) -> str | None:
    """Says how two grids differ, None where they agree: equal shapes, and all corners within half a voxel."""
    if first.shape != second.shape:
        return f"{_size(second)} voxels instead of {_size(first)}"
    corners = np.array(list(itertools.product(*((0, n - 1) for n in first.shape))), dtype=np.float64)
    distance = float(np.linalg.norm(first.to_world(corners) - second.to_world(corners), axis=1).max())
    if distance > _SHARE * float(first.spacing_mm.min()):
        return f"the same shape, but up to {distance:.3g} mm apart in space"
    return None


def _size(grid: Grid) -> str:
    return " x ".join(str(n) for n in grid.shape)

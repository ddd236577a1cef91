"""The voxel grid of a scan: shape, position in space, orientation. Frames are explained in geometry.py."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a scan.

    Attributes:
        shape: (I, J, K), number of voxels.
        affine: (4, 4) float64, read-only: voxel index ijk -> RAS mm.

    Raises:
        ValueError: a shape without three positive numbers, or an affine that is not finite, not invertible or not 4x4.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self):
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid needs three positive sizes, got {self.shape}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise ValueError(f"an affine must be a finite 4x4 matrix with the last row 0 0 0 1, got {affine.tolist()}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise ValueError(f"an affine must have three independent axes, got {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) float64, distance of neighbouring voxels along i, j and k in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def to_world(self, points_ijk: np.ndarray) -> np.ndarray:
        """Maps voxel coordinates (N, 3) to RAS mm (N, 3)."""
        return apply_affine(self.affine, points_ijk)

    def to_voxel(self, points_mm: np.ndarray) -> np.ndarray:
        """Maps RAS mm (N, 3) to voxel coordinates (N, 3), not rounded."""
        return apply_affine(np.linalg.inv(self.affine), points_mm)

    def contains(self, points_ijk: np.ndarray) -> np.ndarray:
        """Tells for each of the (N, 3) points whether its nearest voxel is in the grid: (N,) bool, False for NaN."""
        rounded = np.floor(np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3) + 0.5)
        return ((rounded >= 0) & (rounded < np.array(self.shape))).all(axis=1)

    def canonical_axes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Finds the reordering that brings the axes closest to right, anterior, superior.

        The answer depends on the directions in space only: a scan stored with its axes swapped or flipped gets the
        same directions, exact ties (45 degrees) included.

        Returns:
            axes: axes[r] is the voxel axis to use as axis r.
            signs: signs[r] is -1 where that axis has to be flipped, else 1.
        """
        directions = self.affine[:3, :3] / self.spacing_mm
        best = None
        for axes in itertools.permutations(range(3)):
            chosen = directions[:, axes]
            signs = np.where(np.diag(chosen) < 0, -1, 1)
            # rounded so that ties stay ties; then the largest matrix in reading order decides
            rank = (round(float(np.abs(np.diag(chosen)).sum()), 6), tuple(np.round(chosen * signs, 6).ravel()))
            if best is None or rank > best[0]:
                best = (rank, axes, tuple(int(s) for s in signs))
        return best[1], best[2]

    def axcodes(self) -> tuple[str, str, str]:
        """Names the direction in which each voxel axis points most nearly, for example ("L", "P", "S")."""
        axes, signs = self.canonical_axes()
        codes = [""] * 3
        for letters, axis, sign in zip(("LR", "PA", "IS"), axes, signs):
            codes[axis] = letters[sign > 0]
        return tuple(codes)

    def reordered(self, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> "Grid":
        """Returns the grid of `reorder(array, axes, signs)`: the same voxels under another index."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for r, (axis, sign) in enumerate(zip(axes, signs)):
            matrix[axis, r] = sign
            matrix[axis, 3] = self.shape[axis] - 1 if sign < 0 else 0
        return Grid(tuple(self.shape[a] for a in axes), self.affine @ matrix)


def reorder(array: np.ndarray, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> np.ndarray:
    """Transposes an (I, J, K) array by `axes` and flips the new axes whose sign is -1 (a view)."""
    return array.transpose(axes)[tuple(slice(None, None, int(s)) for s in signs)]


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Maps points (N, 3) by a 4x4 matrix, float64."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    return points @ matrix[:3, :3].T + matrix[:3, 3]

"""Grids, lattices and patches: the only place where voxel coordinates are computed.

Frames: `_ijk` are voxel indices of the scan as its file stores it, `_mm` are world coordinates (RAS, millimetres),
`_patch` are node indices of the cubic patch that a model sees, whose axes are the scan's own axes reordered and flipped
to point as nearly as possible to right, anterior, superior. A voxel index denotes the voxel's centre; a voxel reaches
half a unit to either side. All maps are float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import sampling
from .grid import Grid, apply_affine, reorder

__all__ = ["Grid", "Lattice", "PatchFrame", "cut_begin", "reorder"]


@dataclass(frozen=True)
class Lattice:
    """A regular lattice of nodes whose axes are parallel to a scan's axes, possibly reordered and flipped.

    Node p along lattice axis r lies at the coordinate `anchor_ijk[r] + step[r] * (p - anchor_node[r])` of the scan's
    axis `axes[r]`, in voxels.

    Attributes:
        source: the scan's grid.
        shape: number of nodes along each lattice axis.
        spacing_mm: distance of neighbouring nodes in mm.
        axes: the scan's axis under each lattice axis.
        step: voxels from one node to the next, negative where the axis is flipped; in lattice axis order.
        anchor_node: a node index for each lattice axis (it may lie outside the lattice).
        anchor_ijk: the voxel coordinate of that node, in lattice axis order.
    """

    source: Grid
    shape: tuple[int, int, int]
    spacing_mm: float
    axes: tuple[int, int, int]
    step: tuple[float, float, float]
    anchor_node: tuple[int, int, int]
    anchor_ijk: tuple[float, float, float]

    @classmethod
    def resampled(cls, source: Grid, spacing_mm: float) -> "Lattice":
        """Covers the whole scan at a new spacing, in the scan's own axis order.

        As published: ceil(n * s / spacing) nodes, outer corners aligned. A size that is a whole number up to rounding
        stays that number.
        """
        _check_spacing(spacing_mm)
        step = tuple(float(spacing_mm / s) for s in source.spacing_mm)
        shape = tuple(max(1, math.ceil(n / s - 1e-6)) for n, s in zip(source.shape, step))
        return cls(source, shape, float(spacing_mm), (0, 1, 2), step, (0, 0, 0), tuple(0.5 * s - 0.5 for s in step))

    def canonical(self) -> "Lattice":
        """Returns the same nodes in the axis order and directions closest to RAS."""
        axes, signs = self.grid.canonical_axes()
        step, node = [], []
        for axis, sign in zip(axes, signs):
            step.append(sign * self.step[axis])
            node.append(self.anchor_node[axis] if sign > 0 else self.shape[axis] - 1 - self.anchor_node[axis])
        pick = [tuple(values[a] for a in axes) for values in (self.shape, self.axes, self.anchor_ijk)]
        return Lattice(self.source, pick[0], self.spacing_mm, pick[1], tuple(step), tuple(node), pick[2])

    def cut(self, begin: tuple[int, int, int], size: int) -> "PatchFrame":
        """Returns the cube of `size` nodes that starts at node `begin`; it may reach beyond the lattice."""
        node = tuple(int(a) - int(b) for a, b in zip(self.anchor_node, begin))
        return PatchFrame(self.source, (size,) * 3, self.spacing_mm, self.axes, self.step, node, self.anchor_ijk)

    @property
    def grid(self) -> Grid:
        """The lattice as a grid: node index -> RAS mm."""
        return Grid(self.shape, self.source.affine @ self._to_source_matrix())

    def to_source(self, points_patch: np.ndarray) -> np.ndarray:
        """Maps node coordinates (N, 3) to the scan's voxel coordinates (N, 3), float64."""
        return apply_affine(self._to_source_matrix(), points_patch)

    def to_patch(self, points_ijk: np.ndarray) -> np.ndarray:
        """Maps the scan's voxel coordinates (N, 3) to node coordinates (N, 3), float64."""
        points = np.asarray(points_ijk, dtype=np.float64).reshape(-1, 3)[:, list(self.axes)]
        return (points - np.array(self.anchor_ijk)) / np.array(self.step) + np.array(self.anchor_node)

    def inside_axes(self) -> tuple[slice, slice, slice]:
        """The nodes of each axis that lie inside the scan; a node of the lattice is inside where all three are.

        Within half a voxel of the outer face counts as inside.
        """
        return tuple(sampling.inside_range(self.nodes_ijk(r), self.source.shape[self.axes[r]]) for r in range(3))

    def inside(self) -> np.ndarray:
        """Returns a bool array of the lattice's shape: which nodes lie inside the scan."""
        result = np.zeros(self.shape, dtype=bool)
        result[self.inside_axes()] = True
        return result

    def crop(self, volume: np.ndarray, fill: float = 0.0, order: int = 1) -> np.ndarray:
        """Samples the scan at every node; only the part of the scan under the lattice is read.

        Args:
            volume: (I, J, K) array of the scan, any real dtype and memory order.
            fill: value of the nodes outside the scan.
            order: 1 linear interpolation, 0 nearest neighbour (halves upwards).

        Returns:
            Array of the lattice's shape, C-ordered: float32 for order 1, the scan's dtype for order 0.

        Raises:
            ValueError: the volume's shape is not the scan's, or an unknown order.
        """
        if volume.shape != self.source.shape:
            raise ValueError(f"the volume must have the grid's shape {self.source.shape}, got {volume.shape}")
        _check_order(order)
        inside = self.inside_axes()
        result = np.full(self.shape, fill, dtype=np.float32 if order else volume.dtype)
        if any(s.stop == s.start for s in inside):
            return result
        coordinates = [self.nodes_ijk(r)[inside[r]] for r in range(3)]
        view = volume.transpose(self.axes)
        if order:
            sampling.linear(view, coordinates, out=result[inside])
        else:
            result[inside] = sampling.nearest(view, coordinates)
        return result

    def paste(
        self, values: np.ndarray, threshold: float = 0.0, order: int = 1
    ) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Brings a patch back to the scan's voxels and thresholds it there.

        Only the voxels near nodes above the threshold are computed; all others, and those outside the lattice, are 0.

        Args:
            values: array of the lattice's shape, for example logits.
            threshold: a voxel is 1 where its interpolated value is greater.
            order: 1 interpolates the values linearly, 0 takes the nearest node's.

        Returns:
            mask_box: uint8 (i, j, k) box of the scan, F-ordered; shape (0, 0, 0) when nothing lies above the threshold.
            corner_ijk: the scan's voxel at the box's low corner.

        Raises:
            ValueError: the values' shape is not the lattice's, or an unknown order.
        """
        if values.shape != self.shape:
            raise ValueError(f"the values must have the lattice's shape {self.shape}, got {values.shape}")
        _check_order(order)
        ranges, coordinates, needed = self.reached(sampling.bounding_box(values > threshold) or ())
        mask = np.zeros([s.stop - s.start for s in ranges], dtype=np.uint8, order="F")
        corner = tuple(s.start for s in ranges)
        if mask.size == 0:
            return np.zeros((0, 0, 0), dtype=np.uint8), (0, 0, 0)
        view = values[tuple(needed)].transpose(np.argsort(self.axes))  # in the scan's axis order
        if order == 0:
            mask[:] = sampling.nearest(view, coordinates) > threshold
            return mask, corner
        slabs = sampling.linear_slabs(np.ascontiguousarray(view.T), coordinates[::-1])
        for plane, slab in zip(mask.T, slabs):
            np.greater(slab, threshold, out=plane.view(bool))
        return mask, corner

    def reached(self, spans: Sequence[slice]) -> tuple[list[slice], list[np.ndarray], list[slice]]:
        """The voxels of the scan whose interpolated values may come from given nodes.

        Args:
            spans: the nodes along each lattice axis, or nothing for none.

        Returns:
            ranges: of those voxels, for each axis of the scan.
            coordinates: theirs along each axis of the scan, in nodes that count from `needed`.
            needed: the nodes from which their values are interpolated, for each lattice axis.
        """
        ranges, coordinates, needed = [slice(0, 0)] * 3, [np.zeros(0)] * 3, [slice(0, 0)] * 3
        for r, span in enumerate(spans):
            nodes = self._voxels_patch(r)
            lattice = sampling.inside_range(nodes, self.shape[r])
            reach = (nodes > span.start - 1) & (nodes < span.stop)
            reach[: lattice.start] = reach[lattice.stop :] = False
            ranges[self.axes[r]] = sampling.true_range(reach)
            needed[r] = slice(max(0, span.start - 1), span.stop + 1)
            coordinates[self.axes[r]] = nodes[reach] - needed[r].start
        return ranges, coordinates, needed

    def paste_values(self, values: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Brings a patch of numbers back to the scan's voxels, linear interpolation.

        Args:
            values: array of the lattice's shape.

        Returns:
            box: float32 (i, j, k) of every voxel of the scan that lies in the lattice.
            corner_ijk: the scan's voxel at the box's low corner.

        Raises:
            ValueError: the values' shape is not the lattice's.
        """
        if values.shape != self.shape:
            raise ValueError(f"the values must have the lattice's shape {self.shape}, got {values.shape}")
        ranges, coordinates = [slice(0, 0)] * 3, [np.zeros(0)] * 3
        for r, axis in enumerate(self.axes):
            nodes = self._voxels_patch(r)
            ranges[axis] = sampling.inside_range(nodes, self.shape[r])
            coordinates[axis] = nodes[ranges[axis]]
        if any(s.stop == s.start for s in ranges):
            return np.zeros((0, 0, 0), dtype=np.float32), (0, 0, 0)
        view = values.transpose(np.argsort(self.axes))  # in the scan's axis order
        return sampling.linear(view, coordinates), tuple(s.start for s in ranges)

    def nodes_ijk(self, r: int) -> np.ndarray:
        """Voxel coordinate of every node along lattice axis r."""
        return self.anchor_ijk[r] + self.step[r] * (np.arange(self.shape[r]) - self.anchor_node[r])

    def _voxels_patch(self, r: int) -> np.ndarray:
        """Node coordinate of every voxel along the scan's axis under lattice axis r."""
        voxels = np.arange(self.source.shape[self.axes[r]])
        return (voxels - self.anchor_ijk[r]) / self.step[r] + self.anchor_node[r]

    def _to_source_matrix(self) -> np.ndarray:
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for r, axis in enumerate(self.axes):
            matrix[axis, r] = self.step[r]
            matrix[axis, 3] = self.anchor_ijk[r] - self.step[r] * self.anchor_node[r]
        return matrix


@dataclass(frozen=True)
class PatchFrame(Lattice):
    """The cubic lattice that a model sees, placed around a point of a scan."""

    @property
    def size(self) -> int:
        """Nodes along each edge."""
        return self.shape[0]

    @property
    def patch_grid(self) -> Grid:
        """The patch as a grid: node index -> RAS mm."""
        return self.grid

    @classmethod
    def around(
        cls, source: Grid, centre_ijk, size: int = 128, spacing_mm: float = 1.5, lattice: str = "click"
    ) -> "PatchFrame":
        """Places a patch around a voxel of the scan.

        Args:
            source: the scan's grid.
            centre_ijk: (3,) voxel coordinates, rounded to the nearest voxel; halves towards right, anterior, superior,
                so that the choice does not depend on how the scan is stored.
            size: nodes along each edge.
            spacing_mm: distance of the nodes.
            lattice: "click" puts node size // 2 exactly on that voxel, so the patch does not depend on how the scan is
                stored. "corner", as published: the nodes are those of the whole scan resampled with aligned outer
                corners and canonicalised; the cube is cut from (or padded around) them, centred on the node nearest to
                the voxel.

        Raises:
            ValueError: a centre that is not a finite point, an edge or a spacing that is not positive, or an unknown
                lattice.
        """
        centre = np.asarray(centre_ijk, dtype=np.float64).reshape(-1)
        if centre.shape != (3,) or not np.isfinite(centre).all():
            raise ValueError(f"a centre must be three finite voxel coordinates, got {centre_ijk}")
        if int(size) < 1:
            raise ValueError(f"a patch must be at least one node wide, got {size}")
        _check_spacing(spacing_mm)
        axes, signs = source.canonical_axes()
        up = np.array([signs[axes.index(a)] for a in range(3)])
        centre = up * np.floor(up * centre + 0.5)
        if lattice == "corner":
            nodes = Lattice.resampled(source, spacing_mm).canonical()
            node = np.floor(nodes.to_patch(centre)[0] + 0.5).astype(int)
            return nodes.cut(cut_begin(node, node, size), int(size))
        if lattice != "click":
            raise ValueError(f'a lattice must be "click" or "corner", got {lattice!r}')
        step = tuple(float(sign * spacing_mm / source.spacing_mm[a]) for a, sign in zip(axes, signs))
        anchor = tuple(float(centre[a]) for a in axes)
        return cls(source, (int(size),) * 3, float(spacing_mm), axes, step, (int(size) // 2,) * 3, anchor)


def cut_begin(low: np.ndarray, high: np.ndarray, size: int) -> tuple[int, int, int]:
    """First node of the cube of `size` nodes centred on the box with inclusive corners `low`, `high`, as published."""
    return tuple(math.ceil((int(a) + int(b)) / 2 - size / 2) for a, b in zip(low, high))


def _check_spacing(spacing_mm: float) -> None:
    if not (np.isfinite(spacing_mm) and spacing_mm > 0):
        raise ValueError(f"a spacing must be a positive number of mm, got {spacing_mm}")


def _check_order(order: int) -> None:
    if order not in (0, 1):
        raise ValueError(f"the interpolation order must be 0 (nearest) or 1 (linear), got {order}")

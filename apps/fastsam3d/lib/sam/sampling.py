"""Separable resampling of three-dimensional arrays.

The axes of a model patch are parallel to the axes of the scan, so trilinear interpolation splits into three
one-dimensional ones. This file holds those kernels; it knows nothing about spacings or orientations (see geometry.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np

INSIDE_TOLERANCE = 1e-6
"""Slack, in voxels, when a coordinate is compared with the outer face of an array (absorbs float64 rounding)."""


def inside_range(coordinates: np.ndarray, length: int) -> slice:
    """Returns the run of coordinates that lie inside an axis of `length` voxels.

    Inside means within half a voxel of the outer voxel centres, faces included: -0.5 <= x <= length - 0.5.

    Args:
        coordinates: (P,) float64, monotonic, in voxels of that axis.
        length: number of voxels of the axis.
    """
    inside = (coordinates >= -0.5 - INSIDE_TOLERANCE) & (coordinates <= length - 0.5 + INSIDE_TOLERANCE)
    return true_range(inside)


def true_range(mask: np.ndarray) -> slice:
    """Returns the slice from the first to the last True of a (P,) bool vector; slice(0, 0) when there is none."""
    hits = np.flatnonzero(mask)
    return slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Returns the smallest box of slices that holds every True of an (I, J, K) bool array; None when there is none."""
    if mask.strides[0] < mask.strides[-1]:  # reduce along the axis that is contiguous in memory
        box = bounding_box(mask.transpose(2, 1, 0))
        return None if box is None else box[::-1]
    rows = mask.any(axis=2)
    box = (true_range(rows.any(axis=1)), true_range(rows.any(axis=0)))
    if box[0].stop == 0:
        return None
    return (*box, true_range(mask[box].any(axis=(0, 1))))


def nearest_indices(coordinates: np.ndarray, length: int) -> np.ndarray:
    """Rounds (P,) float64 coordinates to voxel indices, halves upwards, clamped into the axis."""
    return np.clip(np.floor(coordinates + 0.5), 0, length - 1).astype(np.intp)


def nearest(volume: np.ndarray, coordinates: Sequence[np.ndarray]) -> np.ndarray:
    """Samples a volume at the grid spanned by three coordinate vectors, nearest neighbour.

    Args:
        volume: (I, J, K), any dtype.
        coordinates: one (P,) float64 vector of voxel coordinates for each axis; values outside are clamped.

    Returns:
        (P0, P1, P2) array of the volume's dtype.
    """
    return volume[np.ix_(*(nearest_indices(c, n) for c, n in zip(coordinates, volume.shape)))]


def linear(volume: np.ndarray, coordinates: Sequence[np.ndarray], out: np.ndarray | None = None) -> np.ndarray:
    """Samples a volume at the grid spanned by three coordinate vectors, linear interpolation.

    Only the voxels between the smallest and the largest coordinate are read.

    Args:
        volume: (I, J, K), any real dtype and memory order.
        coordinates: one (P,) float64 vector of voxel coordinates for each axis; values outside are clamped.
        out: optional (P0, P1, P2) float32 array that receives the result.

    Returns:
        (P0, P1, P2) float32.
    """
    if out is None:
        out = np.empty([len(c) for c in coordinates], dtype=np.float32)
    order = sorted(range(3), key=lambda a: -abs(volume.strides[a]))  # slowest axis in memory first
    target = out.transpose(order)
    for index, slab in enumerate(linear_slabs(volume.transpose(order), [coordinates[a] for a in order])):
        target[index] = slab
    return out


def linear_slabs(volume: np.ndarray, coordinates: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the slabs of `linear` along axis 0, so that a caller need not hold all of them.

    Args:
        volume: (A, B, C), any real dtype; fastest when axis 2 is contiguous.
        coordinates: three (P,) float64 vectors, clamped where they lie outside.

    Yields:
        (P1, P2) float32, one for each coordinate of axis 0; valid until the next one is asked for.
    """
    low, high, weight = neighbours(coordinates[0], volume.shape[0])
    rows = _RowPlan(coordinates[1], volume.shape[1])
    columns = _ColumnPlan(coordinates[2], volume.shape[2])
    held: dict[int, np.ndarray] = {}
    for a, b, w in zip(low.tolist(), high.tolist(), weight.tolist()):
        needed = {a, b} if w else {a}
        held = {k: v for k, v in held.items() if k in (a, b)}
        for k in needed - held.keys():
            held[k] = columns.apply(rows.apply(volume[k, :, columns.span]))
        yield _mix(held[a], held[b], np.float32(1.0 - w), np.float32(w)) if w else held[a]


def neighbours(coordinates: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower voxel, upper voxel (both clamped) and the upper one's weight for each coordinate."""
    clamped = np.clip(coordinates, 0, length - 1)
    floor = np.floor(clamped)
    low = floor.astype(np.intp)
    return low, np.minimum(low + 1, length - 1), clamped - floor


def _mix(low: np.ndarray, high: np.ndarray, weight_low: np.ndarray, weight_high: np.ndarray) -> np.ndarray:
    result = low * weight_low
    result += high * weight_high
    return result


class _RowPlan:
    """Interpolation along axis 0 of two-dimensional slices, the same for every slice."""

    def __init__(self, coordinates: np.ndarray, length: int):
        low, high, weight = neighbours(coordinates, length)
        used = np.unique(np.concatenate([low, high]))
        contiguous = used.size == used[-1] - used[0] + 1
        self.used = slice(int(used[0]), int(used[-1]) + 1) if contiguous else used
        self.low, self.high = np.searchsorted(used, low), np.searchsorted(used, high)
        self.weight_low = (1.0 - weight).astype(np.float32)[:, None]
        self.weight_high = weight.astype(np.float32)[:, None]
        self.whole = not weight.any()

    def apply(self, plane: np.ndarray) -> np.ndarray:
        plane = plane[self.used].astype(np.float32)
        low = plane.take(self.low, axis=0)
        if self.whole:
            return low
        return _mix(low, plane.take(self.high, axis=0), self.weight_low, self.weight_high)


class _ColumnPlan:
    """Interpolation along axis 1; `span` is the part of the axis that has to be handed in."""

    def __init__(self, coordinates: np.ndarray, length: int):
        low, high, weight = neighbours(coordinates, length)
        start = int(min(low.min(), high.min()))
        self.span = slice(start, int(max(low.max(), high.max())) + 1)
        self.low, self.high = low - start, high - start
        self.weight_low = (1.0 - weight).astype(np.float32)
        self.weight_high = weight.astype(np.float32)
        self.whole = not weight.any()

    def apply(self, plane: np.ndarray) -> np.ndarray:
        low = plane.take(self.low, axis=1)
        if self.whole:
            return low
        return _mix(low, plane.take(self.high, axis=1), self.weight_low, self.weight_high)

"""Reading scans, and the published preprocessing step by step.

Serving crops the patch straight out of the scan (PatchFrame.crop). The functions here do the same in the published
order (resample, canonicalise, crop or pad, bring back), over the same lattices, so that both can be compared.
"""

import numpy as np

from .geometry import Grid, Lattice, PatchFrame, cut_begin, reorder
from .intensity import normalise
from .mask_io import write_mask
from .sampling import bounding_box
from .volume_io import MAX_BYTES, Volume, VolumeError, read_volume

__all__ = [
    "MAX_BYTES",
    "Volume",
    "VolumeError",
    "canonical_lattice",
    "crop_or_pad",
    "frame_around_mask",
    "label_back",
    "network_input",
    "read_volume",
    "resample_published",
    "to_canonical",
    "write_mask",
]


def network_input(volume: np.ndarray, frame: PatchFrame, floor: float | None, intensity: str) -> np.ndarray:
    """What the network sees of a patch, in serving, training and evaluation: cropped, freed of padding, normalised.

    Args:
        volume: (I, J, K) array of the scan.
        floor: see intensity.padding_floor. intensity: see SamSpec.

    Returns:
        (channels, S, S, S) float32.
    """
    patch, inside = frame.crop(volume), frame.inside()
    if floor is not None:
        np.maximum(patch, floor, out=patch, where=inside)
    return normalise(patch, inside, intensity)


def resample_published(
    array: np.ndarray, grid: Grid, spacing_mm: float = 1.5, order: int = 1
) -> tuple[np.ndarray, Grid]:
    """Resamples a whole scan, axes kept: ceil(n * s / spacing_mm) voxels an axis, outer corners aligned.

    Args:
        array: (I, J, K), any real dtype.
        grid: its grid.
        spacing_mm: the new voxel size.
        order: 1 linear (images, float32 result), 0 nearest (labels, dtype kept).

    Returns:
        The new array and its grid.
    """
    lattice = Lattice.resampled(grid, spacing_mm)
    return lattice.crop(array, order=order), lattice.grid


def to_canonical(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Reorders and flips the axes to the directions closest to RAS; a view of the array and its grid."""
    axes, signs = grid.canonical_axes()
    return reorder(array, axes, signs), grid.reordered(axes, signs)


def crop_or_pad(array: np.ndarray, begin: tuple[int, int, int], size: int, fill: float = 0.0) -> np.ndarray:
    """Cuts the cube of `size` voxels that starts at voxel `begin`, padded with `fill` where it leaves the array.

    Args:
        array: (I, J, K).
        begin: first voxel along each axis, may be negative; see geometry.cut_begin for the published choice.
        size: edge of the cube.

    Returns:
        (size, size, size) array of the same dtype.
    """
    result = np.full((size,) * 3, fill, dtype=array.dtype)
    kept = [slice(max(0, b), max(0, min(n, b + size))) for b, n in zip(begin, array.shape)]
    target = tuple(slice(k.start - b, k.start - b + max(0, k.stop - k.start)) for k, b in zip(kept, begin))
    result[target] = array[tuple(kept)]
    return result


def canonical_lattice(grid: Grid, spacing_mm: float = 1.5) -> Lattice:
    """The nodes of a scan after `resample_published` and `to_canonical`."""
    return Lattice.resampled(grid, spacing_mm).canonical()


def frame_around_mask(mask: np.ndarray, grid: Grid, size: int = 128, spacing_mm: float = 1.5) -> PatchFrame:
    """Places the patch as published training does: centred on the bounding box of a mask.

    Args:
        mask: (I, J, K), non-zero voxels count.
        grid: the scan's grid.

    Raises:
        ValueError: nothing of the mask is left after nearest-neighbour resampling.
    """
    lattice = canonical_lattice(grid, spacing_mm)
    box = bounding_box(lattice.crop(mask, order=0) != 0)
    if box is None:
        raise ValueError(f"the mask must keep a voxel at {spacing_mm} mm, got {np.count_nonzero(mask)} stored voxels")
    return lattice.cut(cut_begin([s.start for s in box], [s.stop - 1 for s in box], size), size)


def label_back(label_patch: np.ndarray, frame: PatchFrame) -> np.ndarray:
    """Brings a patch of labels 0 and 1 to the scan's voxels, nearest neighbour; 0 outside the patch.

    Args:
        label_patch: (S, S, S).
        frame: the patch's frame.

    Returns:
        (I, J, K) uint8.
    """
    box, corner = frame.paste(label_patch, threshold=0.5, order=0)
    result = np.zeros(frame.source.shape, dtype=np.uint8)
    result[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
    return result

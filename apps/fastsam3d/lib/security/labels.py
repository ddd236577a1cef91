"""Whether a label map that a client sends belongs to its image, before it is stored."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np

from ..sam.geometry import Grid
from ..sam.volume_io import Volume, VolumeError, read_grid, read_volume

_APART = 0.5  # voxels
_LARGEST_VALUE = 65535


def check_label(path: Path, image: Path, max_bytes: int) -> None:
    """Reads a label map and compares its grid with the image's.

    Args:
        path: the label map.
        image: the image's file, or the folder of a DICOM series.
        max_bytes: the most bytes that the label's voxels may take.

    Raises:
        VolumeError: it is damaged, holds other values than whole numbers from 0 to 65535, or lies elsewhere.
        TooLargeError: it takes more than max_bytes.
    """
    label = read_volume(path, max_bytes)
    _check_values(label)
    grids = [read_volume(image).grid] if image.is_dir() else _grids(image)
    if label.grid.shape != grids[0].shape:
        raise VolumeError(
            f"a label needs its image's sizes {grids[0].shape}, got {label.grid.shape}; "
            "export it with the image as reference"
        )
    apart = min(_distance(label.grid, grid) for grid in grids)
    if apart > _APART:
        raise VolumeError(
            f"a label must lie on its image, this one is up to {apart:.1f} voxels away; was it made for another image, "
            "or saved in another voxel order? Export it with the image as reference"
        )


def _check_values(label: Volume) -> None:
    array = label.array
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    if not whole or array.min() < 0 or array.max() > _LARGEST_VALUE:
        raise VolumeError(
            f"a label must hold whole numbers from 0 to {_LARGEST_VALUE}, got {array.min():g} to {array.max():g}"
            + ("" if whole else ", not all whole")
        )


def _grids(image: Path) -> list[Grid]:
    """The image's grid; of a NIfTI file whose qform and sform differ both, as readers differ in which they take."""
    grids = [read_grid(image)]
    if image.name.lower().endswith((".nii", ".nii.gz")):
        header = nib.load(image).header
        for read in (header.get_qform, header.get_sform):
            with suppress(ValueError):  # one that is damaged is not the one that the image was read by
                matrix = read()
                if abs(np.linalg.det(matrix[:3, :3])) > 0:
                    grids.append(Grid(grids[0].shape, matrix))
    return grids


def _distance(one: Grid, other: Grid) -> float:
    """The largest distance between the places of the same corner voxel in two grids of one shape, in voxels."""
    corners = np.array(np.meshgrid(*([0, n - 1] for n in one.shape), indexing="ij"), float).reshape(3, -1).T
    return float(np.abs(other.to_voxel(one.to_world(corners)) - corners).max())

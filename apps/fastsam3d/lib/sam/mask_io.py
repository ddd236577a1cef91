"""Masks, and maps of numbers, to files, whole or not at all."""

import gzip
import os
from pathlib import Path

import numpy as np

from .files import whole_file
from .grid import Grid
from .headers import nifti_header, nrrd_header

_LEVEL = 1
"""Masks compress to almost nothing at any level; the first is several times faster than the default."""


def write_mask(path: str | os.PathLike, mask: np.ndarray, grid: Grid, compress: bool = True) -> None:
    """Writes a mask beside or for its scan. A reader sees the old file or the whole new one, never a part.

    Args:
        path: ends in .nii.gz, .nii or .nrrd; the folder exists.
        mask: (I, J, K) bool or uint8, in the scan's stored axis order.
        grid: the scan's grid.
        compress: gzip the voxels of a .nrrd (a .nii.gz always is, a .nii never).

    Raises:
        ValueError: another ending, another shape than the grid's, or another dtype.
        OSError: the folder is missing or cannot be written.
    """
    mask = np.asarray(mask)
    if mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"a mask must be bool or uint8, got {mask.dtype}")
    _write(Path(path), np.asfortranarray(mask).view(np.uint8), grid, compress)


def write_map(path: str | os.PathLike, values: np.ndarray, grid: Grid, compress: bool = True) -> None:
    """Writes numbers on a scan's grid as float32; otherwise as `write_mask`."""
    _write(Path(path), np.asfortranarray(values, dtype="<f4"), grid, compress)


def _write(path: Path, array: np.ndarray, grid: Grid, compress: bool) -> None:
    if array.shape != grid.shape:
        raise ValueError(f"a mask or map must have its grid's shape {grid.shape}, got {array.shape}")
    voxels = array.ravel(order="F").view(np.uint8).data  # i runs fastest in both formats
    name = path.name.lower()
    if name.endswith(".nrrd"):
        header = nrrd_header(grid, array.dtype, "gzip" if compress else "raw")
        _write_whole(path, header, b"", voxels, compress)
    elif name.endswith((".nii", ".nii.gz")):
        _write_whole(path, b"", nifti_header(grid, array.dtype), voxels, name.endswith(".gz"))
    else:
        raise ValueError(f"the file of a mask or map must end in .nii.gz, .nii or .nrrd, got {path.name}")


def _write_whole(path: Path, plain: bytes, header: bytes, voxels: memoryview, compress: bool) -> None:
    """Writes `plain` as it is, then `header` and `voxels`, gzipped on request, to a new file that takes the path."""
    with whole_file(path) as file:
        file.write(plain)
        if compress:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as stream:
                stream.write(header)
                stream.write(voxels)
        else:
            file.write(header)
            file.write(voxels)

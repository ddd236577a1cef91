"""Scans and labels of the CVPR "segment anything in medical images" challenges: NumPy archives.

An archive holds `imgs` (D, H, W), often `gts` of the same shape, and `spacing` (x, y, z) in mm, the order in which ITK
gives it (the challenge's own surface metric takes it in the order of the array). The scan's voxel order is (W, H, D) = (x, y, z). Archives
carry no position in space; axes are taken as those of ITK (left, posterior, superior).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .grid import Grid
from .volume_io import MAX_BYTES, TooLargeError, Volume, VolumeError, read_volume


def read_scan(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Volume:
    """`read_volume` that also reads the scan of an .npz archive.

    Raises:
        VolumeError: as `read_volume`; for an archive without a three-dimensional `imgs`, or with pickled content in it.
    """
    return _read(Path(path), "imgs", max_bytes) if str(path).lower().endswith(".npz") else read_volume(path, max_bytes)


def read_labels(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Volume:
    """`read_volume` that also reads the label map `gts` of an .npz archive.

    Raises:
        VolumeError: as `read_scan`.
    """
    return _read(Path(path), "gts", max_bytes) if str(path).lower().endswith(".npz") else read_volume(path, max_bytes)


def holds(path: Path, key: str) -> bool:
    """Whether an archive has an array of that name; False for what is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{key}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _read(path: Path, key: str, max_bytes: int) -> Volume:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if f"{key}.npy" not in sizes:
            raise VolumeError(f"{path.name}: an archive must hold an array {key}, found {', '.join(sorted(sizes))}")
        if sizes[f"{key}.npy"] > max_bytes:
            raise TooLargeError(f"{path.name}: {key} may take {max_bytes} bytes, it has {sizes[f'{key}.npy']}")
        with np.load(path, allow_pickle=False) as archive:
            array = archive[key]
            spacing = np.asarray(archive["spacing"], dtype=np.float64) if "spacing.npy" in sizes else np.ones(3)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise VolumeError(f"{path.name}: not a whole .npz archive: {error}") from error
    except ValueError as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"{path.name}: {key} or spacing is not a plain array: {error}") from error
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise VolumeError(f"{path.name}: {key} must be numbers (depth, height, width), got {array.shape} {array.dtype}")
    if spacing.shape != (3,):
        raise VolumeError(f"{path.name}: spacing must be three numbers in mm, got shape {spacing.shape}")
    array = array.astype({"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype)).transpose(2, 1, 0)
    try:
        grid = Grid(array.shape, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    except ValueError as error:
        raise VolumeError(f"{path.name}: {error}") from error
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        finite = array[np.isfinite(array)]
        if not finite.size:
            raise VolumeError(f"{path.name}: {key} needs at least one finite value, all {bad} are NaN or infinite")
        array = np.where(np.isfinite(array), array, finite.min())
    warnings = (f"{bad} voxels were NaN or infinite and were set to the smallest value",) if bad else ()
    return Volume(array, grid, warnings, nonfinite=bad)

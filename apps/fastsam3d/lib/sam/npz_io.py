"""Scans and labels of the CVPR "segment anything in medical images" challenges: NumPy archives.

An archive holds `imgs` (D, H, W), or (H, W) or (H, W, 3) for one image, often `gts`, and `spacing` (x, y, z) in mm, the
order in which ITK gives it (the challenge's own surface metric takes it in the order of the array). The voxel order here
is (W, H, D) = (x, y, z). Archives carry no position in space; axes are taken as those of ITK (left, posterior, superior).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .grid import Grid
from .volume_io import MAX_BYTES, TooLargeError, Volume, VolumeError


def array_names(path: Path) -> frozenset[str] | None:
    """The arrays of an archive; None for what is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return None


def read_npz(path: str | os.PathLike, key: str, max_bytes: int = MAX_BYTES, image: Path | None = None) -> Volume:
    """Reads one array of an archive: a volume, or a flat image as a volume of one slice (colours become their mean).

    Args:
        image: for labels in an archive of their own, the archive of the image, whose spacing counts where they have none.

    Raises:
        TooLargeError: the array takes more than max_bytes.
        VolumeError: no whole archive, no such array, pickled content, or no numbers of two or three axes.
    """
    path = Path(path)
    array, spacing = _arrays(path, key, max_bytes)
    if spacing is None and image is not None and not is_flat(array):
        spacing = _spacing(image)
    spacing = np.ones(3) if spacing is None else spacing
    if is_flat(array):
        array = (array.mean(axis=2).round().astype(array.dtype) if array.ndim == 3 else array)[None]
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise VolumeError(f"{path.name}: {key} must be numbers (depth, height, width), got {array.shape} {array.dtype}")
    if spacing.shape != (3,):
        raise VolumeError(f"{path.name}: spacing must be three numbers in mm, got shape {spacing.shape}")
    array = array.astype({"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype)).transpose(2, 1, 0)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        finite = array[np.isfinite(array)]
        if not finite.size:
            raise VolumeError(f"{path.name}: {key} needs at least one finite value, all {bad} are NaN or infinite")
        array = np.where(np.isfinite(array), array, finite.min())
    warnings = (f"{bad} voxels were NaN or infinite and were set to the smallest value",) if bad else ()
    try:
        grid = Grid(array.shape, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    except ValueError as error:
        raise VolumeError(f"{path.name}: {error}") from error
    return Volume(array, grid, warnings, nonfinite=bad)


def is_flat(array: np.ndarray) -> bool:
    """Whether an array of an archive is one image, (H, W) or (H, W, 3), rather than a stack (D, H, W)."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3 and array.shape[0] > 3)


def flat_pixels(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> np.ndarray | None:
    """`imgs` of an archive as it is stored where it is one image, else None.

    Raises:
        VolumeError: as `read_npz`.
    """
    array, _ = _arrays(Path(path), "imgs", max_bytes)
    return array if is_flat(array) else None


def _spacing(path: Path) -> np.ndarray | None:
    """The spacing of an archive; None where it has none or cannot be read, which whoever reads its image will say."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive["spacing"], dtype=np.float64) if "spacing" in archive.files else None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError):
        return None


def _arrays(path: Path, key: str, max_bytes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The array, and the spacing (None where there is none, or for a flat image)."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if f"{key}.npy" not in sizes:
            raise VolumeError(f"{path.name}: an archive must hold an array {key}, found {', '.join(sorted(sizes))}")
        if sizes[f"{key}.npy"] > max_bytes:
            raise TooLargeError(f"{path.name}: {key} may take {max_bytes} bytes, it has {sizes[f'{key}.npy']}")
        with np.load(path, allow_pickle=False) as archive:
            array = archive[key]
            spacing = None
            if "spacing.npy" in sizes and not is_flat(array):
                spacing = np.asarray(archive["spacing"], dtype=np.float64)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise VolumeError(f"{path.name}: not a whole .npz archive: {error}") from error
    except ValueError as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"{path.name}: {key} or spacing is not a plain array: {error}") from error
    return array, spacing

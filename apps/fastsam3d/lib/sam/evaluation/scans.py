"""Scans and label maps of every kind that can be evaluated: volumes, challenge archives, photographs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..grid import Grid
from ..intensity import grey_range, to_8bit
from ..npz_io import flat_pixels, read_npz
from ..photo_io import SUFFIXES, PhotoError, read_photo
from ..volume_io import MAX_BYTES, Volume, VolumeError, read_volume

_ARCHIVE = ".npz"


def read_scan(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Volume:
    """`read_volume` that also reads archives and photographs, these as a volume (W, H, 1) of one slice, grey.

    Raises:
        VolumeError: as `read_volume`.
    """
    kind = Path(path).suffix.lower()
    if kind == _ARCHIVE:
        return read_npz(path, "imgs", max_bytes)
    if kind not in SUFFIXES:
        return read_volume(path, max_bytes)
    pixels = _photo(Path(path))
    return _plane(pixels if pixels.ndim == 2 else pixels.mean(axis=2).round().astype(np.uint8))


def read_labels(path: str | os.PathLike, max_bytes: int = MAX_BYTES, image: Path | None = None) -> Volume:
    """The same for label maps: `gts` of an archive; the stored values of a photograph's label image.

    Args:
        image: the scan; an archive of labels without spacing has that of the scan's archive.

    Raises:
        VolumeError: as `read_volume`; a label image in colours.
    """
    kind = Path(path).suffix.lower()
    if kind == _ARCHIVE:
        archive = image if image is not None and image.suffix.lower() == _ARCHIVE else None
        return read_npz(path, "gts", max_bytes, archive)
    if kind not in SUFFIXES:
        return read_volume(path, max_bytes)
    try:
        with Image.open(path) as image:
            values = np.asarray(image)  # of a palette the indices
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VolumeError(f"{Path(path).name}: not a whole image file: {error}") from error
    if values.ndim != 2:
        raise VolumeError(f"{Path(path).name}: a label image must hold one number a pixel, got {values.shape}")
    return _plane(values.astype(np.uint8) if values.dtype == bool else values)


def flat_image(path: Path) -> np.ndarray | None:
    """(H, W) or (H, W, 3) uint8 of a photograph or an archive with one image; None for volumes.

    Raises:
        VolumeError: it cannot be read.
    """
    if path.suffix.lower() in SUFFIXES:
        return _photo(path)
    pixels = flat_pixels(path) if path.suffix.lower() == _ARCHIVE else None
    return None if pixels is None else to_8bit(pixels, *grey_range(pixels))


def _photo(path: Path) -> np.ndarray:
    try:
        return read_photo(path)
    except PhotoError as error:
        raise VolumeError(str(error)) from error


def _plane(pixels: np.ndarray) -> Volume:
    """(H, W) -> a volume (W, H, 1); a pixel counts as a millimetre."""
    array = np.ascontiguousarray(pixels.T)[..., None]
    return Volume(array, Grid(array.shape, np.diag([-1.0, -1.0, 1.0, 1.0])))

"""Whether the slices of a DICOM series stack to a volume: ITK stacks whatever it is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from .volume_io import VolumeError

UNEVEN = (
    "the slices are {low:.3g} to {high:.3g} mm apart (slices may be missing); positions and volumes are approximate"
)
_ANGLE = 1e-3
_GAP_SHARE = 0.01
_LATERAL_PIXELS = 0.5
_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


def check_series(files: Iterable[Path], name: str) -> tuple[str, ...]:
    """Looks at the geometry of the slices, without their pixels.

    Args:
        files: the DICOM files of one series, in any order.
        name: what to call it in messages.

    Returns:
        Warnings: uneven gaps.

    Raises:
        VolumeError: the slices are not parallel, of different sizes, at the same places (a 4D series), or shifted
            sideways against each other (gantry tilt): voxel indices would not tell where a voxel is.
    """
    slices = [found for file in files if (found := _header(file)) is not None]
    if len(slices) < 2:
        return ()
    first = slices[0]
    axes = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    for other in slices[1:]:
        if np.abs(np.array(other.ImageOrientationPatient, dtype=float).reshape(2, 3) - axes).max() > _ANGLE:
            raise VolumeError(f"{name}: the slices of a series must be parallel; this one mixes orientations, split it")
        if (other.Rows, other.Columns) != (first.Rows, first.Columns) or not np.allclose(
            np.array(other.PixelSpacing, float), np.array(first.PixelSpacing, float), rtol=_GAP_SHARE
        ):
            raise VolumeError(f"{name}: the slices of a series must be of one size and spacing; split the series")
    positions = np.array([s.ImagePositionPatient for s in slices], dtype=float)
    return _check_positions(positions, axes, np.array(first.PixelSpacing, float), name)


def _check_positions(positions: np.ndarray, axes: np.ndarray, spacing: np.ndarray, name: str) -> tuple[str, ...]:
    """As `check_series`. positions: (N, 3) mm; axes: (2, 3) unit vectors along a row and a column; spacing: (2,) mm."""
    along = positions @ np.cross(*axes)
    order = np.argsort(along)
    gaps = np.diff(along[order])
    if gaps.min() <= _GAP_SHARE * max(gaps.max(), 1e-6):
        raise VolumeError(
            f"{name}: each slice must have a place of its own; several lie at the same one (a 4D series?), split it"
        )
    sideways = (positions[order] - positions[order[0]]) @ axes.T / spacing[::-1]  # in pixels, along a row and a column
    if np.abs(sideways).max() > _LATERAL_PIXELS:
        raise VolumeError(
            f"{name}: the slices are shifted sideways by up to {np.abs(sideways).max():.1f} pixels (gantry tilt); "
            "resample the series to a straight stack first"
        )
    if np.ptp(gaps) > _GAP_SHARE * gaps.max():
        return (UNEVEN.format(low=gaps.min(), high=gaps.max()),)
    return ()


def _header(file: Path) -> pydicom.Dataset | None:
    """A slice's geometry, or None for a file that has none (other objects may lie in a folder)."""
    try:
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError, ValueError):
        return None
    return found if all(tag in found and found[tag].value not in (None, "") for tag in _TAGS) else None

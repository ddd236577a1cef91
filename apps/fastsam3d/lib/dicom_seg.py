"""DICOM segmentations: names by value when one is written, voxels by position when one is read.

MONAI Label names the segments of a new SEG by counting the values present, and reads one into a volume of the SEG's own
extent, without names. Here a value takes the name that was given for it, and what is read lies on the image's grid or is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from .sam.grid import Grid
from .sam.volume_io import VolumeError

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
_OFF_GRID = 0.1  # voxels


class Segments(NamedTuple):
    """A segmentation on an image's grid.

    Attributes:
        array: (I, J, K) uint16; 0 is background.
        names: value -> name.
        overlap: voxels that belong to more than one segment; the later one has them.
        program: what wrote the file (its ImplementationVersionName); "" if it does not say.
    """

    array: np.ndarray
    names: dict[int, str]
    overlap: int
    program: str = ""


def names_of(info: Mapping[str, Any], values: Sequence[int]) -> list[dict[str, Any]]:
    """What MONAI Label's writer needs: one entry of `label_info` for each value present, in ascending order of values.

    Args:
        info: a label's metadata: `label_info`, a list of {"name", "idx"}; without `idx` in any of them they count from 1.
            Or `params.label_names`, a dict of name -> value.
        values: those that the label holds, without 0.

    Raises:
        VolumeError: a value has no name.
    """
    entries = info.get("label_info")
    if not entries:
        known = (info.get("params") or {}).get("label_names") or {}
        entries = [{"name": name, "idx": value} for name, value in known.items()]
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries
    ):
        raise VolumeError('label_info must be a list such as [{"name": "liver", "idx": 1}]')
    numbered = any("idx" in entry for entry in entries)
    by_value = {entry.get("idx") if numbered else n: entry for n, entry in enumerate(entries, start=1)}
    lacking = [value for value in values if value not in by_value]
    if lacking:
        raise VolumeError(
            f"each value of a label needs a name in label_info; {lacking} have none of "
            f"{ {value: entry['name'] for value, entry in by_value.items()} }"
        )
    return [by_value[value] for value in values]


def read_segments(path: Path, grid: Grid) -> Segments:
    """Reads a binary SEG onto an image's grid by the positions of its frames.

    Raises:
        VolumeError: no binary segmentation, or a frame does not lie on the grid's voxels.
    """
    try:
        found = pydicom.dcmread(path)
        names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in found.SegmentSequence}
        program = str(found.file_meta.get("ImplementationVersionName") or "")
        if found.SegmentationType != "BINARY":
            raise VolumeError(f"a segmentation must be BINARY, got {found.SegmentationType}")
        frames = found.pixel_array.reshape(-1, found.Rows, found.Columns)
        groups = list(found.PerFrameFunctionalGroupsSequence)
        shared = found.SharedFunctionalGroupsSequence[0]
        array, overlap = np.zeros(grid.shape, np.uint16), 0
        for frame, group in zip(frames, groups, strict=True):
            rows, columns = np.nonzero(frame)
            places = _places(group, shared, grid, rows, columns)
            value = int(_group(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            overlap += int(np.count_nonzero(array[tuple(places.T)]))
            array[tuple(places.T)] = value
    except (AttributeError, KeyError, IndexError, TypeError, NotImplementedError, InvalidDicomError, OSError) as error:
        raise VolumeError(f"not a usable DICOM segmentation: {type(error).__name__}: {error}") from error
    return Segments(array, names, overlap, program)


def same_content(segments: Segments, array: np.ndarray, names: Sequence[tuple[int, str]]) -> bool:
    """Whether a segmentation holds exactly the voxels of a label map, each value as a segment of its name.

    Args:
        segments: numbered from 1 in the order of `names`.
        array: (I, J, K) of values.
        names: value and name of each value present, in ascending order of values.
    """
    if [segments.names[number] for number in sorted(segments.names)] != [name for _, name in names]:
        return False
    return all(
        np.array_equal(segments.array == number, array == value)
        for number, (value, _) in zip(sorted(segments.names), names)
    )


def _group(group: Any, shared: Any, name: str) -> Any:
    return (getattr(group, name, None) or getattr(shared, name))[0]


def _places(group: Any, shared: Any, grid: Grid, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(N, 3) voxel indices of a frame's pixels.

    Raises:
        VolumeError: the frame does not lie on the grid, or a pixel lies outside.
    """
    position = np.array(_group(group, shared, "PlanePositionSequence").ImagePositionPatient, float)
    axes = np.array(_group(group, shared, "PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
    down, across = (float(v) for v in _group(group, shared, "PixelMeasuresSequence").PixelSpacing)
    points_lps = position + columns[:, None] * across * axes[0] + rows[:, None] * down * axes[1]
    exact = grid.to_voxel(points_lps @ _LPS_FROM_RAS)
    nearest = np.rint(exact).astype(int)
    if np.abs(exact - nearest).max(initial=0) > _OFF_GRID:
        raise VolumeError(
            f"a segmentation must lie on its image's voxels, this one is up to {np.abs(exact - nearest).max():.2f} "
            "voxels off; was it made for another series?"
        )
    if (nearest < 0).any() or (nearest >= grid.shape).any():
        raise VolumeError("a segmentation must lie in its image; this one reaches outside")
    return nearest

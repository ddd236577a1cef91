"""Boxes that come as numbers, in files and on the command line: which of them can be asked, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_BOXES = 1000
"""The most boxes of one image or stack; each is an object of its own."""


@dataclass(frozen=True)
class CheckedBoxes:
    """What became of some boxes.

    Attributes:
        boxes: (M, 2 * axes) int64, low corner then high corner, the last ones included: those that can be asked.
        numbers: (M,) their places among the boxes given, from 1.
        faults: why the others cannot.
        warnings: what was changed in those that can.
    """

    boxes: np.ndarray
    numbers: np.ndarray
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def check_boxes(values: np.ndarray, sizes: Sequence[int]) -> CheckedBoxes:
    """Sorts corners, cuts boxes to the image, and leaves out what is not finite, outside, or without area.

    Args:
        values: (N, 4) x0, y0, x1, y1 for an image, (N, 6) x0, y0, z0, x1, y1, z1 for a stack. One slice of a stack is
            enough; an image needs two pixels along x and y.
        sizes: pixels along x, y (and slices along z).

    Raises:
        ValueError: another shape, no numbers, or more than MAX_BOXES.
    """
    axes = len(sizes)
    values = np.asarray(values)
    if values.dtype.kind not in "iuf" or values.ndim != 2 or values.shape[1] != 2 * axes:
        names = "x0, y0, x1, y1" if axes == 2 else "x0, y0, z0, x1, y1, z1"
        raise ValueError(
            f"boxes must be rows of {2 * axes} numbers {names}, got {values.dtype} of shape {values.shape}"
        )
    if len(values) > MAX_BOXES:
        raise ValueError(f"at most {MAX_BOXES} boxes are taken at once, got {len(values)}; split them")
    kept, numbers, faults, warnings = [], [], [], []
    for number, row in enumerate(values.astype(np.float64), start=1):
        fault, box, changes = _check(row, np.array(sizes))
        if fault:
            faults.append(f"box {number} {fault}, got {row.tolist()}")
            continue
        kept.append(box)
        numbers.append(number)
        warnings += [f"box {number} {change}" for change in changes]
    return CheckedBoxes(
        np.array(kept, dtype=np.int64).reshape(-1, 2 * axes), np.array(numbers, dtype=np.int64), tuple(faults), tuple(warnings)
    )  # fmt: skip


def _check(row: np.ndarray, sizes: np.ndarray) -> tuple[str | None, np.ndarray | None, list[str]]:
    axes, changes = len(sizes), []
    if not np.isfinite(row).all():
        return "must be finite numbers", None, changes
    corners = np.trunc(row.clip(-(2**31), 2**31)).astype(np.int64).reshape(2, axes)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (corners[0] > corners[1]).any():
        changes.append("had its corners the other way round; they were swapped")
    if (high < 0).any() or (low >= sizes).any():
        return f"must touch the image of {' x '.join(map(str, sizes))}", None, changes
    if (low < 0).any() or (high >= sizes).any():
        changes.append("reached past the image and was cut to it")
        low, high = np.maximum(low, 0), np.minimum(high, sizes - 1)
    if (low[:2] == high[:2]).any():
        return "must have an area of more than one row and column of pixels", None, changes
    return None, np.concatenate([low, high]), changes

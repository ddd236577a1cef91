"""Boxes around lung in slices of a CT.

Above the diaphragm a lung is a crescent around a dome, and most of its box is liver; a network for images fills such a box.
Densities tell what the box was drawn around: lung lies at its faces and not beyond them. Then the network is told so by a
click on the lung and one on what else the box holds, at the places that are farthest from the border between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .intensity import aerated

_AT_FACES = 0.25
"""So much more of the box's faces must be lung than of the lines beyond them, summed over the four. With the next rule it is in nine of
ten slices of the samples' lungs, and of all else in a CT of the abdomen in 1 of 26 of the duodenum and 1 of 21 of a rib."""

_BEYOND = 2  # pixels from a face to the line beyond it: between them lies the border
_DARK, _GAS = -400.0, -890.0
"""Hounsfield units: what is darker than the first is lung or gas, and gas if its median is below the second (measured: lungs -474 to
-870, gas in stomach and bowel -908 to -978)."""

_LEAST_DEPTH = {True: 1.0, False: 3.0}
"""Pixels from the border at which a click on the lung (True), and one beside it, is told."""


def box_means_lung(
    plane: np.ndarray, box_xy: tuple[int, int, int, int], on_object: Sequence[tuple[int, int]] = ()
) -> bool:
    """Whether a box was drawn around lung.

    Args:
        plane: (H, W) Hounsfield units of the slice. box_xy: first and last column and row, x0, y0, x1, y1.
        on_object: (x, y) of clicks that say what is meant: one on the dome means the dome, one on a vessel in the lung the lung.
    """
    x0, y0, x1, y1 = box_xy
    inside = plane[y0 : y1 + 1, x0 : x1 + 1]
    dark = inside[inside < _DARK]
    if not dark.size or np.median(dark) < _GAS:
        return False
    lung = aerated(plane)
    columns, rows = lung[:, x0 : x1 + 1], lung[y0 : y1 + 1].T  # both with the lines that cross the box's faces first
    more = sum(
        _share(lines, face) - _share(lines, face + away)
        for lines, low, high in ((columns, y0, y1), (rows, x0, x1))
        for face, away in ((low, -_BEYOND), (high, _BEYOND))
    )
    return more >= _AT_FACES and not _on_the_rest(lung, plane, box_xy, on_object)


def _share(lines: np.ndarray, index: int) -> float:
    """How much of a line is True; 0 beyond the image."""
    return float(lines[index].mean()) if 0 <= index < len(lines) else 0.0


def _on_the_rest(
    lung: np.ndarray, plane: np.ndarray, box_xy: tuple[int, int, int, int], clicks: Sequence[tuple[int, int]]
) -> bool:
    """Whether one of the clicks lies on what the click beside the lung would be put on."""
    x0, y0, x1, y1 = box_xy
    clicks = [(x - x0, y - y0) for x, y in clicks if x0 <= x <= x1 and y0 <= y <= y1]
    if not clicks:
        return False
    parts, _ = ndimage.label(~lung[y0 : y1 + 1, x0 : x1 + 1])
    rest = {parts[y - y0, x - x0] for x, y, on_lung in lung_clicks(plane, box_xy) if not on_lung}
    return any(parts[y, x] in rest for x, y in clicks)


def lung_clicks(plane: np.ndarray, box_xy: tuple[int, int, int, int]) -> list[tuple[int, int, bool]]:
    """A click on the lung in a box and one on what else it holds, each at least some pixels from the border between them.

    Args:
        plane, box_xy: see `box_means_lung`.

    Returns:
        (x, y, whether it lies on the lung), at most one of either.
    """
    x0, y0, x1, y1 = box_xy
    lung = aerated(plane[y0 : y1 + 1, x0 : x1 + 1])
    found = []
    for on_lung, part in ((True, ndimage.binary_opening(lung)), (False, ~lung)):
        depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
        if depth.max(initial=0) >= _LEAST_DEPTH[on_lung]:
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            found.append((x0 + int(x), y0 + int(y), on_lung))
    return found

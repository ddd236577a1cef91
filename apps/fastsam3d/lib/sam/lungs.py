"""Lung in a CT: where densities say more than the networks see.

Boxes in slices: above the diaphragm a lung is a crescent around a dome, and most of its box is liver; a network for images
fills such a box. Densities tell what the box was drawn around: lung lies at its faces and not beyond them. Then the network is
told so by a click on the lung and one on what else the box holds, at the places that are farthest from the border between the
two.

Clicks in volumes: from one click in a lung the network comes as far as the next large vessels, and calls nothing lung that is
not. So it is told clicks that lie deep in its own mask and far from those before, each with the mask that it gave for those,
as long as it thinks better of what it answers then. Elsewhere in the body that does harm
(docs/decisions/0004-clicks-in-lung.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .intensity import aerated, grey_range, is_ct, looks_like_lung
from .volume_io import Volume

_AT_FACES = 0.25
"""So much more of the box's faces must be lung than of the lines beyond them, summed over the four. With the next rule it is in nine of
ten slices of the samples' lungs, and of all else in a CT of the abdomen in 1 of 26 of the duodenum and 1 of 21 of a rib."""

_BEYOND = 2  # pixels from a face to the line beyond it: between them lies the border
_DARK, _GAS = -400.0, -890.0
"""Hounsfield units: what is darker than the first is lung or gas, and gas if its median is below the second (measured: lungs -474 to
-870, gas in stomach and bowel -908 to -978)."""

_LEAST_DEPTH = {True: 1.0, False: 3.0}
"""Pixels from the border at which a click on the lung (True), and one beside it, is told."""

_AROUND_MM, _LUNG_SHARE = 8.0, 0.5
_AT_CLICK_MM, _SOLID = 1.5, -300.0
"""So near to a click the median decides whether it is on something solid, which is denser than the second."""

_LONG_MM, _LONG = 20.0, 2.5
"""What is solid around a click, seen so far from it, is a vessel and no nodule if it reaches farther from its middle than so many times its
radius there, at half that radius or more."""

FAR_SURE, FAR_BETTER = 0.8, 0.02
"""From a predicted IoU of the first on a mask is not tried to be bettered; another is better by the second."""

_FAR_DEPTH = 0.5  # of the depth of the mask's middle: how deep in it a click is told


def click_in_lung(volume: Volume, ijk: np.ndarray) -> bool:
    """Whether a click (3,) in voxels, perhaps between some, lies in the lung of a CT: on a vessel in it, but not on a nodule."""
    spacing = volume.grid.spacing_mm
    around, _ = _near(volume, ijk, np.ceil(_AROUND_MM / spacing))
    if not looks_like_lung(around, _LUNG_SHARE) or not is_ct(grey_range(volume.array)):
        return False
    at, _ = _near(volume, ijk, np.floor(_AT_CLICK_MM / spacing))
    return np.median(at) < _SOLID or _is_long(*_near(volume, ijk, np.ceil(_LONG_MM / spacing)), spacing)


def _near(volume: Volume, ijk: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The voxels up to so many (3,) from the voxel nearest to a place (3,), along the axes, and which of them that is."""
    place = np.round(ijk).astype(int).clip(0, np.array(volume.array.shape) - 1)
    low, high = np.maximum(place - reach, 0).astype(int), (place + reach + 1).astype(int)
    return volume.array[tuple(slice(a, b) for a, b in zip(low, high))], place - low


def _is_long(values: np.ndarray, place: np.ndarray, spacing_mm: np.ndarray) -> bool:
    """Whether the solid thing at a voxel (3,) of some (I, J, K) is long, as vessels are, or a voxel thin; thin ends do not count."""
    depth = ndimage.distance_transform_edt(np.pad(values >= _SOLID, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    places = np.stack(np.meshgrid(*(np.arange(n) for n in depth.shape), indexing="ij"), -1)
    middle, radius = place, 0.0
    while True:  # from the click to where the thing is thickest
        away = np.linalg.norm((places - middle) * spacing_mm, axis=-1)
        near = np.where(away <= max(_AT_CLICK_MM, radius), depth, 0)
        if near.max() <= radius:
            break
        middle, radius = np.array(np.unravel_index(near.argmax(), near.shape)), near.max()
    parts, _ = ndimage.label(depth > radius / 2)
    return radius <= 1.01 * spacing_mm.min() or bool(away[parts == parts[tuple(middle)]].max() > _LONG * radius)


def far_inside(mask: np.ndarray, clicked: np.ndarray) -> tuple[int, ...] | None:
    """The cell deep in a mask (m, m, m) that is farthest from what was clicked (N, 3), in cells; None in a mask of no size."""
    if mask.sum() < 8:
        return None
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    cells = np.argwhere(depth > _FAR_DEPTH * depth.max())
    away = np.square(cells[:, None] - clicked[None]).sum(-1).min(1)
    return tuple(cells[away.argmax()].tolist())


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

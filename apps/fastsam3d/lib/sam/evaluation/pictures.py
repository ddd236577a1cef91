"""A picture of one structure: the truth, the mask and the uncertainty, in the slice where they differ most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from ..files import whole_file
from ..grid import reorder
from ..prompts import Click
from ..sampling import bounding_box
from ..volume_io import Volume

EDGE = 260
_TRUTH, _MASK, _PLUS, _MINUS = (80, 220, 100), (255, 80, 80), (255, 255, 0), (60, 170, 255)
_MARGIN_MM = 25.0


def render(
    path: Path,
    volume: Volume,
    target: np.ndarray,
    mask: np.ndarray,
    clicks: tuple[Click, ...] = (),
    uncertain: np.ndarray | None = None,
) -> None:
    """Writes a PNG (atomic): image, outlines (truth green, mask red, clicks yellow and blue) and, if there is one, the uncertainty.

    Args:
        target, mask: (I, J, K) bool.
        uncertain: (I, J, K) float in [0, 1], or None.
    """
    axes, signs = volume.grid.canonical_axes()
    spacing = [float(volume.grid.spacing_mm[a]) for a in axes]
    array, target, mask = (reorder(a, axes, signs) for a in (volume.array, target, mask))
    k = _slice(target, mask)
    window = _plane_window(target[:, :, k] | mask[:, :, k], spacing)
    grey = _grey(array[:, :, k][window], array)
    size = _size(grey.shape, spacing)
    plain, drawn = _resized(grey, size), _resized(grey, size)
    for shape, colour in ((target, _TRUTH), (mask, _MASK)):
        drawn[_outline(shape[:, :, k][window], size)] = colour
    _mark(drawn, clicks, volume, axes, signs, k, window)
    panels = [plain, drawn]
    if uncertain is not None:
        heat = reorder(uncertain, axes, signs)[:, :, k][window]
        panels.append(_heated(plain, _scaled(heat.astype(np.float32), size)))
    picture = Image.fromarray(np.concatenate(panels, axis=1))
    with whole_file(path) as file:
        picture.save(file, format="PNG", optimize=True)


def _slice(target: np.ndarray, mask: np.ndarray) -> int:
    wrong = (target ^ mask).sum(axis=(0, 1))
    return int(np.argmax(wrong if wrong.any() else target.sum(axis=(0, 1))))


def _plane_window(shown: np.ndarray, spacing: list[float]) -> tuple[slice, slice]:
    box = bounding_box(shown[:, :, None])
    if box is None:
        return slice(0, shown.shape[0]), slice(0, shown.shape[1])
    margins = [int(_MARGIN_MM / s) + 1 for s in spacing[:2]]
    return tuple(slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(box[:2], margins, shown.shape))


def _grey(plane: np.ndarray, array: np.ndarray) -> np.ndarray:
    step = max(1, round((array.size / 1e5) ** (1 / 3)))
    low, high = np.percentile(array[::step, ::step, ::step], (2, 99))
    low, high = min(float(low), float(plane.min())) if high <= low else float(low), max(float(high), float(low) + 1e-6)
    return (255 * np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)).astype(np.uint8)


def _size(shape: tuple[int, int], spacing: list[float]) -> tuple[int, int]:
    """(width, height) in pixels for a plane (x, y) in its true proportions."""
    sides = [n * s for n, s in zip(shape, spacing)]
    return tuple(max(1, round(EDGE * side / max(sides))) for side in sides)


def _upright(plane: np.ndarray) -> np.ndarray:
    """(x, y) towards right and anterior -> rows and columns as radiologists see them, the patient's right on the left.

    Canonical x points to the patient's right, so columns run against it.
    """
    return plane.T[::-1, ::-1]


def _resized(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(EDGE, EDGE, 3) uint8, the plane in the middle."""
    image = Image.fromarray(np.ascontiguousarray(_upright(grey))).resize(size, Image.Resampling.BILINEAR)
    return _centred(np.repeat(np.asarray(image)[..., None], 3, axis=2))


def _scaled(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(_upright(plane))).resize(size, Image.Resampling.BILINEAR)
    return _centred(np.asarray(image))


def _centred(image: np.ndarray) -> np.ndarray:
    result = np.zeros((EDGE, EDGE, *image.shape[2:]), dtype=image.dtype)
    top, left = ((EDGE - n) // 2 for n in image.shape[:2])
    result[top : top + image.shape[0], left : left + image.shape[1]] = image
    return result


def _outline(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(255 * np.ascontiguousarray(_upright(plane)).astype(np.uint8)).resize(size)
    filled = _centred(np.asarray(image)) > 127
    return filled & ~ndimage.binary_erosion(filled)


def _mark(drawn: np.ndarray, clicks: tuple[Click, ...], volume: Volume, axes, signs, k: int, window) -> None:
    """Dots at the clicks of this slice."""
    for click in clicks:
        place = [click.ijk[a] if sign > 0 else volume.grid.shape[a] - 1 - click.ijk[a] for a, sign in zip(axes, signs)]
        if place[2] != k:
            continue
        dot = np.zeros([s.stop - s.start for s in window], dtype=np.float32)
        place = [p - s.start for p, s in zip(place, window)]
        if not all(0 <= p < n for p, n in zip(place, dot.shape)):
            continue
        dot[tuple(place)] = 1.0
        spacing = [float(volume.grid.spacing_mm[a]) for a in axes]
        near = _scaled(dot, _size(dot.shape, spacing))
        row, column = np.unravel_index(int(np.argmax(near)), near.shape)
        drawn[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = _PLUS if click.positive else _MINUS


def _heated(plain: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image with the uncertainty over it, from nothing to orange."""
    share = np.clip(heat, 0, 1)[..., None]
    return (plain * (1 - 0.8 * share) + np.array([255, 140, 0]) * 0.8 * share).astype(np.uint8)

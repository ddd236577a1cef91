"""Area interpolation of 8-bit images, pixel for pixel as OpenCV's INTER_AREA computes it.

The published 2D models were trained on images that OpenCV had resized to 8 bits, so its rounding is part of their
preprocessing. Three cases, as there: shrinking by whole numbers averages blocks; other shrinking weighs pixels by
their covered part, in float32; enlarging (along either axis) interpolates between two pixels in fixed point, with
weights that leave most new pixels inside one old pixel.
"""

from __future__ import annotations

import numpy as np

_BITS = 11  # of the fixed-point weights
_SLIVER = 1e-3  # a covered part below this does not count
_CHUNK = 32  # rows at a time


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an 8-bit image.

    Args:
        image: (H, W) or (H, W, C) uint8.
        height, width: of the result, at least 1.

    Returns:
        (height, width) or (height, width, C) uint8.

    Raises:
        ValueError: another dtype or number of axes, an empty image, or a size below 1.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise ValueError(
            f"area interpolation takes a uint8 image of shape (H, W) or (H, W, C), got {image.dtype} {image.shape}; "
            "bring other types to 8 bits first"
        )
    if height < 1 or width < 1:
        raise ValueError(f"the new size must be at least 1 x 1, got {height} x {width}")
    if image.shape[:2] == (height, width):
        return image.copy()
    pixels = image if image.ndim == 3 else image[..., None]
    scale_y, scale_x = (1.0 / (new / old) for new, old in zip((height, width), image.shape))
    if scale_y < 1 or scale_x < 1:
        result = _enlarge(pixels, height, width, scale_y, scale_x)
    elif abs(scale_y - round(scale_y)) < np.finfo(float).eps and abs(scale_x - round(scale_x)) < np.finfo(float).eps:
        result = _block_means(pixels, height, width, round(scale_y), round(scale_x))
    else:
        result = _weighted_means(pixels, height, width, scale_y, scale_x)
    return result if image.ndim == 3 else result[..., 0]


def _block_means(pixels: np.ndarray, height: int, width: int, by: int, bx: int) -> np.ndarray:
    """Means of blocks of by x bx pixels; halves go up for 2 x 2 and to even otherwise, as there."""
    total = np.zeros((height, width, pixels.shape[2]), dtype=np.int32)
    for y in range(by):
        for x in range(bx):
            total += pixels[y::by, x::bx]
    if by == bx == 2:
        return ((total + 2) >> 2).astype(np.uint8)
    return _to_bytes(total.astype(np.float32) * np.float32(1.0 / (by * bx)))


def _weighted_means(pixels: np.ndarray, height: int, width: int, scale_y: float, scale_x: float) -> np.ndarray:
    """Along x, then along y, in float32 and in the order of the pixels."""
    taps = _taps(pixels.shape[1], width, scale_x)
    rows = np.empty((pixels.shape[0], width, pixels.shape[2]), dtype=np.float32)
    for y in range(0, len(rows), _CHUNK):  # so that the intermediate results stay in the cache
        rows[y : y + _CHUNK] = _accumulate(pixels[y : y + _CHUNK], 1, *taps)
    return _to_bytes(_accumulate(rows, 0, *_taps(pixels.shape[0], height, scale_y)))


def _taps(old: int, new: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source index and float32 weight of every contribution, (new, most contributions); unused ones weigh 0."""
    start = np.arange(new) * scale
    stop = start + scale
    cell = np.minimum(scale, old - start)
    last = np.minimum(np.floor(stop).astype(np.int64), old - 1)
    first = np.minimum(np.ceil(start).astype(np.int64), last)
    index = first[:, None] - 1 + np.arange(int((last - first).max()) + 2)
    weight = np.where((index >= first[:, None]) & (index < last[:, None]), 1.0 / cell[:, None], 0.0)
    before, after = first - start, stop - last
    weight[:, 0] = np.where(before > _SLIVER, before / cell, 0.0)
    at_last = index == last[:, None]
    weight[at_last] = np.where(after > _SLIVER, np.minimum(np.minimum(after, 1.0), cell) / cell, 0.0)
    return np.clip(index, 0, old - 1), weight.astype(np.float32)


def _accumulate(values: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sum of values at index times weight along that axis, one contribution after the other."""
    shape = tuple(-1 if a == axis else 1 for a in range(values.ndim))
    total = np.take(values, index[:, 0], axis=axis) * weight[:, 0].reshape(shape)
    for k in range(1, index.shape[1]):
        total += np.take(values, index[:, k], axis=axis) * weight[:, k].reshape(shape)
    return total


def _enlarge(pixels: np.ndarray, height: int, width: int, scale_y: float, scale_x: float) -> np.ndarray:
    """Two pixels an axis with 11-bit weights; the intermediate shifts are part of the result."""
    x0, x1, near_x, far_x = _pairs(pixels.shape[1], width, scale_x)
    y0, y1, near_y, far_y = _pairs(pixels.shape[0], height, scale_y)
    wide = pixels.astype(np.int32)
    rows = wide[:, x0] * near_x[None, :, None] + wide[:, x1] * far_x[None, :, None]
    rows >>= 4
    total = ((rows[y0] * near_y[:, None, None]) >> 16) + ((rows[y1] * far_y[:, None, None]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def _pairs(old: int, new: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two source pixels and their fixed-point weights, (new,) each."""
    index = np.arange(new)
    first = np.floor(index * scale).astype(np.int64)
    far = ((index + 1) - (first + 1) / scale).astype(np.float32)
    far = np.where(far <= 0, np.float32(0), far - np.floor(far))
    far = np.where(first >= old - 1, np.float32(0), far)
    first = np.minimum(first, old - 1)
    weights = (np.rint(part * np.float32(1 << _BITS)).astype(np.int32) for part in (np.float32(1) - far, far))
    return first, np.minimum(first + 1, old - 1), *weights


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

"""Images and slices for the 2D models: into the model's square image, and the answer back.

Frames: `_xy` is (x, y) = (column, row) in pixels of the source image, `_model` the same in the model's image of
`size` x `size` pixels, in whose upper left corner the resized source lies. Integers are the centres of pixels.
Preprocessing and propagation as published for LiteMedSAM (Ma et al. 2024); departures say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from .area_resize import resize_area

MODEL_SIZE = 256
"""Edge of the published 2D models' image, pixels."""

BOX_MARGIN = 3
"""How far the published propagation widens a box from slice to slice, model pixels."""


@dataclass(frozen=True)
class SliceFrame:
    """Where an image lies in the model's image.

    Attributes:
        source: (height, width) of the image, pixels.
        size: edge of the model's image, pixels.
    """

    source: tuple[int, int]
    size: int = MODEL_SIZE

    def __post_init__(self):
        height, width = self.source
        if height < 1 or width < 1:
            raise ValueError(f"an image must have at least one pixel along each axis, got {height} x {width}")

    @property
    def scale(self) -> float:
        """Model pixels a source pixel."""
        return self.size / max(self.source)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the source in the model's image; at least 1 (the published code fails below that)."""
        height, width = (max(1, int(n * self.scale + 0.5)) for n in self.source)
        return height, width

    def boxes_to_model(self, boxes_xy: np.ndarray) -> np.ndarray:
        """Boxes as published: scaled and cut to whole model pixels.

        Args:
            boxes_xy: (..., 4) x0, y0, x1, y1 in source pixels.

        Returns:
            The same in model pixels, int64 (256 does not fit 8 bits).

        Raises:
            ValueError: not four numbers a box, or numbers that are not finite.
        """
        boxes = _finite(boxes_xy, 4, "a box", "x0, y0, x1, y1")
        return np.trunc(boxes * self.scale).astype(np.int64)

    def points_to_model(self, points_xy: np.ndarray) -> np.ndarray:
        """Points (..., 2) -> float64 model pixels; pixel edges of both images coincide.

        Raises:
            ValueError: not two numbers a point, or numbers that are not finite.
        """
        points = _finite(points_xy, 2, "a point", "x, y")
        ratio = np.array([new / old for new, old in zip(self.resized, self.source)][::-1])
        return (points + 0.5) * ratio - 0.5

    def logits_to_source(self, logits: Tensor) -> Tensor:
        """Brings logits back to the image; the mask is where they are above 0 (a probability above one half).

        Args:
            logits: (B, M, m, m) over the model's image; other sizes than the model's are first resized to it.

        Returns:
            (B, M, height, width), bilinear.
        """
        if logits.shape[-2:] != (self.size, self.size):
            logits = F.interpolate(logits, (self.size, self.size), mode="bilinear", align_corners=False)
        height, width = self.resized
        return F.interpolate(logits[..., :height, :width], self.source, mode="bilinear", align_corners=False)

    def paste(self, logits: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The mask of `logits_to_source`, computed only near its pixels.

        Args:
            logits: (size, size) float32 over the model's image.

        Returns:
            mask: (h, w) bool, the part of the image that holds every positive pixel; (0, 0) where there is none.
            corner: row and column of its first pixel in the image.
        """
        shown = logits[: self.resized[0], : self.resized[1]]
        positive = _bounding_box(shown > 0)
        if positive is None:
            return np.zeros((0, 0), dtype=bool), (0, 0)
        columns, rows = positive[0::2], positive[1::2]
        y, x = (_taps(*span, new, old) for span, new, old in zip((rows, columns), self.resized, self.source))
        tall = _blend(shown, *y[1:], axis=0)
        mask = _blend(tall, *x[1:], axis=1) > 0
        found = _bounding_box(mask)
        if found is None:
            return np.zeros((0, 0), dtype=bool), (0, 0)
        x0, y0, x1, y1 = found
        return mask[y0 : y1 + 1, x0 : x1 + 1], (int(y[0] + y0), int(x[0] + x0))

    def widened_box(self, box_xy: np.ndarray, margin: int = BOX_MARGIN) -> np.ndarray:
        """(4,) int64: a box of source pixels in the model's image, wider by a margin of model pixels, within it."""
        return np.clip(self.boxes_to_model(box_xy) + np.array([-margin, -margin, margin, margin]), 0, self.size)


def plane_axes(axis: int) -> tuple[int, int]:
    """The volume's axes that run along columns and along rows of a slice across `axis`: (x, y)."""
    return tuple(other for other in range(3) if other != axis)


def slice_image(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice of a volume as an image, (H, W), a view: the earlier of its axes along x, the later one along y."""
    return np.moveaxis(array, axis, 0)[index].T


def preprocess_image(image: np.ndarray, size: int = MODEL_SIZE) -> np.ndarray:
    """The model's input: longest side to `size`, then to [0, 1] by the resized image's extremes, then padded with 0.

    Args:
        image: (H, W) or (H, W, 3) uint8; a grey image gives three equal channels.
        size: edge of the model's image.

    Returns:
        (3, size, size) float32. An image of one value gives zeros.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"an image must be (height, width) grey or (height, width, 3) colour, got shape {image.shape}")
    height, width = SliceFrame(image.shape[:2], size).resized
    resized = resize_area(image, height, width).astype(np.float64)
    low, high = resized.min(), resized.max()
    scaled = (resized - low) / max(high - low, 1e-8)
    result = np.zeros((3, size, size), dtype=np.float32)
    result[:, :height, :width] = scaled if image.ndim == 2 else np.moveaxis(scaled, -1, 0)
    return result


def next_slice_box2d(
    mask: np.ndarray, size: int = MODEL_SIZE, margin: int = BOX_MARGIN, published_label: int | None = None
) -> np.ndarray | None:
    """The box for the next slice of a stack, from the mask of this slice.

    The mask's bounding box reaches the model's image like a box that a user drew (`SliceFrame.boxes_to_model`), is
    widened and clipped. As published it is instead the bounding box of the mask after area interpolation, and as the
    mask holds the object's number there, pixels that are covered in part count or not depending on that number.

    Args:
        mask: (H, W), non-zero pixels count.
        size: edge of the model's image.
        margin: model pixels added on each side.
        published_label: the object's number, 1 to 255, to compute the box as published; None for ours.

    Returns:
        (4,) int64 x0, y0, x1, y1 in model pixels, within [0, size]; None when nothing is left of the mask.

    Raises:
        ValueError: a mask that is not two-dimensional, or a number that does not fit 8 bits.
    """
    if mask.ndim != 2:
        raise ValueError(f"the mask of a slice must have two axes, got shape {mask.shape}")
    frame = SliceFrame(mask.shape, size)
    if published_label is None:
        box = _bounding_box(mask != 0)
        return None if box is None else frame.widened_box(box, margin)
    if not 1 <= published_label <= 255:
        raise ValueError(f"as published an object's number must be 1 to 255, got {published_label}")
    labels = (mask != 0).astype(np.uint8) * np.uint8(published_label)
    box = _bounding_box(resize_area(labels, *frame.resized) > 0)
    if box is None:
        return None
    return np.clip(box + np.array([-margin, -margin, margin, margin]), 0, size)


def _bounding_box(mask: np.ndarray) -> np.ndarray | None:
    """(4,) x0, y0, x1, y1 of the True pixels, the last ones included; None without any."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.int64)


def _taps(first: int, last: int, new: int, old: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation along one axis, pixel edges of both images coinciding, as torch does it.

    Args:
        first, last: positive pixels of the model's image. new, old: pixels along the axis there and in the source.

    Returns:
        The first source pixel that one of them reaches; of it and those after it as far as they reach: lower neighbour,
        upper neighbour, weight of the upper one.
    """
    scale = new / old
    begin = max(0, int(np.floor((first - 0.5) / scale - 0.5)))
    end = min(old, int(np.ceil((last + 1.5) / scale + 0.5)))
    place = np.maximum((np.arange(begin, end) + 0.5) * scale - 0.5, 0)
    low = np.minimum(place.astype(np.int64), new - 1)
    return begin, low, np.minimum(low + 1, new - 1), (place - low).astype(np.float32)


def _blend(values: np.ndarray, low: np.ndarray, high: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    weight = weight[:, None] if axis == 0 else weight
    below = np.take(values, low, axis=axis)
    return below + weight * (np.take(values, high, axis=axis) - below)


def _finite(values: np.ndarray, count: int, what: str, names: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] != count or not np.isfinite(values).all():
        raise ValueError(f"{what} must be {count} finite numbers {names}, got {values.tolist()}")
    return values

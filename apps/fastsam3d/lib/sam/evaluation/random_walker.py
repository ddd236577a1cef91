"""The random walker (Grady 2006) with the same clicks: a baseline that needs no weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.segmentation import random_walker

from ..geometry import PatchFrame
from ..intensity import padding_floor
from ..placement import place_patch
from ..prompts import Prompts
from ..session import ImageSession
from ..spec import EncoderSpec, SamSpec
from .interface import Answer, Ask, Wanted

SIZE, SPACING_MM = 64, 3.0
"""The crop: 64 voxels of 3 mm, the 19 cm that the published models see; solving it takes one to three seconds."""

BETA = 1000.0
SMOOTH = 1.0
"""Standard deviation of the smoothing before it, voxels of the crop."""

_CORE = 8
"""The middle of a box, a quarter of each side, is taken for the object."""

_BRUSH = 1
"""A click paints a cube of this many voxels to each side, as a user's brush would."""

_OBJECT, _BACKGROUND = 1, 2
_CROP = SamSpec("random_walker", EncoderSpec(image_size=SIZE), spacing_mm=SPACING_MM, lattice="click", zoom=True)


class RandomWalker:
    """Clicks are seeds of both kinds. The outer layer of the crop (outside of the box, where there is one) is background,
    since a first click alone names no background; so is what lies outside the scan."""

    name = "random_walker"
    version = f"beta {BETA:g}, smooth {SMOOTH:g}, core 1/{_CORE}, brush {_BRUSH}, {SIZE} x {SPACING_MM:g} mm"
    clicks, boxes, automatic = True, True, False

    @contextmanager
    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> Iterator[Ask]:
        """See `Model.open`."""

        def ask(prompts: Prompts) -> Answer:
            begin = time.perf_counter()
            mask = _segment(session, prompts)
            return Answer(mask, time.perf_counter() - begin)

        yield ask

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """It has none to offer."""
        return None


def _segment(session: ImageSession, prompts: Prompts) -> np.ndarray:
    volume = session.volume
    prompts.validate(volume.grid)
    frame = place_patch(volume.grid, prompts, _CROP)
    seeds = _seeds(frame, prompts)
    mask = np.zeros(volume.grid.shape, dtype=bool)
    if not (seeds == _OBJECT).any():
        return mask
    chance = _walked(frame, volume.array, seeds) if (seeds == 0).any() else seeds == _OBJECT
    box, corner = frame.paste(np.asarray(chance, dtype=np.float32), threshold=0.5)
    mask[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box.astype(bool)
    return mask


def _walked(frame: PatchFrame, array: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """(S, S, S) float: how likely a walk from each voxel ends on the object; there must be one without a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about seeds that are cut off from each other, and about slower solvers
        return random_walker(_data(frame, array), seeds, beta=BETA, mode="cg_j", return_full_prob=True)[0]


def _data(frame: PatchFrame, array: np.ndarray) -> np.ndarray:
    """The crop (S, S, S) float64, cut to robust limits and scaled to [0, 1]."""
    patch, inside = frame.crop(array), frame.inside()
    floor = padding_floor(array)
    if floor is not None:
        patch = np.maximum(patch, floor)
    patch = ndimage.gaussian_filter(patch, SMOOTH)  # a walk gets lost in noise
    low, high = np.percentile(patch[inside], (1, 99)) if inside.any() else (0.0, 1.0)
    return np.where(inside, np.clip((patch - low) / max(high - low, 1e-6), 0, 1), 0.0).astype(np.float64)


def _seeds(frame: PatchFrame, prompts: Prompts) -> np.ndarray:
    """(S, S, S) int: _OBJECT, _BACKGROUND, 0 where the walk decides."""
    seeds = np.zeros(frame.shape, dtype=np.int32)
    inner = tuple(slice(max(s.start, 1), min(s.stop, SIZE - 1)) for s in frame.inside_axes())
    middle = None
    if prompts.box is not None:
        corners = np.sort(frame.to_patch(np.array([prompts.box.low_ijk, prompts.box.high_ijk], dtype=float)), axis=0)
        low, high = (np.floor(c + 0.5).astype(int).clip(0, SIZE - 1) for c in corners)
        inner = tuple(slice(max(s.start, a), min(s.stop, b + 1)) for s, a, b in zip(inner, low, high))
        middle = tuple(slice(c - h, c + h + 1) for c, h in zip((low + high) // 2, (high - low) // _CORE))
    outside = np.ones(frame.shape, dtype=bool)
    outside[inner] = False
    seeds[outside] = _BACKGROUND
    if middle is not None:
        seeds[middle] = _OBJECT
    nodes = np.floor(frame.to_patch(prompts.clicks_ijk) + 0.5).astype(int)
    for node, label in zip(nodes, prompts.labels):
        if ((node >= 0) & (node < SIZE)).all():
            near = tuple(slice(max(0, n - _BRUSH), n + _BRUSH + 1) for n in node)
            seeds[near] = _OBJECT if label else _BACKGROUND
    return seeds

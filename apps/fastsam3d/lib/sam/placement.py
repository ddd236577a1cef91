"""Where the patch lies: a pure function of the prompts, and of what the model saw at the prompts before.

Every choice is made in canonical patch coordinates from a node that lies on a prompt, so that a scan gives the same
patch however it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .geometry import Grid, PatchFrame
from .prompts import Prompts
from .spec import SamSpec

MAX_COARSENING = 3.0
"""A patch voxel is at most this many times the spec's spacing."""

MAX_REFINING = 2.5
"""A patch voxel is at least the spec's spacing divided by this, and half as wide as the scan's narrowest voxel side: nothing
is to be seen below that."""

BOX_MARGIN = 1.4
CLICK_MARGIN = 1.25
MOVE_MARGIN = 1.05
"""What would fill more of the patch than its share 1 / MOVE_MARGIN is seen coarser rather than shifted."""

SMALL, WANTED = 0.6, 0.6
"""A first mask whose longest side is below SMALL of the patch is brought up to WANTED of it."""

REACH = 1.0
"""An object is expected beyond a click on it by this share of the click's distance from the mask (chosen by measurement)."""

CLOSER = 1.5
"""A click whose first mask does not convince the network itself is seen in a patch so many times finer."""

SURE = 0.65
"""A first mask of such a predicted IoU convinces."""

WIDE, SURER = 0.5, 0.1
"""A mask that does not convince and is as long as this share of the spec's patch may be a part of an organ: it is also looked at from
farther away, LARGE times coarser; that look replaces it if it convinces, and its predicted IoU is higher by SURER."""

BETTER = 0.03
"""Another look replaces the second one if its predicted IoU is higher by so much (like SURE chosen by measurement)."""

TOUCHING, LARGE = 12, 1.5
"""A mask with so many cells on one face of the patch leaves it: the patch becomes LARGE times coarser."""


@dataclass(frozen=True)
class Look:
    """What the first look at the first prompt taught.

    Attributes:
        low_ijk, high_ijk: (3,) corners of the region to be centred, in voxels.
        spacing_mm: edge of a patch voxel.
    """

    low_ijk: tuple[float, float, float]
    high_ijk: tuple[float, float, float]
    spacing_mm: float


def first_prompt(prompts: Prompts) -> Prompts:
    """The prompt that decides the patch: the box, else the first click on the object, else the first click."""
    if prompts.box is not None:
        return Prompts((), prompts.box)
    positive = [c for c in prompts.clicks if c.positive]
    return Prompts((positive or list(prompts.clicks))[:1])


def place_patch(grid: Grid, prompts: Prompts, spec: SamSpec, look: Look | None = None) -> PatchFrame:
    """The patch for these prompts.

    Around the box, else around the first click on the object; after a first look around what was seen there. It moves
    only when it must: when another click on the object would lie outside, it is centred on all of them, and where the
    spec zooms they are then seen coarser if they span more than the patch. Clicks on the object that are too far apart
    for any patch leave the newest in its middle.
    """
    positive = prompts.clicks_ijk[prompts.labels == 1].astype(np.float64)
    box = prompts.box
    if box is not None:
        span, margin = _corners(prompts), BOX_MARGIN
    else:
        span, margin = (positive if len(positive) else prompts.clicks_ijk.astype(np.float64))[:1], CLICK_MARGIN
    spacing = spec.spacing_mm
    if look is not None:
        frame = _centred(grid, span, np.array([look.low_ijk, look.high_ijk]), look.spacing_mm, spec)
        if holds(frame, np.concatenate([span, positive])):
            return frame
        spacing = max(spacing, look.spacing_mm)
    elif box is None or not spec.zoom:
        frame = _centred(grid, span, span, spacing, spec)
        if holds(frame, np.concatenate([span, positive])):
            return frame
    region = np.concatenate([span, positive])
    if spec.zoom:
        extent = ((region.max(axis=0) - region.min(axis=0) + 1) * grid.spacing_mm).max()
        spacing = float(np.clip(margin * extent / spec.patch_size, spacing, MAX_COARSENING * spec.spacing_mm))
        if box is not None and look is None and extent < SMALL * spec.patch_size * spec.spacing_mm:
            spacing = max(_finest(grid, spec), extent / (WANTED * spec.patch_size))
    frame = _centred(grid, span, region, spacing, spec)
    if box is None and len(positive) and not any(holds(frame, p[None]) for p in positive):
        frame = _centred(grid, positive[-1:], positive[-1:], spacing, spec)  # they are too far apart: the newest counts
    return frame


def look_again(frame: PatchFrame, mask: np.ndarray, spec: SamSpec) -> Look | None:
    """Whether the object needs another patch than the one in which it was first seen.

    Args:
        frame: of the first look.
        mask: (m, m, m) bool, cells of the first prompt's mask.

    Returns:
        None when the patch is right.
    """
    if not mask.any():
        return None
    low, high = _extent(frame, mask)
    longest = float((high - low).max())
    if leaves(frame, mask):
        spacing = frame.spacing_mm * LARGE
    elif longest < SMALL * spec.patch_size:
        finest = min(frame.spacing_mm, _finest(frame.source, spec))
        spacing = max(finest, frame.spacing_mm * longest / (WANTED * spec.patch_size))
    else:
        return None
    spacing = float(min(spacing, MAX_COARSENING * spec.spacing_mm))
    if abs(spacing / frame.spacing_mm - 1) < 0.1:
        return None
    corners = frame.to_source(np.array([low, high]))
    return Look(tuple(corners.min(axis=0)), tuple(corners.max(axis=0)), spacing)


def look_closer(grid: Grid, prompts: Prompts, spec: SamSpec, found: bool = True) -> PatchFrame | None:
    """A finer patch around the first click, None where the scan has nothing finer to show.

    Args:
        found: whether anything was found there. If not, it may be too thin for the cells of the mask grid, which then may be as small as
            the voxels of the scan.
    """
    spacing = max(_finest(grid, spec), spec.spacing_mm / CLOSER) if found else _finest(grid, spec, spec.cell)
    if spacing > 0.9 * spec.spacing_mm:
        return None
    click = prompts.clicks_ijk[:1].astype(np.float64)
    return _centred(grid, click, click, spacing, spec)


def look_farther(grid: Grid, prompts: Prompts, spec: SamSpec) -> PatchFrame:
    """A coarser patch around the first click."""
    click = prompts.clicks_ijk[:1].astype(np.float64)
    return _centred(grid, click, click, LARGE * spec.spacing_mm, spec)


def is_wide(frame: PatchFrame, mask: np.ndarray, spec: SamSpec) -> bool:
    """Whether a mask (m, m, m) of cells, not empty, is WIDE."""
    low, high = _extent(frame, mask)
    return float((high - low).max()) * frame.spacing_mm >= WIDE * spec.patch_size * spec.spacing_mm


def follow(frame: PatchFrame, mask: np.ndarray, prompts: Prompts, spec: SamSpec) -> PatchFrame:
    """The patch for one more click on the object.

    A user clicks in the middle of what is missing. So the object reaches beyond the click about as far (REACH) as the
    click is away from the mask; when that does not fit, the patch is centred on the mask and on all that is expected
    there, and becomes coarser where it must.

    Args:
        frame: the patch until now.
        mask: (m, m, m) bool, cells of the mask before this click, in that patch.
        prompts: all prompts, the new click being the last.

    Returns:
        The same patch where the new click fits.
    """
    node = frame.to_patch(prompts.clicks_ijk[-1:])[0]
    cells = np.argwhere(mask)
    if len(cells) and holds(frame, prompts.clicks_ijk[-1:]) and mask[tuple(_cell(frame, mask, node))]:
        return frame
    positive = frame.to_patch(prompts.clicks_ijk[prompts.labels == 1])
    low, high = positive.min(axis=0), positive.max(axis=0)
    if len(cells):
        cell = frame.size / mask.shape[0]
        away = float(np.sqrt(((cells * cell + (cell - 1) / 2 - node) ** 2).sum(axis=1).min()))
        seen = _extent(frame, mask)
        low, high = (
            pick([edge, side, node + sign * REACH * away], axis=0)
            for pick, edge, side, sign in ((np.min, low, seen[0], -1), (np.max, high, seen[1], 1))
        )
    return _holding(frame, low, high, prompts, spec)


def leaves(frame: PatchFrame, mask: np.ndarray) -> bool:
    """Whether a mask (m, m, m) of cells lies with many of them on a face of the patch that is inside the scan."""
    m, volume = mask.shape[0], frame.inside_axes()
    for axis in range(3):
        for end, face in ((0, 0), (m - 1, frame.size - 1)):
            reaches = volume[axis].start < volume[axis].stop and volume[axis].start <= face < volume[axis].stop
            if reaches and int(mask.take(end, axis=axis).sum()) >= TOUCHING:
                return True
    return False


def _holding(frame: PatchFrame, low: np.ndarray, high: np.ndarray, prompts: Prompts, spec: SamSpec) -> PatchFrame:
    """The patch that shows nodes `low` to `high` (3,), as far as they lie in the scan: this one where it does."""
    ends = frame.to_patch(np.array([[-0.5] * 3, [n - 0.5 for n in frame.source.shape]]))
    low, high = np.maximum(low, ends.min(axis=0)), np.minimum(high, ends.max(axis=0))
    if (low >= -0.5).all() and (high < frame.size - 0.5).all():
        return frame
    needed = float((high - low).max()) / frame.size
    factor = 1.0 if needed < 1 / MOVE_MARGIN else needed * CLICK_MARGIN  # no coarser than that: tubes are lost so
    spacing = round(min(frame.spacing_mm * factor, MAX_COARSENING * spec.spacing_mm), 6)
    span = _corners(prompts) if prompts.box is not None else first_prompt(prompts).clicks_ijk.astype(np.float64)
    moved = _centred(frame.source, span, frame.to_source(np.array([low, high])), spacing, spec)
    newest = prompts.clicks_ijk[-1:]
    if len(newest) and not holds(moved, newest):
        moved = _centred(frame.source, newest.astype(np.float64), newest.astype(np.float64), spacing, spec)
    return moved


def _finest(grid: Grid, spec: SamSpec, parts: int = 2) -> float:
    """Smallest edge of a patch voxel, so many of which make a voxel of the scan, mm; at most the spec's."""
    return float(np.clip(grid.spacing_mm.min() / parts, spec.spacing_mm / MAX_REFINING, spec.spacing_mm))


def _extent(frame: PatchFrame, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (3,) of the low and the high corner of a mask of cells (m, m, m) that is not empty."""
    cell = frame.size / mask.shape[0]
    sides = [np.nonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[0] for axis in range(3)]
    return np.array([s[0] * cell for s in sides]) - 0.5, np.array([(s[-1] + 1) * cell for s in sides]) - 0.5


def _cell(frame: PatchFrame, mask: np.ndarray, node: np.ndarray) -> np.ndarray:
    nearest = np.floor(node + 0.5).astype(int)
    return nearest * mask.shape[0] // frame.size


def _corners(prompts: Prompts) -> np.ndarray:
    return np.array([prompts.box.low_ijk, prompts.box.high_ijk], dtype=np.float64)


def _centred(grid: Grid, span: np.ndarray, region: np.ndarray, spacing: float, spec: SamSpec) -> PatchFrame:
    """A patch with a node on a corner of `span` and the middle of `region` at its centre, to the nearest node."""
    if spec.lattice != "click":
        middle = (region.min(axis=0) + region.max(axis=0)) / 2
        return PatchFrame.around(grid, middle, spec.patch_size, spacing, spec.lattice)
    axes, signs = grid.canonical_axes()
    anchor = span.min(axis=0)
    for axis, sign in zip(axes, signs):
        if sign < 0:
            anchor[axis] = span[:, axis].max()
    frame = PatchFrame.around(grid, anchor, spec.patch_size, spacing, spec.lattice)
    nodes = frame.to_patch(region)
    middle = (nodes.min(axis=0) + nodes.max(axis=0)) / 2
    shift = np.floor(middle - spec.patch_size // 2 + 0.5 + 1e-6).astype(int)
    return replace(frame, anchor_node=tuple(int(n - s) for n, s in zip(frame.anchor_node, shift)))


def holds(frame: PatchFrame, points_ijk: np.ndarray) -> bool:
    """Whether every point (N, 3), in voxels of the scan, has a nearest node in the patch."""
    nodes = frame.to_patch(points_ijk)
    return bool(((nodes >= -0.5) & (nodes < frame.size - 0.5)).all())

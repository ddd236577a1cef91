"""From the network's logits to the mask that is shown. Parts may be taken away; nothing is ever added."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .spec import SamSpec

_CORNERS = np.ones((3, 3, 3))

REACH, FARTHEST = 1.5, 24.0
"""How far a click's word counts: a Gaussian whose standard deviation is so many times the click's distance from the border of the
mask before it, at most the second, patch voxels. A click in the middle of what is missed or surplus is as far from that border as
the error is deep: one deep inside says that much is wrong, one beside the border that little is."""

NEAREST, NEAREST_BACKGROUND = 5.0, 9.0
"""At least so far; surplus beside the border lies there in sheets, which reach farther than they are deep."""

GROWTH = 2.0
"""Where the network says more after a click on the object, that click counts so many times as far: missed parts reach far."""

SMALL_PIECE = 0.2
"""A piece that the network takes away at a click on the background goes whole, up to this share of the mask: somebody who clicks
on surplus wants to be rid of all of it, and more in one piece may be the organ."""


def connected_to_clicks(logits: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Without the parts of the mask that hold no click on the object.

    Parts are 26-connected sets of cells above 0. A click counts for every part within one cell of it. Where no part is
    near a click the logits come back as they were. A second part of an object is kept by a click on it.

    Args:
        logits: (m, m, m) float32.
        cells: (N, 3) cells of the clicks on the object.

    Returns:
        (m, m, m); the cells of parts without a click are -1.
    """
    parts, count = ndimage.label(logits > 0, structure=_CORNERS)
    if count < 2 or not len(cells):
        return logits
    keep: set[int] = set()
    for cell in cells:
        near = parts[tuple(slice(max(0, c - 1), c + 2) for c in cell)]
        keep |= set(near[near > 0].tolist())
    if not keep:
        return logits
    return np.where((parts > 0) & ~np.isin(parts, list(keep)), np.float32(-1), logits)


def steadied(before: Tensor, after: Tensor, clicks: Tensor, background: bool, spec: SamSpec) -> Tensor:
    """Logits after a click, mixed with those before it where the click is far away.

    A click says much about its neighbourhood and little about the other end of the organ; the mean of two answers of
    the network is steadier there than the newer alone. A click on the background adds nothing, and a small piece that the
    network takes away there goes whole, however far it reaches.

    Args:
        before, after: (1, 1, m, m, m). clicks: (N, 3) the new ones, patch voxels. background: whether all lie there.

    Returns:
        (1, 1, m, m, m): `after` at the clicks and in such pieces; far away, a share of `spec.steady` of `before`.
    """
    nearest = NEAREST_BACKGROUND if background else NEAREST
    near = near_clicks(before[0, 0] > 0, clicks.to(before.device), spec.cell, nearest)
    if not background:
        near = torch.where(after > before, near ** (1 / GROWTH**2), near)  # a Gaussian so many times as wide
    mixed = torch.lerp(after, before, spec.steady * (1 - near))
    if not background:
        return mixed
    pieces = small_pieces(
        (before[0, 0] > 0).cpu().numpy(), (after[0, 0] > 0).cpu().numpy(), (clicks // spec.cell).long().numpy()
    )
    return torch.minimum(before, torch.where(torch.from_numpy(pieces).to(before.device), after, mixed))


def small_pieces(before: np.ndarray, after: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Cells that a mask loses in pieces of at most SMALL_PIECE of it, each within one cell of a click.

    Args:
        before, after: (m, m, m) bool. cells: (N, 3) of the clicks.

    Returns:
        (m, m, m) bool; pieces are 26-connected.
    """
    parts, _ = ndimage.label(before & ~after, structure=_CORNERS)
    sizes = np.bincount(parts.ravel())
    small = sizes <= SMALL_PIECE * before.sum()
    small[0] = False  # what is not lost
    clicked = np.zeros(len(sizes), dtype=bool)
    for cell in cells:
        clicked[parts[tuple(slice(max(0, c - 1), c + 2) for c in cell)]] = True
    return (small & clicked)[parts]


def near_clicks(mask: Tensor, clicks: Tensor, cell: int, nearest: float = NEAREST) -> Tensor:
    """How much clicks say of each cell of a mask: 1 at a click, falling with distance as REACH tells.

    Args:
        mask: (m, m, m) bool, before the clicks. clicks: (N, 3) in voxels; a cell has `cell` of them an axis.
        nearest: the least standard deviation, voxels.

    Returns:
        (m, m, m) in [0, 1], of the click that says most.
    """
    axis = torch.arange(len(mask), device=mask.device) * cell + (cell - 1) / 2
    away = (axis - clicks[..., None]) ** 2  # (N, 3, m)
    away = away[:, 0, :, None, None] + away[:, 1, None, :, None] + away[:, 2, None, None, :]
    own = mask[tuple((clicks // cell).long().clamp(0, len(mask) - 1).T)]
    border = away.masked_fill(mask == own[:, None, None, None], torch.inf).amin((1, 2, 3)).sqrt()
    reach = (REACH * border).clamp(nearest, FARTHEST)
    return torch.exp(-away / (2 * reach[:, None, None, None] ** 2)).amax(0)

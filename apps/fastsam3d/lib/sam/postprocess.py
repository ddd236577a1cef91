"""From the network's logits to the mask that is shown. Parts may be taken away; nothing is ever added."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .spec import SamSpec

_CORNERS = np.ones((3, 3, 3))

NEAR = 12.0
"""How far a click's word alone counts: standard deviation of a Gaussian, patch voxels."""


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
    the network is steadier there than the newer alone. That holds for what a click takes away; what a click on the object adds
    is added anywhere, and a click on the background adds nothing.

    Args:
        before, after: (1, 1, m, m, m). clicks: (N, 3) the new ones, patch voxels. background: whether all lie there.

    Returns:
        (1, 1, m, m, m): `after` at the clicks; far away, a share of `spec.steady` of `before`.
    """
    m = spec.mask_size
    cell = spec.patch_size // m
    centres = torch.arange(m) * cell + (cell - 1) / 2
    near = torch.exp(-((centres - clicks[..., None]) ** 2) / (2 * NEAR**2))  # (N, 3, m)
    near = torch.einsum("na,nb,nc->nabc", near[:, 0], near[:, 1], near[:, 2]).amax(0)
    kept = (spec.steady * (1 - near)).to(after.device)
    mixed = kept * before + (1 - kept) * after
    return torch.minimum(before, mixed) if background else torch.maximum(after, mixed)

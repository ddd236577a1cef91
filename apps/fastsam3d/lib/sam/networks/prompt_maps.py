"""Prompts drawn as maps: what an image cell needs to know of clicks and box without asking the prompt tokens."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

NEGATIVE, POSITIVE, BOX_LOW, BOX_HIGH = 0, 1, 2, 3


def prompt_maps(points: Tensor, labels: Tensor, mask: Tensor | None, edge: int, ratio: float) -> Tensor:
    """Mask prompt, positive clicks, negative clicks and box as maps.

    A click is a Gaussian of standard deviation one map cell; a box is 1 inside with linear edges. Logits of the mask
    prompt are bounded by tanh(x / 4), so that confident and very confident masks look alike.

    Args:
        points: (B, N, D) pixels or voxels in the order of the array's axes, centres at +0.5.
        labels: (B, N) of 1 positive, 0 negative, 2 / 3 low / high corner of a box (one a row); others are ignored.
        mask: (B, 1, edge, ...) logits, or None.
        edge: of the maps. ratio: pixels a map cell.

    Returns:
        (B, 4, edge, ...) with D axes.
    """
    b, _, dims = points.shape
    axis = torch.arange(edge, device=points.device, dtype=points.dtype)
    if mask is None:
        mask = points.new_zeros(b, 1, *(edge,) * dims)
    centre = (points + 0.5) / ratio - 0.5
    blobs = _outer(torch.exp(-0.5 * (centre[..., None] - axis) ** 2))  # (B, N, edge, ...)
    maps = [torch.tanh(mask.to(points.dtype) / 4)]
    for value in (POSITIVE, NEGATIVE):
        chosen = (labels == value).to(points.dtype)
        chosen = chosen.reshape(*chosen.shape, *(1,) * dims)
        maps.append((blobs * chosen).amax(dim=1, keepdim=True) if points.shape[1] else torch.zeros_like(maps[0]))
    low, high = labels == BOX_LOW, labels == BOX_HIGH
    first = (points * low[..., None]).sum(1) / ratio
    last = ((points + 1) * high[..., None]).sum(1) / ratio
    cover = torch.minimum(axis + 1, last[..., None]) - torch.maximum(axis, first[..., None])
    maps.append(_outer(cover.clamp(0, 1))[:, None])
    return torch.cat(maps, dim=1)


def _outer(profiles: Tensor) -> Tensor:
    """(..., D, m) -> (..., m, ..., m): product over the D axes."""
    dims = profiles.shape[-2]
    parts = [
        profiles[..., d, :].reshape(*profiles.shape[:-2], *(1,) * d, profiles.shape[-1], *(1,) * (dims - 1 - d))
        for d in range(dims)
    ]
    return reduce(torch.mul, parts)

"""Prompts drawn as maps: what an image cell needs to know of clicks and box without asking the prompt tokens."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING, NEGATIVE, POSITIVE, BOX_LOW, BOX_HIGH = -1, 0, 1, 2, 3


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


def likeness(image: Tensor, maps: Tensor, ring: int = 4) -> Tensor:
    """How much each pixel looks like what the prompts mark as the object, and like what they mark as its surroundings.

    The object's colours are those in the middle of the box, at positive clicks and in the mask of the round before; the
    surroundings' those in a ring around the box and at negative clicks. (How alike a pixel and the clicks look is an
    input of the network since DeepIGeoS, Wang et al. 2018.)

    Args:
        image: (1 or B, 3, m, m) in [0, 1]. maps: (B, 4, m, m) of `prompt_maps`.
        ring: width of the ring, cells.

    Returns:
        (B, 3, m, m): likeness to the object and to the surroundings in [0, 1], and which prevails, in [-1, 1].
    """
    before, positive, negative, box = maps.split(1, dim=1)
    wide = F.max_pool2d(box, 2 * ring + 1, 1, ring)
    distances = []
    for weight in (box * _middle(box) + 4 * positive + before.relu(), wide - box + 4 * negative):
        total = weight.sum((2, 3), keepdim=True).clamp_min(1e-3)
        mean = (weight * image).sum((2, 3), keepdim=True) / total
        square = (image - mean).square()
        spread = (weight * square).sum((2, 3), keepdim=True) / total + 2e-4
        distances.append((square / spread).mean(1, keepdim=True))
    near, far = distances
    return torch.cat([torch.exp(-0.5 * near), torch.exp(-0.5 * far), torch.tanh(0.25 * (far - near))], dim=1)


def _middle(box: Tensor) -> Tensor:
    """A Gaussian (B, 1, m, m) over the middle of a box map, half as wide as the box's own spread; zeros without a box."""
    axis = torch.arange(box.shape[-1], device=box.device, dtype=box.dtype)
    out = torch.ones_like(box)
    for dim in (2, 3):
        profile = box.sum(5 - dim)  # (B, 1, m) along this axis
        total = profile.sum(-1, keepdim=True).clamp_min(1e-3)
        centre = (profile * axis).sum(-1, keepdim=True) / total
        width = ((profile * (axis - centre).square()).sum(-1, keepdim=True) / total).sqrt().clamp_min(0.5)
        fall = torch.exp(-0.5 * ((axis - centre) / (0.7 * width)).square())
        out = out * (fall[..., :, None] if dim == 2 else fall[..., None, :])
    return out

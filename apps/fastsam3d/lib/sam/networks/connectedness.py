"""How well each cell is connected to the clicked ones: by the weakest link of the best path between them.

Fuzzy connectedness (Udupa and Samarasekera 1996), as maps that a network sees beside the clicks: similar tissue that is
cut off from the click by other tissue gets a low value, which no convolution of bounded reach can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SWEEPS = 2
"""Times that every axis is swept in both directions; each bend of a path may need one more, few objects do."""

SOFTNESS = 0.16
"""A difference of normalised intensity (range -1 to 1) at which a link's strength falls to 1 / e."""


@torch.no_grad()
def connectedness(intensity: Tensor, distance: Tensor, seeds: Tensor) -> Tensor:
    """Strength of the best path to a seed; a path is as strong as its weakest link.

    Two kinds of links: by how much a cell differs from what was clicked, and by how much it differs from the cell before
    (which follows slow changes).

    Args:
        intensity: (1 or B, c, m, m, m) normalised.
        distance: (B, c, m, m, m) difference of each cell's intensity to that of the most similar seed.
        seeds: (B, 1, m, m, m) bool.

    Returns:
        (B, 2c, m, m, m) in [0, 1]: for links of the first kind, then of the second.
    """
    alike = torch.exp(distance / -SOFTNESS)
    c, intensity = alike.shape[1], intensity.expand(alike.shape[0], -1, -1, -1, -1)
    found = seeds.to(alike.dtype).expand(-1, 2 * c, -1, -1, -1)
    links = []
    for axis in (2, 3, 4):
        n = alike.shape[axis]
        steps = torch.exp(intensity.diff(dim=axis).abs() / -SOFTNESS)
        forward = torch.cat([alike.narrow(axis, 1, n - 1), steps], dim=1)
        backward = torch.cat([alike.narrow(axis, 0, n - 1), steps], dim=1)
        links.append((forward.movedim(axis, 0).contiguous(), backward.movedim(axis, 0).contiguous()))
    for _ in range(SWEEPS):
        for axis, (forward, backward) in zip((2, 3, 4), links):
            planes = list(found.movedim(axis, 0).contiguous().unbind(0))
            for i in range(1, len(planes)):
                planes[i] = torch.maximum(planes[i], torch.minimum(planes[i - 1], forward[i - 1]))
            for i in range(len(planes) - 2, -1, -1):
                planes[i] = torch.maximum(planes[i], torch.minimum(planes[i + 1], backward[i]))
            found = torch.stack(planes, dim=axis)
    return found


def middle_of(inside: Tensor) -> Tensor:
    """The cell in the middle of each box, as a mask (B, 1, m, m, m); inside: likewise, bool. Nothing without a box."""
    middle = torch.ones_like(inside)
    for axis in (2, 3, 4):
        m = inside.shape[axis]
        hit = inside.amax([a for a in (2, 3, 4) if a != axis])[:, 0]  # (B, m)
        first, behind = hit.int().argmax(1), m - hit.flip(1).int().argmax(1)
        here = torch.arange(m, device=inside.device) == ((first + behind) // 2)[:, None]
        middle &= here.unflatten(1, [m if a == axis else 1 for a in (2, 3, 4)])[:, None]
    return middle & inside


BINS = 32
RIM = 2
"""Cells around a box that count as its surroundings."""


@torch.no_grad()
def box_evidence(intensity: Tensor, inside: Tensor) -> Tensor:
    """How much more often an intensity occurs inside a box than around it.

    Args:
        intensity: (1 or B, c, m, m, m) normalised. inside: (B, 1, m, m, m) bool.

    Returns:
        (B, c, m, m, m): logarithm of the ratio of the two shares, divided by 4; 0 outside the box.
    """
    (b, m), c = (inside.shape[0], inside.shape[-1]), intensity.shape[1]
    level = ((intensity + 1) * (BINS / 2)).long().clamp(0, BINS - 1).expand(b, -1, -1, -1, -1).flatten(2)
    around = (F.max_pool3d(inside.float(), 2 * RIM + 1, stride=1, padding=RIM) > 0) & ~inside
    shares = []
    for region in (inside, around):
        weight = region.float().flatten(2).expand(-1, c, -1)
        count = intensity.new_zeros(b, c, BINS).scatter_add_(2, level, weight)
        count = F.avg_pool1d(F.pad(count, (1, 1), mode="replicate"), 3, stride=1)
        shares.append(count / count.sum(2, keepdim=True).clamp_min(1) + 2e-3)
    ratio = (shares[0] / shares[1]).log() / 4
    return ratio.gather(2, level).unflatten(2, (m, m, m)) * inside

"""Simulated prompts for batches of objects: the batched twin of clicks.next_click.

Masks are on the mask grid of n cells an axis (a cell = `S / n` patch voxels); a click lands anywhere in its cell.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.prompt_maps import BOX_HIGH, BOX_LOW, PADDING


def thickness(region: Tensor) -> Tensor:
    """How deep inside a region a cell lies: mean occupancy of growing neighbourhoods; 0 outside. (B, 1, n, n[, n])."""
    pool = F.avg_pool3d if region.ndim == 5 else F.avg_pool2d
    depth = region
    for kernel in (3, 5):
        depth = depth + pool(region, kernel, stride=1, padding=kernel // 2)
    return depth * region


def error_clicks(logits: Tensor | None, target: Tensor, uniform_share: float, cell: int) -> tuple[Tensor, Tensor]:
    """One click for each object: in the thicker of the missed and the false region, in its middle or anywhere in it.

    Args:
        logits: (B, 1, n, n, n) or (B, 1, n, n) current prediction, or None before the first click.
        target: bool of that shape, n cells an axis.
        uniform_share: share of clicks placed uniformly instead of in the middle.
        cell: patch voxels (model pixels) a cell.

    Returns:
        points (B, 1, 3 or 2) in patch voxels, in the order of the array's axes; labels (B, 1): 1 missed, 0 false, -1
        where there is no error.
    """
    b, n, dims = target.shape[0], target.shape[-1], target.ndim - 2
    pred = torch.zeros_like(target) if logits is None else logits > 0
    missed, false = (target & ~pred).float(), (pred & ~target).float()
    depth_missed, depth_false = thickness(missed), thickness(false)
    positive = depth_missed.flatten(1).amax(1) >= depth_false.flatten(1).amax(1)
    choose = positive.reshape(-1, *(1,) * (dims + 1))
    region = torch.where(choose, missed, false).flatten(1)
    depth = torch.where(choose, depth_missed, depth_false).flatten(1)
    uniform = torch.rand(b, 1, device=target.device) < uniform_share
    middle = (depth >= 0.8 * depth.amax(1, keepdim=True)).float() * region
    weights = torch.where(uniform, region, middle)
    none = region.sum(1) == 0
    index = (torch.rand_like(weights) * weights).argmax(1)  # uniform among the chosen voxels
    place = torch.stack([index // n**axis % n for axis in reversed(range(dims))], dim=1).float()
    points = (cell * place + torch.randint(0, cell, place.shape, device=place.device))[:, None]
    labels = torch.where(none, PADDING, positive.long())[:, None]
    return points, labels


def boxes(target: Tensor, noise: float, cell: int) -> tuple[Tensor, Tensor]:
    """Corner prompts (B, 2, 3) in patch voxels and their labels (B, 2) around each object.

    Args:
        target: (B, 1, n, n, n) bool, every object non-empty.
        noise: standard deviation of each face's displacement as a share of the box's edge.
        cell: patch voxels a cell.
    """
    b, n = target.shape[0], target.shape[-1]
    corners = torch.zeros(b, 2, 3, device=target.device)
    for axis in range(3):
        others = [2 + a for a in range(3) if a != axis]
        hit = target.amax(dim=others)[:, 0].float()
        corners[:, 0, axis] = cell * hit.argmax(1)
        corners[:, 1, axis] = cell * (n - hit.flip(1).argmax(1)) - 1
    edge = corners[:, 1:] - corners[:, :1] + 1
    shift = (noise * torch.randn_like(corners)).clamp(-0.25, 0.25) * edge
    corners = (corners + shift.round()).clamp(0, cell * n - 1)
    labels = torch.tensor([BOX_LOW, BOX_HIGH], device=target.device).expand(b, 2)
    return corners, labels

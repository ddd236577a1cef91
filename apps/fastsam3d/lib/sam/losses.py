"""Losses as pure functions that return named terms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of logits > 0 with target > 0.5; (B, 1, ...) -> (B,), 1 where both are empty."""
    pred, true = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    union = (pred | true).sum(1)
    return torch.where(union > 0, (pred & true).sum(1) / union.clamp_min(1), torch.ones_like(union, dtype=torch.float))


def mask_loss(logits: Tensor, target: Tensor, iou: Tensor) -> dict[str, Tensor]:
    """Dice (squared denominators, as published) + binary cross-entropy + squared error of the predicted IoU.

    Args:
        logits: (B, 1, m, m, m). target: the same shape, occupancy in [0, 1]. iou: (B, 1) predicted.

    Returns:
        "total", "dice", "bce", "iou": scalars. BCE counts object and background voxels of an object's neighbourhood
        alike (weights balanced up to a factor of 10), so that small objects are not drowned.
    """
    logits, target = logits.float(), target.float()
    p = logits.sigmoid().flatten(1)
    t = target.flatten(1)
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.square().sum(1) + t.square().sum(1) + 1)
    share = t.mean(1, keepdim=True).clamp_min(1e-5)
    weight = (0.1 / share).clamp(1, 10)
    bce = F.binary_cross_entropy_with_logits(logits.flatten(1), t, reduction="none")
    bce = (bce * (1 + (weight - 1) * t)).mean(1)
    score = F.mse_loss(iou[:, 0].float(), hard_iou(logits.detach(), target))
    terms = {"dice": dice.mean(), "bce": bce.mean(), "iou": score}
    terms["total"] = terms["dice"] + 2.0 * terms["bce"] + 0.2 * terms["iou"]
    return terms

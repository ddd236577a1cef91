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


def hard_dice(pred: Tensor, target: Tensor) -> Tensor:
    """Dice of masks; (B, ...) bool each -> (B,), 0 where both are empty."""
    pred, target = pred.flatten(1), target.flatten(1)
    return 2 * (pred & target).sum(1) / (pred.sum(1) + target.sum(1)).clamp_min(1)


def soft_dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - Dice with squared denominators, as published; (B, n) each -> (B,)."""
    p, t = probability, target
    return 1 - (2 * (p * t).sum(1) + 1) / (p.square().sum(1) + t.square().sum(1) + 1)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    iou: Tensor,
    weights: tuple[float, float, float] = (1.0, 2.0, 0.2),
    balance: float = 10.0,
) -> dict[str, Tensor]:
    """Dice (squared denominators, as published) + binary cross-entropy + squared error of the predicted IoU.

    Args:
        logits: (B, 1, m, m[, m]). target: the same shape, occupancy in [0, 1]. iou: (B, 1) predicted.
        weights: of Dice, BCE and IoU in the total; (1, 1, 1) as published for RepMedSAM.
        balance: BCE counts the voxels of a small object up to so many times, so that they are not drowned; 1 for plain
            BCE, as published.

    Returns:
        "total", "dice", "bce", "iou": scalars.
    """
    logits, target = logits.float(), target.float()
    p = logits.sigmoid().flatten(1)
    t = target.flatten(1)
    dice = soft_dice_loss(p, t)
    share = t.mean(1, keepdim=True).clamp_min(1e-5)
    weight = (0.1 / share).clamp(1, balance)
    bce = F.binary_cross_entropy_with_logits(logits.flatten(1), t, reduction="none")
    bce = (bce * (1 + (weight - 1) * t)).mean(1)
    score = F.mse_loss(iou[:, 0].float(), hard_iou(logits.detach(), target))
    terms = {"dice": dice.mean(), "bce": bce.mean(), "iou": score}
    terms["total"] = sum(weight * terms[name] for weight, name in zip(weights, ("dice", "bce", "iou")))
    return terms


def embedding_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's embedding from the teacher's, mean over cells.

    Every cell's channels count as one distribution (softmax), as in the first stage of RepMedSAM; the paper does not say
    over which axis it normalises.

    Args:
        student, teacher: (B, C, g, g). temperature: divides both before the softmax.
    """
    p, q = (x.float().movedim(1, -1).flatten(0, -2) / temperature for x in (student, teacher))
    return temperature**2 * F.kl_div(p.log_softmax(-1), q.log_softmax(-1), reduction="batchmean", log_target=True)


def surface_loss(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Dice + cross-entropy of sharpened logits. Object and background weigh the same, so that the surface is not moved.

    Args:
        logits: (B, 1, n, n, n). target: the same shape, occupancy in [0, 1].

    Returns:
        "total", "dice", "bce": scalars; the cross-entropy is summed over the cube and divided by the size of object and
        prediction together.
    """
    x, t = logits.float().flatten(1), target.float().flatten(1)
    p = x.sigmoid()
    size = t.sum(1) + p.detach().sum(1) + 100
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none").sum(1) / size
    terms = {"dice": soft_dice_loss(p, t).mean(), "bce": bce.mean()}
    terms["total"] = terms["dice"] + 0.5 * terms["bce"]
    return terms

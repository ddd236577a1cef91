"""Simulated prompts on images: boxes drawn a little off, clicks in the error, rounds of both.

Frames: masks are (B, 1, S, S) in model pixels; points and boxes are (x, y) in model pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..build import Sam2D
from .prompting import error_clicks


@dataclass(frozen=True)
class Prompting:
    """How a user is simulated.

    Attributes:
        box_jitter: a box's faces move outward by 0 to so many whole model pixels (5 as published).
        box_inward: they also move inward by up to so many pixels, at most a tenth of the edge (0 as published).
        tight_share: boxes without any jitter.
        click_share: objects that begin with a click and no box. both_share: with a box and a click.
        rounds: (share, rounds) of the steps; ((1, 1),) as published: a box and nothing else.
        mask_share: rounds after the first that get the logits of the round before as mask prompt.
        uniform_share: clicks anywhere in the error region instead of in its middle.
    """

    box_jitter: int = 5
    box_inward: int = 0
    tight_share: float = 0.0
    click_share: float = 0.0
    both_share: float = 0.0
    rounds: tuple[tuple[float, int], ...] = ((1.0, 1),)
    mask_share: float = 0.5
    uniform_share: float = 0.3


def jittered_boxes(target: Tensor, prompting: Prompting) -> Tensor:
    """(B, 4) float x0, y0, x1, y1 around each object of (B, 1, S, S) bool, last pixels included."""
    b, size = target.shape[0], target.shape[-1]
    ends = []
    for axis in (3, 2):  # x, y
        hit = target.amax(dim=5 - axis)[:, 0].float()
        ends.append((hit.argmax(1), size - 1 - hit.flip(1).argmax(1)))
    low = torch.stack([ends[0][0], ends[1][0]], dim=1)
    high = torch.stack([ends[0][1], ends[1][1]], dim=1)
    inward = torch.minimum((high - low + 1) // 10, torch.full_like(low, prompting.box_inward))
    loose = torch.rand(b, 1, device=target.device) >= prompting.tight_share
    shifts = []
    for _ in range(2):
        span = prompting.box_jitter + inward + 1
        shift = (torch.rand(b, 2, device=target.device) * span).long().clamp(max=span - 1) - inward
        shifts.append(shift * loose)
    return torch.cat([low - shifts[0], high + shifts[1]], dim=1).clamp(0, size - 1).float()


def unroll(
    model: Sam2D, image: Tensor, target: Tensor, prompting: Prompting, rounds: int
) -> list[tuple[Tensor, Tensor]]:
    """Rounds of prompts for many objects from one embedding an image.

    Args:
        image: (V, 3, S, S). target: (V, K, S, S) bool, every object non-empty.

    Returns:
        For each round the logits (V * K, 1, m, m) float32 and the predicted IoU (V * K, 1).
    """
    images, objects = target.shape[:2]
    embedding = model.encode(image)
    if images > 1:
        embedding = embedding.repeat_interleave(objects, 0)
    return prompt_rounds(model, embedding, target.flatten(0, 1)[:, None], prompting, rounds)


def prompt_rounds(
    model: Sam2D, embedding: Tensor, truth: Tensor, prompting: Prompting, rounds: int
) -> list[tuple[Tensor, Tensor]]:
    """`unroll` from embeddings (1 or B, C, g, g) on, for truth (B, 1, S, S) bool.

    A batch is either boxes (some with a click) or clicks: which of them is drawn once, so that no prompt needs padding.
    """
    kind = float(torch.rand(()))
    with_box = kind >= prompting.click_share
    click_first = not with_box or kind < prompting.click_share + prompting.both_share
    boxes = jittered_boxes(truth, prompting) if with_box else None
    points = torch.zeros(len(truth), 0, 2, device=truth.device)
    labels = torch.zeros(len(truth), 0, dtype=torch.long, device=truth.device)
    cell = truth.shape[-1] // model.spec.mask_size
    seen = occupancy(truth, model.spec.mask_size) > 0.5
    current, out = None, []
    for index in range(rounds):
        if index or click_first:
            place, label = error_clicks(current, seen, prompting.uniform_share, cell)
            points, labels = torch.cat([points, place.flip(-1)], 1), torch.cat([labels, label], 1)
        mask = current if index and float(torch.rand(())) < prompting.mask_share else None
        logits, iou = model.decode(embedding, (points, labels) if points.shape[1] else None, boxes, mask)
        out.append((logits.float(), iou.float()))
        current = logits.detach().float()
    return out


def occupancy(mask: Tensor, edge: int) -> Tensor:
    """Share of each cell of a mask (B, 1, S, S) that is True, (B, 1, edge, edge) float32."""
    return F.avg_pool2d(mask.float(), mask.shape[-1] // edge)

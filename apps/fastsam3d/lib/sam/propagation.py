"""From masks in some slices of a stack to masks in all slices that the object reaches.

As published for LiteMedSAM the box of the next slice is that of this slice's mask, a few pixels wider. Here many objects,
each from several slices and in both directions, advance together, so that the decoder works on batches, and a slice is
encoded once however many objects cross it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .slice_network import SlicePrompt
from .slices import BOX_MARGIN, SliceFrame

AHEAD = 1
"""Slices beyond the next that are encoded with it, in each direction: batches at the price of few in vain."""

OVERLAP, GROWTH, GREY = 0.3, 2.5, 1.5
"""An object that nothing bounds has ended where two neighbours' masks share less than OVERLAP of the smaller one, where
the next is GROWTH times as large, or where its mean grey differs from the start's by GREY standard deviations of it."""

_LEAST_DEVIATION = 8.0


@dataclass(frozen=True)
class SliceMask:
    """An answer for one slice.

    Attributes:
        mask: (h, w) bool, the part of the slice that holds every positive pixel; (0, 0) if there is none.
        corner: row and column of its first pixel.
        iou: the network's own estimate.
        grey: mean and standard deviation of the 8-bit image inside.
    """

    mask: np.ndarray
    corner: tuple[int, int]
    iou: float
    grey: tuple[float, float] = (0.0, 0.0)

    @property
    def box_xy(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 in pixels of the slice, the last ones included; of a mask that is not empty."""
        (y, x), (h, w) = self.corner, self.mask.shape
        return x, y, x + w - 1, y + h - 1


@dataclass(frozen=True)
class StackPlan:
    """One object in a stack of slices.

    Attributes:
        anchors: what is asked of the slices from which the object is followed; at least one.
        reach: first and last slice to which it may be followed.
        clicks: clicks in other slices, in pixels of the model's image; they join the box that comes from the neighbour.
        roi: x0, y0, x1, y1 in pixels of the model's image: the object lies in it on every slice of `reach`, and is
            looked for in each. None: it is followed until it ends.
    """

    anchors: Mapping[int, SlicePrompt]
    reach: tuple[int, int]
    clicks: Mapping[int, tuple[tuple[float, float, int], ...]] = field(default_factory=dict)
    roi: tuple[float, ...] | None = None


Predict = Callable[[Sequence[tuple[int, SlicePrompt]], Sequence[int]], list[SliceMask]]
"""(slices and prompts to answer, slices that will be asked for next) -> an answer each."""


@dataclass
class _Front:
    plan: int
    start: int
    at: int
    step: int
    last: int

    def following(self) -> list[int]:
        """The next slice and those AHEAD of it."""
        steps = range(1, 2 + AHEAD)
        return [self.at + n * self.step for n in steps if (self.last - self.at) * self.step >= n]


def follow(
    plans: Sequence[StackPlan], predict: Predict, frame: SliceFrame, margin: int = BOX_MARGIN
) -> list[dict[int, SliceMask]]:
    """Answers the anchors, then follows each object slice by slice.

    Between two anchors each slice is reached from the nearer one.

    Args:
        margin: pixels of the model's image by which a mask's box is widened for the next slice.

    Returns:
        For each plan the answers of the slices that were reached, empty ones included where they lie within `reach`.
    """
    asked = [(n, index, prompt) for n, plan in enumerate(plans) for index, prompt in plan.anchors.items()]
    fronts = [front for n, plan in enumerate(plans) for front in _fronts(n, plan)]
    answers = predict([(index, prompt) for _, index, prompt in asked], [])
    found: list[dict[int, SliceMask]] = [{} for _ in plans]
    for (n, index, _), answer in zip(asked, answers):
        found[n][index] = answer
    fronts = [front for front in fronts if front.at != front.last]
    while fronts:
        moving, prompts = [], []
        for front in fronts:
            prompt = _next_prompt(plans[front.plan], front, found[front.plan][front.at], frame, margin)
            if prompt is not None:
                moving.append(front)
                prompts.append((front.at + front.step, prompt))
        coming = [index for front in moving for index in front.following()]
        answers = predict(prompts, coming) if prompts else []
        fronts = [front for front, answer in zip(moving, answers) if _advance(plans[front.plan], front, answer, found)]
    return found


def _fronts(n: int, plan: StackPlan) -> list[_Front]:
    starts = sorted(plan.anchors)
    low, high = min(plan.reach[0], starts[0]), max(plan.reach[1], starts[-1])
    fronts = [_Front(n, starts[0], starts[0], -1, low), _Front(n, starts[-1], starts[-1], 1, high)]
    for below, above in zip(starts, starts[1:]):
        middle = (below + above) // 2
        fronts += [_Front(n, below, below, 1, middle), _Front(n, above, above, -1, min(middle + 1, above))]
    return fronts


def _next_prompt(plan: StackPlan, front: _Front, here: SliceMask, frame: SliceFrame, margin: int) -> SlicePrompt | None:
    """The box that this slice's mask gives the next one; None where the object is not followed any further."""
    clicks = plan.clicks.get(front.at + front.step, ())
    if not here.mask.size:
        return None if plan.roi is None else SlicePrompt(plan.roi, clicks)
    box = frame.widened_box(np.array(here.box_xy), margin)
    if plan.roi is not None:
        inside = np.concatenate([np.maximum(box[:2], plan.roi[:2]), np.minimum(box[2:], plan.roi[2:])])
        box = inside if (inside[2:] > inside[:2]).all() else np.array(plan.roi)
    return SlicePrompt(tuple(float(v) for v in box), clicks)


def _advance(plan: StackPlan, front: _Front, answer: SliceMask, found: list[dict[int, SliceMask]]) -> bool:
    """Takes the front's next answer; False where that was its last."""
    masks, slice_ = found[front.plan], front.at + front.step
    bounded = plan.roi is not None or min(plan.anchors) < slice_ < max(plan.anchors)
    if not bounded and _ended(masks[front.start], masks[front.at], answer):
        return False
    front.at += front.step
    masks[front.at] = answer
    return front.at != front.last


def _ended(start: SliceMask, before: SliceMask, now: SliceMask) -> bool:
    if not now.mask.size:
        return True
    areas = int(before.mask.sum()), int(now.mask.sum())
    if areas[1] > GROWTH * areas[0] or _common(before, now) < OVERLAP * min(areas):
        return True
    return abs(now.grey[0] - start.grey[0]) > GREY * max(start.grey[1], _LEAST_DEVIATION)


def _common(a: SliceMask, b: SliceMask) -> int:
    """Pixels that two masks share."""
    low = np.maximum(a.corner, b.corner)
    high = np.minimum(np.add(a.corner, a.mask.shape), np.add(b.corner, b.mask.shape))
    if (high <= low).any():
        return 0
    views = [m.mask[tuple(slice(first - c, end - c) for first, end, c in zip(low, high, m.corner))] for m in (a, b)]
    return int((views[0] & views[1]).sum())

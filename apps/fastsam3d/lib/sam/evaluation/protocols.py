"""How a structure is asked for: which prompts, in which order.

- points: clicks, each in the error of the mask before; apart from that, a tight box alone.
- cvpr25: a box first where the model takes one, then clicks at the centre of the largest error, the box kept.
- box2d: a tight box in every slice that the structure touches.

A model without prompts answers the same at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..clicks import next_click
from ..prompts import Box, Prompts
from ..sampling import bounding_box
from .interface import Answer, Ask

PROTOCOLS = ("points", "cvpr25", "box2d")
BOX = 0


@dataclass(frozen=True)
class Step:
    """One answer on the way.

    Attributes:
        clicks: how many clicks were made, BOX for the answer to a box (or boxes) alone.
        prompts: what was asked (for box2d the last slice's).
        answer: what came back.
    """

    clicks: int
    prompts: Prompts
    answer: Answer


def click_steps(
    ask: Ask,
    target: np.ndarray,
    spacing_mm: tuple[float, float, float],
    count: int,
    rule: str,
    rng: np.random.Generator | None = None,
    first: Step | None = None,
) -> Iterator[Step]:
    """Clicks on one structure, each in the error of the mask before; nothing is asked once the mask is perfect.

    Args:
        target: (I, J, K) bool, the truth, not empty.
        count: how many steps to yield.
        rule, rng: see `clicks.next_click`.
        first: the answer to a box, whose box stays and whose mask is refined.
    """
    box = first.prompts.box if first else None
    last = first or Step(BOX, Prompts(), Answer(np.zeros(target.shape, dtype=bool), 0.0))
    clicks = []
    for n in range(1, count + 1):
        click = next_click(last.answer.mask, target, rng, rule, spacing_mm)
        if click is None:
            last = Step(n, last.prompts, Answer(last.answer.mask, 0.0))
        else:
            clicks.append(click)
            prompts = Prompts(tuple(clicks), box)
            last = Step(n, prompts, ask(prompts))
        yield last


def box_step(ask: Ask, box: Box | None) -> Step | None:
    """The answer to a box alone; None without a box."""
    if box is None:
        return None
    prompts = Prompts((), box)
    return Step(BOX, prompts, ask(prompts))


def automatic_steps(ask: Ask, count: int) -> Iterator[Step]:
    """What a model without prompts answers, as the answer to a box and to every click; its time counts once."""
    answer = ask(Prompts())
    yield Step(BOX, Prompts(), answer)
    for n in range(1, count + 1):
        yield Step(n, Prompts(), answer if n == 1 else replace(answer, seconds=0.0))


def tight_box(target: np.ndarray) -> Box | None:
    """The smallest box around a mask (I, J, K) bool; None where it would be a line or a point, which is no box."""
    window = bounding_box(target)
    if window is None or sum(s.stop - s.start == 1 for s in window) > 1:
        return None
    return Box(tuple(s.start for s in window), tuple(s.stop - 1 for s in window))


def challenge_box(target: np.ndarray) -> Box | None:
    """The box of the CVPR 2025 challenge: first to last slice, and the structure's extent in the slice where it is largest."""
    areas = target.sum(axis=(0, 1))
    if not areas.any():
        return None
    middle = int(np.argmax(areas))
    window = tight_box(target[:, :, middle : middle + 1])
    slices = np.flatnonzero(areas)
    if window is None:
        return None
    low, high = (*window.low_ijk[:2], int(slices[0])), (*window.high_ijk[:2], int(slices[-1]))
    return Box(low, high)


def slice_boxes(target: np.ndarray) -> list[Box]:
    """A tight box in every slice (along k) that the structure touches, at least two pixels wide along both axes."""
    boxes = []
    for k in np.flatnonzero(target.any(axis=(0, 1))).tolist():
        low, high = [], []
        for axis in (1, 0):
            used = np.flatnonzero(target[:, :, k].any(axis=axis))
            begin, end = int(used[0]), int(used[-1])
            if begin == end:
                end = min(end + 1, target.shape[1 - axis] - 1)
                begin = max(0, end - 1)
            low.append(begin)
            high.append(end)
        boxes.append(Box((*low, k), (*high, k)))
    return boxes


def slices_step(ask: Ask, target: np.ndarray) -> Step:
    """Every slice by its own box; the masks of the slices make one mask."""
    mask = np.zeros(target.shape, dtype=bool)
    seconds, warnings, prompts = 0.0, [], Prompts()
    for box in slice_boxes(target):
        prompts = Prompts((), box)
        answer = ask(prompts)
        k = box.low_ijk[2]
        mask[:, :, k] = answer.mask[:, :, k]
        seconds += answer.seconds
        warnings += answer.warnings
    return Step(BOX, prompts, Answer(mask, seconds, tuple(dict.fromkeys(warnings))))

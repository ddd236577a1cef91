"""Which slices of a scan a user's prompts mean, and what is asked of each."""

from __future__ import annotations

import numpy as np

from .geometry import Grid
from .prompts import PromptError, Prompts
from .propagation import StackPlan
from .slice_network import SlicePrompt
from .slices import SliceFrame, plane_axes

THICK = 1.5
"""The slices of a scan lie across its last axis, as viewers and files count them, unless the voxels are this many times
longer along another one (a stack that was stored with its axes in another order)."""


def stack_axis(grid: Grid) -> int:
    """The axis across which the scan's slices lie."""
    spacing = grid.spacing_mm
    longest = int(np.argmax(spacing))
    return longest if spacing[longest] > THICK * spacing[2] and grid.shape[longest] > 1 else 2


def plane_axis(grid: Grid, prompts: Prompts, single: bool) -> int:
    """The axis across which the slices lie that these prompts mean.

    A box that is one voxel thin lies in one slice, whichever axis that is. A single slice is otherwise the one in which
    all clicks lie; if they share more than one, the one of the scan's own stack.

    Args:
        single: one slice is asked for, rather than a stack.

    Raises:
        PromptError: one slice is asked for, and the clicks lie in several along each axis.
    """
    own = stack_axis(grid)
    box = prompts.box
    if box is not None:
        thin = [axis for axis in range(3) if box.low_ijk[axis] == box.high_ijk[axis]]
        return thin[0] if thin else own
    if not single:
        return own
    shared = [axis for axis in range(3) if np.ptp(prompts.clicks_ijk[:, axis]) == 0]
    if not shared:
        raise PromptError(
            f"all prompts for one slice must lie in one slice, got {len(prompts.clicks)} clicks in several along each axis; "
            "take the model of dimension 3 for a stack"
        )
    return own if own in shared else shared[0]


def plan_prompts(
    grid: Grid, prompts: Prompts, axis: int, frame: SliceFrame, single: bool, extent: int = 0
) -> tuple[StackPlan, list[str]]:
    """What is asked of which slice.

    A box that is thicker than one voxel bounds a stack: it is asked of the middle slice first, as published, and of the
    slices with clicks on the object. Otherwise the object is followed from the slices with the thin box or with clicks
    on the object until it ends.

    Args:
        axis: across the slices. frame: of each slice.
        single: the stack is one slice: that of the thin box or of the clicks, else the box's middle.
        extent: slices beyond the first and the last prompt to which an object without a box may be followed; 0 for all.

    Returns:
        The plan, and what the user should know.
    """
    clicks = _by_slice(prompts, axis, frame)
    on_object = sorted({c.ijk[axis] for c in prompts.clicks if c.positive})
    count, box = grid.shape[axis], _flat_box(prompts, axis, frame)
    first, last = (
        (on_object[0], on_object[-1])
        if prompts.box is None
        else (prompts.box.low_ijk[axis], prompts.box.high_ijk[axis])
    )
    bounded = box is not None and last > first
    middle = (first + last) // 2
    if single:
        inside = [index for index in on_object if box is None or first <= index <= last]
        middle = inside[0] if inside else middle
        anchors, reach = {middle: box}, (middle, middle)
    elif bounded:
        anchors, reach = dict.fromkeys([middle, *(i for i in on_object if first <= i <= last)], box), (first, last)
    else:
        anchors = dict.fromkeys(on_object) | ({first: box} if box else {})
        beyond = extent or count
        reach = max(0, min(anchors) - beyond), min(count - 1, max(anchors) + beyond)
    used = {index: given for index, given in clicks.items() if reach[0] <= index <= reach[1]}
    warnings = []
    if left := sum(len(given) for index, given in clicks.items() if index not in used):
        warnings.append(f"{left} clicks lie in slices that are not asked for and were not used")
    if single and bounded and not inside:
        warnings.append(f"the box spans the slices {first} to {last}; its middle one, {middle}, was segmented")
    plan = StackPlan(
        anchors={index: SlicePrompt(of_box, used.get(index, ())) for index, of_box in anchors.items()},
        reach=reach,
        clicks=used,
        roi=box if bounded and not single else None,
    )
    return plan, warnings


def model_box(box_xy: np.ndarray, frame: SliceFrame) -> tuple[float, ...]:
    """A box in pixels of a slice -> of the model's image, as published; at least one pixel wide there."""
    x0, y0, x1, y1 = frame.boxes_to_model(box_xy).tolist()
    return float(x0), float(y0), float(max(x1, x0 + 1)), float(max(y1, y0 + 1))


def _flat_box(prompts: Prompts, axis: int, frame: SliceFrame) -> tuple[float, ...] | None:
    if prompts.box is None:
        return None
    x, y = plane_axes(axis)
    low, high = prompts.box.low_ijk, prompts.box.high_ijk
    return model_box(np.array([low[x], low[y], high[x], high[y]]), frame)


def _by_slice(prompts: Prompts, axis: int, frame: SliceFrame) -> dict[int, tuple[tuple[float, float, int], ...]]:
    """The clicks of each slice, in their order, in pixels of the model's image."""
    if not prompts.clicks:
        return {}
    points = frame.points_to_model(prompts.clicks_ijk[:, list(plane_axes(axis))])
    found: dict[int, list[tuple[float, float, int]]] = {}
    for click, (x, y) in zip(prompts.clicks, points.tolist()):
        found.setdefault(click.ijk[axis], []).append((x, y, int(click.positive)))
    return {index: tuple(given) for index, given in found.items()}

"""Simulated clicks on one structure, for training and its gate; the command's whole protocol is in `evaluation/`."""

from __future__ import annotations

import numpy as np

from .evaluation.components import largest_component
from .evaluation.protocols import box_step, click_steps, tight_box
from .evaluation.volume_model import VolumeModel
from .metrics import dice
from .segmenter import VolumeSegmenter
from .session import ImageSession

__all__ = ["dice", "evaluate_case", "largest_component"]


def evaluate_case(
    segmenter: VolumeSegmenter,
    session: ImageSession,
    target: np.ndarray,
    *,
    max_clicks: int,
    rule: str = "centre",
    seed: int = 0,
    boxes: bool = True,
) -> tuple[list[float], list[float], float | None]:
    """Clicks on one structure until `max_clicks`, each in the error of the mask before.

    Nothing here looks at the truth except the click simulator: the first click decides the patch, and the Dice is that
    of the mask on the whole scan after that very click.

    Args:
        target: (I, J, K) bool, the truth on the session's grid, not empty.
        boxes: also try a tight box.

    Returns:
        Dice after each click, seconds of each click, and the Dice of a tight box alone (None without boxes).
    """
    spacing = tuple(float(s) for s in session.volume.grid.spacing_mm)
    model = VolumeModel(segmenter.weights_name, segmenter)
    with model.open(session) as ask:
        steps = click_steps(ask, target, spacing, max_clicks, rule, np.random.default_rng(seed))
        scored = [(dice(s.answer.mask, target), s.answer.seconds) for s in steps]
        boxed = box_step(ask, tight_box(target)) if boxes and model.boxes else None
    box_dice = None if boxed is None else dice(boxed.answer.mask, target)
    return [score for score, _ in scored], [seconds for _, seconds in scored], box_dice

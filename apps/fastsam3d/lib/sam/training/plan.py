"""Which annotated cases train, and on which the gate compares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from .cases import LabelledCase

FEWEST_TO_HOLD_OUT = 5
_FOLDS = 3
_FINAL_SHARE = 0.5


@dataclass(frozen=True)
class Fold:
    """One training: its name, its cases, the cases that judge it, and its share of the time budget."""

    name: str
    train: tuple[LabelledCase, ...]
    held_out: tuple[LabelledCase, ...]
    share: float


def plan(cases: Sequence[LabelledCase]) -> list[Fold]:
    """The trainings of a run; the last one gives the candidate.

    From five cases on, a fifth is held out. Fewer are cross-validated: each case is held out of one training, half of
    the budget goes to these, and the candidate is then trained on all of them. The order follows from the cases' names
    alone, so a case that was held out stays so for as long as may be.

    Raises:
        ValueError: fewer than two cases.
    """
    if len(cases) < 2:
        raise ValueError(
            f"training needs at least 2 annotated cases, one to learn from and one to check on; got {len(cases)}. "
            "Save the labels of more cases first (Submit Label in 3D Slicer, Export in OHIF)"
        )
    order = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).hexdigest())
    if len(order) >= FEWEST_TO_HOLD_OUT:
        held = len(order) // FEWEST_TO_HOLD_OUT
        return [Fold("candidate", tuple(order[held:]), tuple(order[:held]), 1.0)]
    count = min(_FOLDS, len(order)) if len(order) != 4 else 2
    folds = []
    for n in range(count):
        held = tuple(order[n::count])
        rest = tuple(case for case in order if case not in held)
        folds.append(Fold(f"fold-{n + 1}", rest, held, (1 - _FINAL_SHARE) / count))
    return [*folds, Fold("candidate", tuple(order), (), _FINAL_SHARE)]

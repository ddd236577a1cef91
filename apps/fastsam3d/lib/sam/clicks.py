"""The click simulator: where a user would click next, for training and for evaluation.

The rules "random" and "ritm" are re-implementations of what FastSAM3D and SAM-Med3D train and validate with; given
numpy's RandomState they draw the same voxels. "centre" is deterministic. "cvpr25" is the rule of the CVPR 2025 challenge
for interactive 3D segmentation (its CVPR25_iter_eval.py).
"""

from typing import Protocol

import numpy as np
from scipy import ndimage

from .prompts import Click
from .sampling import bounding_box

RULES = ("random", "ritm", "centre", "cvpr25")

SIMULATOR_THRESHOLDS = {"fastsam3d": 0.5, "sam_med3d": 0.0}
"""Logit above which the published click simulators count a voxel as segmented (FastSAM3D compares the logit with 0.5;
SAM-Med3D the probability). It shapes the training clicks only: a final mask is logit > 0."""


class RandomSource(Protocol):
    """numpy's Generator, or anything else with `integers`; RandomState's `randint` is taken as well."""

    def integers(self, high: int) -> int: ...


def simulator_mask(logits: np.ndarray, published: str = "fastsam3d") -> np.ndarray:
    """Thresholds logits (any shape) as the named published click simulator does: bool array of the same shape.

    Raises:
        ValueError: an unknown name.
    """
    if published not in SIMULATOR_THRESHOLDS:
        raise ValueError(f"a click simulator must be one of {', '.join(SIMULATOR_THRESHOLDS)}, got {published!r}")
    return logits > SIMULATOR_THRESHOLDS[published]


def next_click(
    pred: np.ndarray,
    target: np.ndarray,
    rng: "RandomSource | np.random.RandomState | None" = None,
    rule: str = "random",
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Click | None:
    """Chooses the next click in the error of a prediction.

    Args:
        pred: (I, J, K) bool, the present mask.
        target: (I, J, K) bool, the truth.
        rng: numpy Generator or RandomState that draws among the candidates; "centre" needs none.
        rule: "random", uniform over all wrong voxels; "ritm", uniform over the voxels deeper than half the largest
            depth, in whichever of the missed and the surplus voxels are deeper; "centre", the deepest wrong voxel;
            "cvpr25", the deepest voxel, in voxels, of the largest 26-connected region of wrong voxels.
        spacing_mm: voxel size, for depths in mm; the published rules count voxels.

    Returns:
        A positive click on a missed voxel or a negative one on a surplus voxel; None when there is no error.

    Raises:
        ValueError: shapes that differ or are not three-dimensional, an unknown rule, or no rng where one is needed.
    """
    candidates, positive = click_candidates(pred, target, rule, spacing_mm)
    if len(candidates) == 0:
        return None
    chosen = 0
    if rule == "cvpr25":  # as published: a generator that starts anew for each click
        chosen = int(np.random.RandomState(42).randint(len(candidates)))
    elif rule != "centre":
        if rng is None:
            raise ValueError(f'the rule "{rule}" draws at random and needs an rng, got None')
        draw = rng.randint if isinstance(rng, np.random.RandomState) else rng.integers
        chosen = int(draw(len(candidates)))
    return Click(tuple(int(v) for v in candidates[chosen]), bool(positive[chosen]))


def click_candidates(
    pred: np.ndarray, target: np.ndarray, rule: str = "random", spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Lists the voxels among which `next_click` draws (same arguments).

    Returns:
        candidates: (N, 3) int64 voxel indices in row-major order; empty when there is no error.
        positive: (N,) bool, True where the target is missed.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape or pred.ndim != 3:
        raise ValueError(f"pred and target must be (I, J, K) arrays of one shape, got {pred.shape} and {target.shape}")
    if rule not in RULES:
        raise ValueError(f"a click rule must be one of {', '.join(RULES)}, got {rule!r}")
    pred, target = pred.astype(bool, copy=False), target.astype(bool, copy=False)
    error = pred ^ target
    box = bounding_box(error)
    if box is None:
        return np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=bool)
    error, target = error[box], target[box]
    if rule == "random":
        chosen = np.argwhere(error)
        positive = target[tuple(chosen.T)]
    elif rule == "cvpr25":
        parts, _ = ndimage.label(error, structure=np.ones((3, 3, 3)))
        depth = _depth(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])), (1.0, 1.0, 1.0))
        chosen = np.argwhere((depth == depth.max()).T)[:, ::-1]  # the challenge's arrays are (k, j, i)
        positive = target[tuple(chosen.T)]
    else:
        missed, surplus = _depth(error & target, spacing_mm), _depth(error & ~target, spacing_mm)
        is_missed = missed.max() > surplus.max()  # ties go to the surplus, as published
        depth = missed if is_missed else surplus
        if rule == "ritm":
            chosen = np.argwhere(depth > depth.max() / 2)
        else:
            chosen = np.array([np.unravel_index(np.argmax(depth), depth.shape)])
        positive = np.full(len(chosen), is_missed)
    return chosen + np.array([s.start for s in box]), positive


def _depth(region: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Euclidean distance of every voxel of a region to the nearest voxel outside it; beyond the array is outside."""
    depth = np.zeros(region.shape)
    box = bounding_box(region)
    if box is not None:
        padded = np.pad(region[box], 1)
        depth[box] = ndimage.distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return depth

"""How well a mask fits the truth, and how fast it got there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy import integrate

from .sampling import bounding_box

TOLERANCE_MM = 2.0
"""How far two surfaces may lie apart and still count as one, unless a user sets it; as in the CVPR 2025 challenge."""


def dice(pred: np.ndarray, target: np.ndarray) -> float:
    """Dice coefficient of two bool arrays; 1 where both are empty."""
    total = int(pred.sum()) + int(target.sum())
    return 2.0 * int((pred & target).sum()) / total if total else 1.0


def surface_dice(
    pred: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces that lies within the tolerance of the other one.

    Computed by MONAI on surface elements weighted by their area, which is the definition of DeepMind's surface-distance
    (Nikolov et al. 2018). The outer faces of the array belong to the surface. A scan of one slice is treated as a plane.

    Args:
        pred, target: (I, J, K) bool.
        spacing_mm: (3,) distance of neighbouring voxels along each axis.
        tolerance_mm: the largest distance that counts as agreement.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where only one is.

    Raises:
        ValueError: a tolerance that is not a finite number of at least 0.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"a tolerance must be a finite number of mm, at least 0, got {tolerance_mm}")
    window = bounding_box(pred | target)
    if window is None:
        return 1.0
    if not (pred[window].any() and target[window].any()):
        return 0.0
    from monai.metrics import compute_surface_dice  # takes seconds to import, and only this needs it

    pair, spacing = [pred[window], target[window]], [float(s) for s in spacing_mm]
    if pred.shape[2] == 1:
        pair, spacing = [a[..., 0] for a in pair], spacing[:2]
    tensors = [torch.from_numpy(np.ascontiguousarray(a))[None, None] for a in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI deprecates an argument that it passes itself
        value = compute_surface_dice(
            *tensors, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(value[0, 0])


def click_area(scores: Sequence[float]) -> float:
    """Area under the curve of a score over clicks (trapezoids), divided by its width: in [0, 1] like the score."""
    if not scores:
        raise ValueError("an area under clicks needs at least one score, got none")
    if len(scores) == 1:
        return float(scores[0])
    return float(integrate.trapezoid(scores)) / (len(scores) - 1)


def clicks_to_reach(scores: Sequence[float], goal: float) -> int | None:
    """How many clicks the score first needs to reach the goal; None if it never does."""
    return next((n for n, score in enumerate(scores, start=1) if score >= goal), None)

"""Which of several looks at a first click shows the object: how well a mask fits, told from the mask itself.

The network's estimate of its own mask's IoU says little where it is not sure: of looks whose estimates differ by a few hundredths the
better one may show a whole vertebra and the other a third of it. What also tells is how the logits fall off at the border, how
compact the mask is, how it differs from what surrounds it, and its size. A linear model of these, fitted to looks at clicks
on generated anatomy whose truth is known, estimates the Dice (docs/decisions/0006). That stable masks are good ones is known
from SAM's mask generator (Kirillov et al. 2023).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_RING = 2  # cells around a mask that count as its surroundings

FIT = {
    "iou": (0.5079, 0.0753, -0.0105),
    "log_cell": (1.4685, 0.3594, -0.1014),
    "log_volume": (2.3696, 1.9355, 0.2164),
    "stable_1": (0.3258, 0.1607, -0.0089),
    "stable_2": (0.1104, 0.1070, 0.0112),
    "logit_inside": (1.4816, 0.5334, 0.0969),
    "logit_around": (-2.2924, 0.7162, -0.0734),
    "doubtful": (7.1735, 6.1574, 0.0277),
    "longest": (0.3318, 0.2009, -0.0594),
    "shortest": (0.2172, 0.1396, -0.0268),
    "fill": (0.3885, 0.1500, 0.0058),
    "surface": (3.7232, 1.0745, -0.0247),
    "linear_contrast": (1.1295, 1.6882, -0.0254),
    "linear_inside": (0.4149, 0.6108, 0.0354),
    "linear_around": (0.8628, 0.6976, 0.0132),
    "rank_contrast": (0.8472, 0.7416, 0.0208),
    "rank_inside": (0.2552, 0.2157, -0.0123),
    "rank_around": (0.8213, 0.4928, -0.0086),
}
"""Of each number that describes a mask: its mean and deviation among the looks that were fitted, and its weight. Made by
scripts/fit_looks.py."""

EXPECTED = 0.3502
"""The Dice of a look whose numbers are all as their means."""

FARTHEST = 4.0
"""Deviations from the mean; what lies beyond counts as there."""


def described(logits: np.ndarray, mask: np.ndarray, iou: float, cell_mm: float, intensities: np.ndarray) -> np.ndarray:
    """A mask in numbers, in the order of FIT.

    Args:
        logits: (m, m, m) of the decoder. mask: (m, m, m) bool, the cells that are shown; at least one.
        iou: the network's own estimate. cell_mm: edge of a cell.
        intensities: (2, m, m, m) mean intensities of the cells as the network sees them: linear, and rank.

    Returns:
        (D,) float64.
    """
    count, edge = int(mask.sum()), mask.shape[0]
    ring = ndimage.binary_dilation(mask, iterations=_RING) & ~mask
    if not ring.any():
        ring = mask
    sides = np.ptp(np.argwhere(mask), axis=0) + 1
    border = int((mask & ~ndimage.binary_erosion(mask, border_value=1)).sum())
    surface = count ** (2 / 3)
    numbers = {
        "iou": iou,
        "log_cell": np.log(cell_mm),
        "log_volume": np.log(0.01 + count * cell_mm**3 / 1000),
        **{f"stable_{d}": (logits > d).sum() / max(1, int((logits > -d).sum())) for d in (1, 2)},
        "logit_inside": logits[mask].mean(),
        "logit_around": logits[ring].mean(),
        "doubtful": (np.abs(logits) < 1).sum() / surface,
        "longest": sides.max() / edge,
        "shortest": sides.min() / edge,
        "fill": count / sides.prod(),
        "surface": border / surface,
    }
    for name, values in zip(("linear", "rank"), intensities):
        spread = values.std() + 1e-6
        numbers[f"{name}_contrast"] = abs(values[mask].mean() - values[ring].mean()) / spread
        numbers[f"{name}_inside"] = values[mask].std() / spread
        numbers[f"{name}_around"] = values[ring].std() / spread
    return np.array([float(numbers[name]) for name in FIT])


def expected_dice(description: np.ndarray) -> float:
    """The Dice that a mask of this description (D,) is expected to have; to compare looks by, no probability."""
    mean, deviation, weight = np.array(list(FIT.values())).T
    return EXPECTED + float(((description - mean) / deviation).clip(-FARTHEST, FARTHEST) @ weight)

"""Asking a segmenter many single clicks in one patch: for what training must keep, and for how sure the model is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .geometry import Grid
from .intensity import padding_floor
from .placement import place_patch
from .postprocess import connected_to_clicks
from .preprocess import network_input
from .prompts import Click, Prompts
from .segmenter import VolumeSegmenter

_MOVED = 3
_VISIBLE = 0.02


@dataclass(frozen=True)
class Probe:
    """How sure a model is about one place, each in [0, 1], 1 being sure.

    Attributes:
        iou: its own estimate of the mask's intersection over union.
        clarity: 1 - mean entropy (bits) of the cells that may belong to the mask.
        agreement: mean Dice of the mask with those of clicks elsewhere in it.
    """

    iou: float
    clarity: float
    agreement: float

    @property
    def doubt(self) -> float:
        """1 - the mean of the three."""
        return 1 - (self.iou + self.clarity + self.agreement) / 3


def answer_cells(
    segmenter: VolumeSegmenter, embedding, cells: np.ndarray, passes: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the model answers to one click in the middle of each cell, all in one batch.

    Args:
        embedding: of the patch. cells: (N, 3) cells of the mask grid. passes: decoder passes, see SamSpec.first_passes.

    Returns:
        logits (N, m, m, m) float32, parts without the click removed; predicted IoU (N,).
    """
    count, edge = len(cells), segmenter.spec.cell
    points = torch.tensor(cells * edge + edge // 2, dtype=torch.float32, device=segmenter.device)[:, None]
    labels = torch.ones(count, 1, dtype=torch.long, device=segmenter.device)
    logits, iou = segmenter.decode(embedding, (points, labels), passes=passes)
    found = logits[:, 0].cpu().numpy()
    connected = np.stack([connected_to_clicks(one, cell[None]) for one, cell in zip(found, cells)])
    return connected, iou[:, 0].cpu().numpy()


def probe(
    segmenter: VolumeSegmenter,
    volume: np.ndarray,
    grid: Grid,
    centre_ijk: np.ndarray,
    rng: np.random.Generator,
    floor: tuple[float | None] | None = None,
) -> Probe:
    """How sure the model is about what lies at a voxel.

    Args:
        volume: (I, J, K) array of the scan. centre_ijk: (3,) the voxel clicked on.
        rng: draws where the click is moved to. floor: (padding_floor(volume),) if it is known.
    """
    spec, edge = segmenter.spec, segmenter.spec.cell
    centre = tuple(int(v) for v in np.clip(np.round(centre_ijk), 0, np.array(grid.shape) - 1))
    frame = place_patch(grid, Prompts((Click(centre),)), spec)
    floor = floor or (padding_floor(volume),)
    image = network_input(volume, frame, floor[0], spec.intensity)
    embedding = segmenter.encode(torch.from_numpy(image)[None])
    first = np.clip(np.floor(frame.to_patch(np.array([centre])) + 0.5).astype(int) // edge, 0, spec.mask_size - 1)
    logits, iou = answer_cells(segmenter, embedding, first, spec.first_passes)
    mask = logits[0] > 0
    share = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    seen = share > _VISIBLE
    p = np.clip(share[seen], 1e-6, 1 - 1e-6)
    entropy = float(np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p))) if seen.any() else 1.0
    if not mask.any():
        return Probe(0.0, 1 - entropy, 0.0)
    places = np.argwhere(mask)
    moved, _ = answer_cells(segmenter, embedding, places[rng.integers(len(places), size=_MOVED)], spec.first_passes)
    dice = [2 * (mask & (m > 0)).sum() / (mask.sum() + (m > 0).sum()) for m in moved]
    return Probe(float(np.clip(iou[0], 0, 1)), 1 - entropy, float(np.mean(dice)))

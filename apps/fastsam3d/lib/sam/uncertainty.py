"""How sure a mask is, voxel by voxel.

The network is asked again with every prompt moved a little, as another user might have placed it. Of the mean
probability over these answers the entropy is taken, in bits: 0 where all answers say the same and are sure of it, 1
where object and background are equally likely. It is the sum of two parts (Houlsby et al. 2011; for segmentation Mobiny
et al. 2021): the answers' own doubt (mean of their entropies), and their disagreement (the rest, mutual information).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .compute import computed
from .geometry import Grid
from .networks.layers import trilinear
from .networks.prompt_maps import BOX_HIGH, BOX_LOW
from .prompts import Prompts
from .segmenter import View, VolumeSegmenter
from .session import ImageSession

SHIFT = 3
"""How far prompts are moved along each axis, patch voxels (4.5 mm as published): less than a cell of the mask."""

_DIRECTIONS = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))


@dataclass(frozen=True)
class UncertaintyMap:
    """Uncertainty in [0, 1] where the model looked.

    Attributes:
        values: (i, j, k) float32 box of the scan.
        corner_ijk: the scan's voxel at the box's low corner.
        grid: the scan's.
        disagreement: share of the total that comes from answers that differ, the rest being each answer's own doubt.
    """

    values: np.ndarray
    corner_ijk: tuple[int, int, int]
    grid: Grid
    disagreement: float

    def full(self) -> np.ndarray:
        """(I, J, K) float32 map of the whole scan; 0 where the model did not look."""
        result = np.zeros(self.grid.shape, dtype=np.float32, order="F")
        result[tuple(slice(c, c + n) for c, n in zip(self.corner_ijk, self.values.shape))] = self.values
        return result

    def most_uncertain_ijk(self) -> tuple[int, int, int]:
        """The voxel with the largest value; a click there tells the model most."""
        peak = np.unravel_index(int(np.argmax(self.values)), self.values.shape) if self.values.size else (0, 0, 0)
        return tuple(int(p) + c for p, c in zip(peak, self.corner_ijk))


def uncertainty_map(segmenter: VolumeSegmenter, session: ImageSession, prompts: Prompts) -> UncertaintyMap:
    """The uncertainty of the answer to these prompts; four decoder passes beyond the answer itself.

    Raises:
        PromptError: prompts that this scan or this model cannot be asked.
    """
    segmenter = segmenter.answering(session, prompts)
    view = segmenter.look(session, prompts)
    fine, disagreement = _measured(segmenter, view)
    values, corner = view.frame.paste_values(fine)
    return UncertaintyMap(values, corner, session.volume.grid, disagreement)


@computed
def _measured(segmenter: VolumeSegmenter, view: View) -> tuple[np.ndarray, float]:
    """The uncertainty (S, S, S) in the patch, and the share of it that is disagreement."""
    given = view.rounds[-1] if segmenter.spec.replay == "last" else [p for r in view.rounds for p in r]
    points, labels = _moved(given, segmenter.spec.patch_size, segmenter.device)
    logits = [view.logits]
    for moved in points:
        logits.append(segmenter.decode(view.embedding, (moved[None], labels[None]), view.logits)[0])
    chance = torch.sigmoid(torch.cat(logits)[:, 0].float()).cpu()
    mean = chance.mean(dim=0)
    doubt, total = float(_entropy(chance).mean()), float(_entropy(mean).mean())
    fine = _entropy(trilinear(mean, segmenter.spec.patch_size).clamp(0, 1)).numpy()
    return fine, (total - doubt) / total if total > 0 else 0.0


def _moved(given, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The prompts in each direction (4, N, 3), inside the patch, and their labels (N,). A box grows or shrinks."""
    points = torch.tensor([p for p, _ in given], dtype=torch.float32, device=device).reshape(-1, 3)
    labels = torch.tensor([label for _, label in given], dtype=torch.long, device=device)
    directions = torch.tensor(_DIRECTIONS, dtype=torch.float32, device=device)[:, None].repeat(1, len(points), 1)
    growth = torch.tensor([1.0, -1.0, 0.5, -0.5], device=device)[:, None, None]
    for corner, sign in ((BOX_LOW, -1.0), (BOX_HIGH, 1.0)):
        directions = torch.where((labels == corner)[None, :, None], sign * growth, directions)
    return (points + SHIFT * directions).clamp(0, size - 1), labels


def _entropy(chance: Tensor) -> Tensor:
    """Binary entropy in bits."""
    p = chance.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())

"""How like the clicked places every place of a patch is, as the embedding alone tells.

A click's Fourier features say where it is, and a decoder must learn to fetch what lies there before any layer of the encoder
is of use to it; a network that sees few patches never does. Here every click's token gets the embedding at its place, and two maps
compare every token of the image with the clicked ones and are added to the logits: that parts of one object be like each other
is asked of the encoder directly. Compare appearance.py, which asks the stem and the intensities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import SamSpec
from .connectedness import at_cells
from .layers import trilinear
from .prompt_maps import NEGATIVE, POSITIVE

KEY_CHANNELS = 24


class Likeness(nn.Module):
    """Maps of likeness to the clicks, and what they add to tokens, to the dense embedding and to logits."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        out, width = spec.encoder.out, spec.decoder.width
        self.patch = spec.encoder.patch
        self.key = nn.Conv3d(out, KEY_CHANNELS, 1)
        self.norm = nn.LayerNorm(out)
        self.content = nn.Linear(out, width)
        self.dense = nn.Conv3d(2, width, 1)
        self.gain = nn.Parameter(torch.tensor([4.0, -2.0, -2.0]))

    def maps(self, points: tuple[Tensor, Tensor], embedding: Tensor) -> Tensor:
        """Cosine of every token's key and that of the most similar click of each sign.

        Args:
            points: coordinates (B, N, 3) in voxels of the patch, labels (B, N). embedding: (1 or B, out, g, g, g).

        Returns:
            (B, 2, g, g, g) float32 for positive, then negative clicks; 0 without a click of that sign.
        """
        coords, labels = points
        keys = F.normalize(self.key(embedding).float(), dim=1)
        clicked = at_cells(keys, coords // self.patch)  # (B, c, N)
        cosines = torch.einsum("bcn,bcx->bnx", clicked, keys.flatten(2).expand(len(coords), -1, -1)).float()
        found = []
        for label in (POSITIVE, NEGATIVE):
            use = (labels == label)[..., None]
            best = torch.where(use, cosines, -1.0).amax(1) if labels.shape[1] else cosines.sum(1)
            found.append(torch.where(use.any(1), best, 0.0))
        return torch.stack(found, dim=1).unflatten(2, keys.shape[2:])

    def tokens(self, points: tuple[Tensor, Tensor], embedding: Tensor) -> Tensor:
        """The embedding at clicks -> additions to their tokens (B, N, width), 0 for a box's corners and padding."""
        coords, labels = points
        content = self.content(self.norm(at_cells(embedding, coords // self.patch).transpose(1, 2).float()))
        return content * ((labels == POSITIVE) | (labels == NEGATIVE))[..., None]

    def logits(self, maps: Tensor) -> Tensor:
        """(B, 2, g, g, g) -> (B, 1, m, m, m), to be added to those of the decoder."""
        same, other, bias = self.gain
        return trilinear(same * maps[:, :1] + other * maps[:, 1:] + bias, 4 * maps.shape[-1])

"""The one builder of the 3D networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .networks.decoder3d import MaskDecoder3D
from .networks.prompt3d import PromptEncoder3D
from .networks.vit3d import ImageEncoder3D
from .spec import SamSpec


class Sam3D(nn.Module):
    """Image encoder, prompt encoder and mask decoder; state-dict keys of the published checkpoints."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        self.spec = spec
        self.image_encoder = ImageEncoder3D(spec.encoder)
        self.prompt_encoder = PromptEncoder3D(spec)
        self.mask_decoder = MaskDecoder3D(spec)

    def encode(self, patch: Tensor, window: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised patch (B, channels, S, S, S) -> embedding (B, out, g, g, g), skip features.

        Args:
            window: (B, 3) token offsets of cubes smaller than the spec's (training only), or None.
        """
        return self.image_encoder.forward_features(patch, window)

    def decode(
        self,
        embedding: tuple[Tensor, tuple[Tensor, ...]],
        points: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        window: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One round of prompts.

        Args:
            embedding: what `encode` returned for one patch (batch 1, shared by all B prompts) or for B patches.
            points: (coordinates (B, N, 3) in patch voxels, labels (B, N)) or None.
            mask: (B, 1, m, m, m) previous logits; zeros in the first round, as published.
            window: (B, 3) token offsets, see `encode`.

        Returns:
            logits (B, 1, m, m, m), predicted IoU (B, 1).
        """
        image, skips = embedding
        sparse, dense, maps = self.prompt_encoder(points, mask, window)
        pe = self.prompt_encoder.dense_position(window, image.shape[-1])
        return self.mask_decoder(image, pe, sparse, dense, skips=skips, maps=maps)


def build_sam(spec: SamSpec) -> Sam3D:
    """Networks of that spec with fresh (random) weights, on the CPU, in training mode."""
    with torch.device("cpu"):
        model = Sam3D(spec)
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
    return model

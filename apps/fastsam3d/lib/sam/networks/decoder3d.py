"""The 3D mask decoder: embedding + prompts -> low-resolution mask logits and predicted IoU.

Source of the ideas: SAM (Kirillov et al. 2023) in three dimensions as in SAM-Med3D; the compact variant also sees the
encoder's stem features and the prompt maps at the resolution of the mask, as SAM 2 (Ravi et al. 2024) does with its
high-resolution features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import SamSpec
from .appearance import map_channels
from .grow import Grow
from .layers import ChannelNorm, Perceptron, zero_
from .sharpen import Sharpen
from .transformer import TwoWayTransformer
from .upscaling import upscaled_masks


class Refine(nn.Module):
    """What the compact decoder adds between the upscaling steps: stem features, prompt maps, local convolutions."""

    def __init__(self, coarse: int, fine: int, stem_coarse: int, stem_fine: int, maps: int, alike: int) -> None:
        super().__init__()
        self.maps = maps
        if alike:
            self.coarse_alike = zero_(nn.Conv3d(alike, coarse, 1))
            self.fine_alike = zero_(nn.Conv3d(alike, fine, 3, padding=1))
        self.coarse_skip = nn.Conv3d(stem_coarse, coarse, 1)
        self.coarse_conv = nn.Conv3d(coarse, coarse, 3, padding=1)
        self.fine_skip = nn.Conv3d(stem_fine, fine, 1)
        self.fine_maps = nn.Conv3d(maps, fine, 3, padding=1)
        self.fine_norm = nn.GroupNorm(4, fine)
        self.fine_conv = nn.Conv3d(fine, fine, 3, padding=1)

    def forward(self, up: nn.Sequential, x: Tensor, skips: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        """(B, width, g, g, g) -> (B, width / 8, 4g, 4g, 4g); skips of stride 8 and 4 (1 or B, ...)."""
        prompts, alike = maps[:, : self.maps], maps[:, self.maps :]
        x = up[0](x) + self.coarse_skip(skips[0])
        if alike.shape[1]:
            x = x + self.coarse_alike(F.avg_pool3d(alike, 2))
        x = up[2](up[1](x))
        x = x + self.coarse_conv(x)
        x = up[3](x) + self.fine_skip(skips[1]) + self.fine_maps(prompts)
        if alike.shape[1]:
            x = x + self.fine_alike(alike)
        x = F.relu(self.fine_norm(x))  # cheaper than GELU where most voxels are
        return x + F.relu(self.fine_conv(x))


class MaskDecoder3D(nn.Module):
    """See the module. State-dict keys are the published ones, plus `refine.*` and `sharpen.*` in the compact variant."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        d = spec.decoder
        w = d.width
        masks = d.extra_masks + 1
        self.transformer = TwoWayTransformer(d.depth, w, d.heads, d.mlp_width)
        self.iou_token = nn.Embedding(1, w)
        self.mask_tokens = nn.Embedding(masks, w)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(w, w // 4, 2, stride=2),
            ChannelNorm(w // 4),
            nn.GELU(),
            nn.ConvTranspose3d(w // 4, w // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(w, w, w // 8, 3) for _ in range(masks))
        self.iou_prediction_head = Perceptron(w, d.iou_width, masks, 3)
        if d.refine:
            _, fine, coarse = spec.encoder.stem_widths
            alike = map_channels(spec) if d.appearance else 0
            self.refine = Refine(w // 4, w // 8, coarse, fine, 4, alike)
        if d.grow:
            _, fine, coarse = spec.encoder.stem_widths
            self.grow = Grow(
                3, d.grow, intensities=spec.encoder.channels, maps=4 + map_channels(spec), features=w // 8, fine=fine,
                coarse=coarse, coarsest=w,
            )  # fmt: skip
        if d.sharpen:
            self.sharpen = Sharpen(spec)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool = False,
        skips: tuple[Tensor, ...] = (),
        maps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks.

        Args:
            image: (1 or B, width, g, g, g) embedding.
            image_pe: (1, width, g, g, g).
            sparse: (B, t, width). dense: (B, width, g, g, g).
            multimask: masks 1.. instead of mask 0 (never supervised in the published weights).
            skips: stem features (stride 8, stride 4) and, for `grow`, mean intensities of the mask's cells.
            maps: (B, 4 or more, m, m, m) prompt maps. Both for `refine` only.

        Returns:
            logits (B, masks, m, m, m) and predicted IoU (B, masks).
        """
        b, g = sparse.shape[0], image.shape[-1]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(b, -1, -1), sparse], dim=1)
        source = (image + dense).movedim(1, -1).flatten(1, 3)  # no copy where channels come last in memory
        pe = image_pe.movedim(1, -1).flatten(1, 3)
        tokens, source = self.transformer(source, pe, tokens)
        first, last = (1, len(self.output_hypernetworks_mlps)) if multimask else (0, 1)
        kernels = [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in range(first, last)]
        kernels = torch.stack(kernels, dim=1)
        if hasattr(self, "refine"):
            x = source.transpose(1, 2).unflatten(2, (g, g, g))
            x = self.refine(self.output_upscaling, x, skips, maps)
            masks = torch.einsum("bmc,bcxyz->bmxyz", kernels, x)
        else:
            masks = upscaled_masks(self.output_upscaling, source, kernels, g)
        if hasattr(self, "grow"):
            masks = masks.float() + self.grow(masks, x, maps, skips[2], skips[1], skips[0], image)
        return masks, self.iou_prediction_head(tokens[:, 0])[:, first:last]

"""The builders: one for the 3D networks, one for the 2D networks, and the choice between them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks.appearance import pool_cells
from .networks.decoder3d import MaskDecoder3D
from .networks.prompt3d import PromptEncoder3D
from .networks.repvit import RepVitEncoder
from .networks.sam2d import MaskDecoder2D, PromptEncoder2D
from .networks.tinyvit import TinyVitEncoder
from .networks.vit3d import ImageEncoder3D
from .spec import AnySpec, Sam2dSpec, SamSpec, TinyVitSpec


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

        The skip features are those of the stem (strides 8 and 4), for `appearance` the mean intensities of the mask
        grid's cells, and for `sharpen` the stem's at stride 2 and the mean intensities of cells of two voxels.

        Args:
            window: (B, 3) token offsets of cubes smaller than the spec's (training only), or None.
        """
        cell = self.spec.cell
        parts = pool_cells(patch, cell // 2) if self.spec.decoder.sharpen else None
        cells = None
        if self.spec.decoder.appearance:
            cells = pool_cells(patch, cell) if parts is None else pool_cells(parts, 2)
        embedding, stem = self.image_encoder.forward_features(patch, window)
        skips = stem[:2] if cells is None else (*stem[:2], cells)
        if parts is not None:
            skips = (*skips, stem[2], parts)
        return embedding, skips

    def decode(
        self,
        embedding: tuple[Tensor, tuple[Tensor, ...]],
        points: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        window: Tensor | None = None,
        passes: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """One round of prompts.

        Args:
            embedding: what `encode` returned for one patch (batch 1, shared by all B prompts) or for B patches.
            points: (coordinates (B, N, 3) in patch voxels, labels (B, N)) or None.
            mask: (B, 1, m, m, m) previous logits; zeros in the first round, as published.
            window: (B, 3) token offsets, see `encode`.
            passes: how often the decoder runs, each time with the logits before as mask prompt.

        Returns:
            logits (B, 1, m, m, m), predicted IoU (B, 1).
        """
        image, skips = embedding
        cues = None
        if self.spec.decoder.appearance:
            cues = (skips[2], skips[1], skips[0], image, *(skips[-1:] if self.spec.decoder.sharpen else ()))
        alike = self.prompt_encoder.alike(points, cues)
        likeness = None
        if self.spec.decoder.likeness and points is not None:
            likeness = self.prompt_encoder.likeness.maps(points, image)
        pe = self.prompt_encoder.dense_position(window, image.shape[-1])
        for _ in range(passes):
            sparse, dense, maps = self.prompt_encoder(points, mask, window, cues, alike)
            if likeness is not None:
                sparse = sparse + F.pad(self.prompt_encoder.likeness.tokens(points, image), (0, 0, 0, 1))
                dense = dense + self.prompt_encoder.likeness.dense(likeness)
            mask, iou = self.mask_decoder(image, pe, sparse, dense, skips=skips, maps=maps)
            if likeness is not None:
                mask = mask.float() + self.prompt_encoder.likeness.logits(likeness)
        return mask, iou

    def sharpen(self, embedding: tuple[Tensor, tuple[Tensor, ...]], logits: Tensor) -> Tensor:
        """Logits to show: of `decode`, (B, 1, m, m, m), at twice their resolution where the spec says so."""
        if not self.spec.decoder.sharpen:
            return logits
        skips = embedding[1]
        return self.mask_decoder.sharpen(logits, skips[1], skips[-2], skips[-1])


def build_sam(spec: SamSpec) -> Sam3D:
    """Networks of that spec with fresh (random) weights, on the CPU, in training mode."""
    with torch.device("cpu"):
        model = Sam3D(spec)
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.2 if spec.encoder.token_norm else 0.02)
    return model


class Sam2D(nn.Module):
    """The same for images; state-dict keys of the published LiteMedSAM and RepViT-SAM files."""

    def __init__(self, spec: Sam2dSpec) -> None:
        super().__init__()
        self.spec = spec
        tiny = isinstance(spec.encoder, TinyVitSpec)
        self.image_encoder = TinyVitEncoder(spec.encoder) if tiny else RepVitEncoder(spec.encoder)
        self.prompt_encoder = PromptEncoder2D(spec)
        self.mask_decoder = MaskDecoder2D(spec)

    def set_image_size(self, size: int) -> None:
        """Makes the same weights work on images of another size: a multiple of the encoder's total stride (training)."""
        self.spec = replace(self.spec, encoder=replace(self.spec.encoder, image_size=size))
        self.prompt_encoder.set_sizes(self.spec)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] -> embeddings (B, out, g, g), one a slice."""
        return self.enlarge(self.image_encoder(images))

    def enlarge(self, embedding: Tensor) -> Tensor:
        """The encoder's embeddings at the size that the decoder takes, see Sam2dSpec.upsampling."""
        if self.spec.upsampling == 1:
            return embedding
        return F.interpolate(embedding, scale_factor=self.spec.upsampling, mode="bilinear", align_corners=False)

    def decode(
        self,
        embedding: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One round of prompts.

        Args:
            embedding: (1, out, g, g) of one image that all B prompts share, or (B, out, g, g).
            points: (coordinates (B, N, 2) x, y in model pixels, labels (B, N)) or None.
            boxes: (B, 4) x0, y0, x1, y1 in model pixels, or None.
            mask: (B, 1, 4g, 4g) logits of the round before, or None.
            multimask: masks 1.. instead of mask 0.

        Returns:
            logits (B, 1, 4g, 4g), predicted IoU (B, 1); three of each with `multimask`.
        """
        return self.decode_list(embedding, *self.prompt_encoder.gather(points, boxes, mask), mask, None, multimask)

    def decode_list(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        given: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`decode` with clicks and box in one list.

        Args:
            coords, labels: (B, N, 2) and (B, N), see `PromptEncoder2D.embed_points`; where no box is among them the last
                is a padding point, as published.
            given: (B,) bool, False where the mask counts as None; None for all True.
        """
        encoder, d = self.prompt_encoder, self.spec.decoder
        sparse, dense = encoder.encode(coords, labels, mask, given)
        maps = encoder.maps(coords, labels, mask) if d.refine else None
        clicks = (encoder.cells(coords), labels) if d.grow else None
        return self.mask_decoder(embedding, encoder.dense_position(), sparse, dense, multimask, maps, clicks)


def build_sam2d(spec: Sam2dSpec) -> Sam2D:
    """Networks of that spec with fresh (random) weights, on the CPU, in training mode."""
    with torch.device("cpu"):
        return Sam2D(spec)


def build_network(spec: AnySpec) -> Sam3D | Sam2D:
    """`build_sam` or `build_sam2d`, by the kind of spec."""
    return build_sam2d(spec) if isinstance(spec, Sam2dSpec) else build_sam(spec)


def network_class(spec: AnySpec) -> type[Sam3D] | type[Sam2D]:
    """The class of that spec's networks."""
    return Sam2D if isinstance(spec, Sam2dSpec) else Sam3D

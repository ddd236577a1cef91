"""The 3D prompt encoder: clicks, boxes and a low-resolution mask -> sparse tokens, a dense embedding and prompt maps.

Frames: clicks and boxes are patch voxel indices (axis 0, 1, 2); a voxel's centre lies at index + 0.5.
Source of the ideas: SAM (Kirillov et al. 2023) in three dimensions as SAM-Med3D does it; click maps after RITM
(Sofiiuk et al. 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..spec import SamSpec
from .appearance import Appearance
from .layers import ChannelNorm, unasked
from .likeness import Likeness
from .prompt_maps import NEGATIVE, PADDING, POSITIVE, prompt_maps


class PositionEncoding3D(nn.Module):
    """Random Fourier features of three coordinates: channels sin, cos, sin, as published."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def encode(self, coords: Tensor) -> Tensor:
        """(..., 3) in [0, 1] -> (..., 3 * features)."""
        angle = (2 * coords - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)

    def grid(self, edge: int, swapped: bool) -> Tensor:
        """(1, C, edge, edge, edge); `swapped` pairs the first Gaussian row with axis 1, the second with axis 0."""
        axis = (torch.arange(edge, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / edge
        d, h, w = torch.meshgrid(axis, axis, axis, indexing="ij")
        coords = torch.stack([h, d, w] if swapped else [d, h, w], dim=-1)
        return self.encode(coords).movedim(-1, 0)[None]


class PromptEncoder3D(nn.Module):
    """See the module. State-dict keys are the published ones; `boxes` and `dense_clicks` add to them."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        d = spec.decoder
        self.spec = spec
        self.image_size, self.mask_size = spec.patch_size, spec.mask_size
        self.pe_layer = PositionEncoding3D(d.width // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, d.width) for _ in range(4 if d.boxes else 2))
        self.not_a_point_embed = nn.Embedding(1, d.width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(4 if d.dense_clicks else 1, 4, 2, stride=2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv3d(4, 16, 2, stride=2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv3d(16, d.width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, d.width)
        self.kept_position: Tensor | None = None
        if d.appearance:
            self.appearance = Appearance(spec)
        if d.likeness:
            self.likeness = Likeness(spec)

    def keep_position(self, dtype: torch.dtype = torch.float32) -> None:
        """Computes `dense_position` once for all later calls: for a network whose weights and device no longer change."""
        self.kept_position = None
        with torch.no_grad():
            self.kept_position = self.dense_position().to(dtype)

    def dense_position(self, window: Tensor | None = None, edge: int | None = None) -> Tensor:
        """Position encoding of the token grid, (1, width, g, g, g).

        Args:
            window: (B, 3) token offsets of smaller cubes of `edge` tokens (training only), or None.
        """
        if window is None and self.kept_position is not None:
            return self.kept_position
        full = self.pe_layer.grid(self.spec.encoder.grid, self.spec.decoder.swapped_axes)
        if window is None:
            return full
        own = [full[0, :, a : a + edge, b : b + edge, c : c + edge] for a, b, c in window.tolist()]
        return torch.stack(own)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Clicks and box corners -> sparse tokens.

        Args:
            points: (B, N, 3) patch voxel indices.
            labels: (B, N) of 1 positive, 0 negative, -1 padding, 2 / 3 low / high corner of a box.

        Returns:
            (B, N + 1, width); as published a padding token is appended.
        """
        b = points.shape[0]
        points = torch.cat([points + 0.5, points.new_zeros(b, 1, 3)], dim=1)
        labels = torch.cat([labels, labels.new_full((b, 1), PADDING)], dim=1)
        out = self.pe_layer.encode(points / self.image_size)
        out = torch.where((labels == PADDING)[..., None], self.not_a_point_embed.weight, out)
        for value, embedding in enumerate(self.point_embeddings):
            out = out + (labels == value)[..., None] * embedding.weight
        return out

    def draw(self, points: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        """Mask prompt (B, 1, m, m, m), clicks and box as maps, (B, 4, m, m, m); see `prompt_maps`."""
        if points is None:
            coords, labels = mask.new_zeros(len(mask), 0, 3), mask.new_zeros(len(mask), 0, dtype=torch.long)
        else:
            coords, labels = points
        return prompt_maps(coords, labels, mask, mask.shape[-1], self.image_size / self.mask_size)

    def alike(self, points: tuple[Tensor, Tensor] | None, cues: tuple[Tensor, ...] | None) -> Tensor | None:
        """`Appearance.maps` of these prompts, whatever the mask prompt is; None without appearance or points."""
        if points is None or not self.spec.decoder.appearance:
            return None
        nothing = points[0].new_zeros(len(points[0]), 1, *cues[0].shape[2:])
        signs = (points[1] == POSITIVE, points[1] == NEGATIVE)
        return self.appearance.maps(points[0], signs, cues, self.draw(points, nothing)[:, 3:])

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        window: Tensor | None = None,
        cues: tuple[Tensor, ...] | None = None,
        alike: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode prompts.

        Args:
            points: (coordinates (B, N, 3), labels (B, N)), see `embed_points`, or None.
            mask: (B, 1, m, m, m) logits of the previous round, or None. The published first round passes zeros.
            window: (B, 3) token offsets when the points count from a smaller cube (training only), or None.
            cues: what the image looks like, and alike: what `alike` says of these points; both for `appearance` only.

        Returns:
            sparse (B, N + 1 or 0, width), dense (B, width, g, g, g), prompt maps (B, 4 or more, m, m, m) or None.
        """
        d = self.spec.decoder
        b = points[0].shape[0] if points is not None else mask.shape[0] if mask is not None else 1
        device = self.no_mask_embed.weight.device
        if points is None:
            sparse = torch.empty(b, 0, d.width, device=device)
        else:
            unknown = points[1] >= len(self.point_embeddings)
            if not unasked(unknown) and bool(unknown.any()):
                raise ValueError("this model has no box embeddings: give clicks, or use a model with boxes")
            shift = 0 if window is None else self.spec.encoder.patch * window[:, None, :]
            sparse = self.embed_points(points[0] + shift, points[1])
        maps = None
        if d.dense_clicks:
            maps = self.draw(points, torch.zeros(b, 1, *(self.mask_size,) * 3, device=device) if mask is None else mask)
            dense = self.mask_downscaling(maps)
            if alike is not None:
                signs = (points[1] == POSITIVE, points[1] == NEGATIVE)
                clicked = (signs[0] | signs[1])[..., None]
                added = self.appearance.tokens(points[0], cues) * clicked
                sparse = sparse + nn.functional.pad(added, (0, 0, 0, 1))
                dense = dense + self.appearance.dense(nn.functional.avg_pool3d(alike, 4))
                maps = torch.cat([maps, alike], dim=1)
        elif mask is not None:
            dense = self.mask_downscaling(mask)
        else:
            g = self.spec.encoder.grid
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1, 1).expand(b, -1, g, g, g)
        return sparse, dense, maps

"""The 3D image encoders: SAM-Med3D's ViT-B, FastSAM3D's student and the compact student.

(B, channels, S, S, S) normalised intensities -> (B, out, g, g, g) embedding with g = S / patch.
Ported ideas: SAM-Med3D (Wang et al. 2023) and FastSAM3D (Shen et al. 2024), written from their description;
convolutional stem: Xiao et al. 2021, "Early convolutions help transformers see better".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import EncoderSpec
from .attention import DenseAttention, SegmentDilatedAttention, StridedAttention
from .layers import SLAB, ChannelNorm, FeedForward, ResidualConv3d, gelu


def build_attention(spec: EncoderSpec, window: int) -> nn.Module:
    """The attention that the spec names, for windows of `window` tokens an axis."""
    if spec.attention == "dense":
        return DenseAttention(spec.width, spec.heads, window, spec.relative_position)
    if spec.attention == "strided":
        return StridedAttention(spec.width, spec.heads, window, spec.relative_position)
    if spec.attention == "strided_fp16":
        return StridedAttention(spec.width, spec.heads, window, spec.relative_position, torch.float16)
    if spec.attention == "segment_dilated":
        return SegmentDilatedAttention(spec.width, spec.heads, spec.sparse_configurations)
    raise ValueError(f"attention must be dense, strided, strided_fp16 or segment_dilated, got {spec.attention!r}")


class Block(nn.Module):
    """One transformer layer on (B, g, g, g, width).

    `spec.residual` is data, because the keys do not tell: "normed" is FastSAM3D's rule z = norm2(x), z + mlp(z);
    "plain" is the ordinary pre-norm rule x + mlp(norm2(x)) that SAM-Med3D's weights need.
    """

    def __init__(self, spec: EncoderSpec, index: int) -> None:
        super().__init__()
        self.normed_residual = spec.residual == "normed"
        self.attn = None
        if index not in spec.feedforward_layers:
            window = spec.window if spec.window and index not in spec.global_layers else spec.grid
            self.norm1 = nn.LayerNorm(spec.width, eps=1e-6)
            self.attn = build_attention(spec, window)
        self.norm2 = nn.LayerNorm(spec.width, eps=1e-6)
        self.mlp = FeedForward(spec.width, int(spec.width * spec.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(self.norm1(x))
        z = self.norm2(x)
        return (z if self.normed_residual else x) + self.mlp(z)


class PatchEmbed(nn.Module):
    """Non-overlapping patches -> tokens (B, g, g, g, width); no skip features."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.proj = nn.Conv3d(spec.channels, spec.width, spec.patch, stride=spec.patch)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.proj(x).movedim(1, -1), ()


class ConvStem(nn.Module):
    """Convolutions with strides 2, 4, 8 and up to the patch -> tokens, and features at strides 8, 4 and 2 for the mask decoder.

    For patches of 8 or 16. `spec.stem_widths` = channels at strides 2, 4, 8.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        if spec.patch not in (8, 16):
            raise ValueError(f"the convolutional stem is made for patches of 8 or 16, got {spec.patch}")
        a, b, c = spec.stem_widths
        self.conv1 = nn.Conv3d(spec.channels, a, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(4, a)
        self.conv2 = nn.Conv3d(a, b, 3, stride=2, padding=1)
        self.stage2 = ResidualConv3d(b)
        self.conv3 = nn.Conv3d(b, c, 2, stride=2)
        self.stage3 = ResidualConv3d(c)
        self.conv4 = nn.Conv3d(c, spec.width, spec.patch // 8, stride=spec.patch // 8)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.conv1.weight.dtype == torch.bfloat16:
            x = _channels_last_half(x)
        x = gelu(self.norm1(self.conv1(x)))
        fine = self.stage2(self.conv2(x))  # stride 4
        coarse = self.stage3(self.conv3(fine))  # stride 8
        return self.conv4(coarse).movedim(1, -1), (coarse, fine, x)


def _channels_last_half(x: Tensor) -> Tensor:
    """x (B, C, D, H, W) in bfloat16 with its channels next to each other."""
    on_cpu = x.device.type == "cpu"
    if x.shape[1] == 2 and x.dtype == torch.float32 and on_cpu and not torch.is_grad_enabled():
        # A complex number's two parts lie next to each other: a third of the time of other ways on a CPU.
        pairs = x.new_empty(len(x), *x.shape[2:], 2, dtype=torch.bfloat16)
        for slab, out in zip(x.split(SLAB, 2), pairs.split(SLAB, 1)):
            out.copy_(torch.view_as_real(torch.complex(slab[:, 0], slab[:, 1])))
        return pairs.movedim(-1, 1)
    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)  # faster than both at once


class ImageEncoder3D(nn.Module):
    """Encoder described by an `EncoderSpec`; state-dict keys are the published ones."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = ConvStem(spec) if spec.stem_widths else PatchEmbed(spec)
        if spec.token_norm:
            self.token_norm = nn.GroupNorm(spec.width, spec.width)
        g = spec.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, g, g, g, spec.width))
        self.blocks = nn.ModuleList(Block(spec, i) for i in range(spec.depth))
        self.neck = nn.Sequential(
            nn.Conv3d(spec.width, spec.out, 1, bias=False),
            ChannelNorm(spec.out),
            nn.Conv3d(spec.out, spec.out, 3, padding=1, bias=False),
            ChannelNorm(spec.out),
        )

    def embed(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, channels, S, S, S) -> tokens (B, g, g, g, width) with position, and the stem's skip features.

        Args:
            window: (B, 3) token offsets of smaller cubes inside the full one (training only), or None.
        """
        tokens, skips = self.patch_embed(x)
        if hasattr(self, "token_norm"):
            tokens = self.token_norm(tokens.movedim(-1, 1)).movedim(1, -1)
        if window is None:
            return tokens + self.pos_embed, skips
        g = tokens.shape[1]
        own = [self.pos_embed[0, a : a + g, b : b + g, c : c + g] for a, b, c in window.tolist()]
        return tokens + torch.stack(own), skips

    def embedding(self, tokens: Tensor) -> Tensor:
        """Tokens (B, g, g, g, width) after the last layer -> embedding (B, out, g, g, g)."""
        embedding = self.neck(tokens.movedim(-1, 1))
        # Norms of single tokens let a constant grow until nothing else is left of an embedding; over the patch it has no place.
        return F.instance_norm(embedding.float()) if self.spec.token_norm else embedding

    def stages(self, x: Tensor) -> list[Tensor]:
        """Token grids [after embed, after layer 1, ..., after layer depth], each (B, g, g, g, width)."""
        x, _ = self.embed(x)
        out = [x]
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return out

    def forward_features(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, channels, S, S, S) -> embedding (B, out, g, g, g) and skip features (strides 8, 4, 2) or ()."""
        x, skips = self.embed(x, window)
        for block in self.blocks:
            x = block(x)
        return self.embedding(x), skips

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S, S) -> embedding (B, out, g, g, g)."""
        return self.forward_features(x)[0]

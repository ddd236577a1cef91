"""Attention between prompt tokens and image tokens, free of the number of image dimensions.

Source of the ideas: the two-way transformer of SAM (Kirillov et al. 2023).
"""

from __future__ import annotations

from torch import Tensor, nn

from .attention import attend
from .layers import FeedForward


class CrossAttention(nn.Module):
    """Attention between two token sets with an inner width of width / reduction. (B, N, width), (B, M, width).

    One of the sets may have batch 1: it is shared by the whole batch and projected once.
    """

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        inner = width // reduction
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b = max(q.shape[0], k.shape[0])

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(b, -1, -1, -1)

        out = attend(split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v)))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens. Norm epsilon 1e-5."""

    def __init__(self, width: int, heads: int, mlp_width: int, first: bool) -> None:
        super().__init__()
        self.self_attn = CrossAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = CrossAttention(width, heads, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp_width, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = CrossAttention(width, heads, 2)
        self.first = first

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:  # the first layer has no position and no identity path here, as published
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, placed, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(placed, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Layers of `TwoWayLayer` and a last token-to-image attention."""

    def __init__(self, depth: int, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, heads, mlp_width, i == 0) for i in range(depth))
        self.final_attn_token_to_image = CrossAttention(width, heads, 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image, image_pe (B, n, width), tokens (B, t, width) -> tokens, image."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens), image

"""Attention between prompt tokens and image tokens, free of the number of image dimensions.

Source of the ideas: the two-way transformer of SAM (Kirillov et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attend
from .layers import FeedForward


class CrossAttention(nn.Module):
    """Attention between two token sets with an inner width of width / reduction. (B, N, width), (B, M, width).

    One of the sets may have batch 1: it is shared by the whole batch and projected once.

    Where one set is few prompts and the other many places of an image, the image need not be projected: its projections are
    products of matrices, so the prompts can be multiplied with them instead (`_few_look`, `_many_look`): the same values up
    to rounding, in a third of the arithmetic.
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
        few, many = sorted((q.shape[1], k.shape[1]))
        weight = self.q_proj.weight
        on_cpu = weight.device.type == "cpu"
        if weight.dtype == torch.bfloat16 and on_cpu and self.heads * few < len(weight) and 8 * few < many:
            return self._few_look(q, k, v) if few == q.shape[1] else self._many_look(q, k, v)
        b = max(q.shape[0], k.shape[0])
        q, k, v = (x.expand(b, -1, -1, -1) for x in map(self._split, (self.q_proj(q), self.k_proj(k), self.v_proj(v))))
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, inner) -> (B, H, N, C)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _few_look(self, few: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Few queries look at many keys. The bias of the keys adds the same to all logits of a query, so it is left out."""
        q = self._split(self.q_proj(few))
        rows = q * q.shape[-1] ** -0.5 @ self._of_heads(self.k_proj.weight)  # (B, H, N, width)
        logits = _products(rows.flatten(1, 2), keys)
        seen = (logits.softmax(-1) @ values).unflatten(1, (self.heads, -1))
        out = seen @ self._of_heads(self.v_proj.weight).transpose(1, 2)
        return self.out_proj(out.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def _many_look(self, many: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Many queries look at few keys."""
        k, v = self._split(self.k_proj(keys)), self._split(self.v_proj(values))
        k = k * k.shape[-1] ** -0.5
        columns = (k @ self._of_heads(self.q_proj.weight)).flatten(1, 2)  # (B, H M, width)
        same = (k @ self.q_proj.bias.reshape(self.heads, -1, 1)).flatten(1, 2)
        logits = (
            _products(columns, many) + same
        )  # keys before queries: then softmax is not along the last axis, which is short
        shares = logits.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        rows = v @ self.out_proj.weight.T.reshape(self.heads, -1, many.shape[-1])
        rows = rows + self.out_proj.bias / self.heads  # the shares of every head add up to 1
        return shares.transpose(1, 2) @ rows.flatten(1, 2)

    def _of_heads(self, weight: Tensor) -> Tensor:
        """(inner, width) -> (H, C, width)."""
        return weight.reshape(self.heads, -1, weight.shape[-1])


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """(B, N, width), (B, M, width) -> (B, N, M); of one batch without the copy that torch's batched product would make."""
    return F.linear(rows, others[0]) if len(others) == 1 else rows @ others.transpose(1, 2)


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

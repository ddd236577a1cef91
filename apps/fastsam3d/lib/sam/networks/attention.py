"""Attention of the 3D image encoders: dense, windowed, strided and segment + dilation.

All forms run through `torch.nn.functional.scaled_dot_product_attention`; the forms without a position term may use the
flash-attn package on CUDA, with equal results (see `attend`).

Shapes: B batch, H heads, C head width, g grid edge; tokens arrive as (B, g, g, g, width), axes D, H, W of the patch.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_KEYS = 1024
"""Up to so many, products of matrices with all logits in memory are faster on a CPU in bfloat16 than torch's fused kernel."""


def flash_attn_available() -> bool:
    """True when the optional flash-attn package and a CUDA device are both there."""
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, scale C**-0.5.

    Args:
        q, k, v: (B, H, N, C), (B, H, M, C), (B, H, M, C).
        bias: (B, H, N, M) added to the logits, or None. flash-attn has no such term, so it is used only without one.
    """
    if bias is None and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and flash_attn_available():
        from flash_attn import flash_attn_func  # optional extra, CUDA only

        out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and k.shape[2] <= FEW_KEYS and not torch.is_grad_enabled():
        keys, scale = k.transpose(2, 3), q.shape[-1] ** -0.5
        if bias is None:
            nothing = q.new_zeros(1, 1, 1).expand(len(q) * q.shape[1], q.shape[2], k.shape[2])
            logits = torch.baddbmm(nothing, q.flatten(0, 1), keys.flatten(0, 1), beta=0, alpha=scale)
            logits = logits.unflatten(0, q.shape[:2])
        else:
            logits = torch.matmul(q, keys)
            logits = torch.add(bias, logits, alpha=scale, out=logits)
        return torch.matmul(torch.softmax(logits, -1), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def relative_table(table: Tensor, grid: int) -> Tensor:
    """R[i, k] = table[i - k + grid - 1]: (grid, grid, C) from (2 * grid - 1, C)."""
    index = torch.arange(grid, device=table.device)
    return table[index[:, None] - index[None, :] + grid - 1]


def position_bias(q: Tensor, rel_d: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """The position term of the published SAM-Med3D / FastSAM3D attention.

    Not the textbook decomposition: with unscaled q, the logit of query (d, h, w) and key (kd, kh, kw) gets
    `q[d,h,w].Rd[d,kw] + q[d,h,kd].Rh[h,kw] + q[d,h,kh].Rw[kh,kw]`. All published weights were trained with it.

    Args:
        q: (B, H, g, g, n, C) queries for the g kept positions of axes D and H and all n positions of axis W
            (n > g where the window is padded).
        rel_d, rel_h, rel_w: (2n - 1, C).

    Returns:
        (B, H, g**3, n**3) logits to add.
    """
    b, heads, g, _, n, _ = q.shape
    r_d, r_h, r_w = (relative_table(t, n).to(q.dtype) for t in (rel_d, rel_h, rel_w))
    own = torch.einsum("bedhwc,dkc->bedhwk", q[..., :g, :], r_d[:g])  # query w, key kw
    along_d = torch.einsum("bedhxc,hkc->bedhxk", q, r_h[:g])  # x plays key kd
    along_h = torch.einsum("bedhxc,xkc->bedhxk", q, r_w)  # x plays key kh
    shared = (along_d[..., :, None, :] + along_h[..., None, :, :]).reshape(b, heads, g * g, 1, n**3)  # by all query w
    every_kw = torch.eye(n, dtype=q.dtype, device=q.device).repeat(1, n * n)  # own, once for each kd and kh
    own = (own.reshape(-1, n) @ every_kw).reshape(b, heads, g * g, g, n**3)
    return own.add_(shared).reshape(b, heads, g**3, n**3)


class DenseAttention(nn.Module):
    """Every token sees every token of its window.

    With `window` larger than the grid the normed tokens count as zero-padded at the high end of each axis to
    window**3, and the padding takes part in attention unmasked, as published for SAM-Med3D. Padding tokens all have
    the bias as their q, k, v and their output rows are thrown away, so only the g**3 kept query rows are computed
    here: exact, and about 2.75 times cheaper than attending with all window**3 rows.

    Args:
        width: token width.
        heads: number of heads.
        window: edge of the attended window (the grid's edge for global attention).
        relative: learn and add the published position term.
    """

    def __init__(self, width: int, heads: int, window: int, relative: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if relative:
            for name in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
                setattr(self, name, nn.Parameter(torch.zeros(2 * window - 1, width // heads)))
        self.relative = relative

    def forward(self, x: Tensor) -> Tensor:
        b, g, width = x.shape[0], x.shape[1], x.shape[-1]
        n = self.window
        qkv = self.qkv(x).reshape(b, g, g, g, 3, self.heads, -1).permute(4, 0, 5, 1, 2, 3, 6)
        q, k, v = qkv.unbind(0)  # (B, H, g, g, g, C)
        bias = None
        if n != g:
            pad = self.qkv.bias.to(qkv.dtype).reshape(3, 1, self.heads, 1, 1, 1, -1)
            full = pad.expand(3, b, -1, n, n, n, -1).clone()
            full[:, :, :, :g, :g, :g] = qkv
            k, v = full[1], full[2]
        if self.relative:
            rows = q if n == g else full[0, :, :, :g, :g, :]
            bias = position_bias(rows, self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        out = attend(q.flatten(2, 4), k.flatten(2, 4), v.flatten(2, 4), bias)  # (B, H, g**3, C)
        return self.proj(out.transpose(1, 2).reshape(b, g, g, g, width))


class StridedAttention(DenseAttention):
    """FastSAM3D's "3D sparse flash attention" in the form in which it was published.

    Flat token t = g*g*d + g*h + w. Group i holds the g tokens i, i + g*g, i + 2*g*g, ...; softmax attention inside each
    group, no position term. As published the results are concatenated group after group and not put back in place.

    Args:
        kernel_dtype: q, k, v are rounded to it before and the result after attention (the published kernel's interface
            is float16); None keeps the dtype.
    """

    def __init__(
        self, width: int, heads: int, window: int, relative: bool, kernel_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(width, heads, window, relative)
        self.kernel_dtype = kernel_dtype

    def forward(self, x: Tensor) -> Tensor:
        b, g, width = x.shape[0], x.shape[1], x.shape[-1]
        qkv = self.qkv(x).reshape(b, g, g * g, 3, self.heads, -1)  # token t = g*g*j + i
        qkv = qkv.permute(3, 0, 2, 4, 1, 5).reshape(3, b * g * g, self.heads, g, -1)
        if self.kernel_dtype is not None:
            qkv = qkv.to(self.kernel_dtype).to(x.dtype)
        out = attend(*qkv.unbind(0))  # (B * g*g, H, g, C)
        if self.kernel_dtype is not None:
            out = out.to(self.kernel_dtype).to(x.dtype)
        return self.proj(out.transpose(1, 2).reshape(b, g, g, g, width))


class SegmentDilatedAttention(nn.Module):
    """Sparse attention as FastSAM3D's authors describe it: several segment + dilation configurations over the heads.

    The flat sequence is cut into segments of s tokens; inside a segment the tokens with equal index modulo r form one
    group of s / r tokens that attend to each other (after LongNet, Ding et al. 2023; every residue is computed, so no
    token is left without a result). Configuration c serves the c-th share of the heads. Outputs are put back in place.

    Args:
        configurations: (segment, dilation) pairs; the number of heads is a multiple of their number.
    """

    def __init__(self, width: int, heads: int, configurations: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        if heads % len(configurations):
            raise ValueError(f"heads must be a multiple of the {len(configurations)} configurations, got {heads}")
        self.heads, self.configurations = heads, configurations
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, width = x.shape[0], x.shape[-1]
        n = x[0, ..., 0].numel()
        share = self.heads // len(self.configurations)
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1)
        outs = []
        for c, (segment, dilation) in enumerate(self.configurations):
            part = qkv[:, :, :, c * share : (c + 1) * share]
            # (B, segments, members, residues, 3, heads, C) -> (3, B * segments * residues, heads, members, C)
            part = part.reshape(b, n // segment, segment // dilation, dilation, 3, share, -1)
            part = part.permute(4, 0, 1, 3, 5, 2, 6).flatten(1, 3)
            out = attend(*part.unbind(0)).reshape(b, n // segment, dilation, share, segment // dilation, -1)
            outs.append(out.permute(0, 1, 4, 2, 3, 5).reshape(b, n, share, -1))
        out = torch.cat(outs, dim=2)
        return self.proj(out.reshape(x.shape[:-1] + (width,)))

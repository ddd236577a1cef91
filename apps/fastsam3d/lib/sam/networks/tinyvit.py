"""The TinyViT image encoder of LiteMedSAM: (B, 3, H, W) in [0, 1] -> (B, out, H / 4, W / 4).

Source of the ideas: TinyViT (Wu et al. 2022) as MobileSAM (Zhang et al. 2023) and LiteMedSAM (Ma et al. 2024) use it.
Kept as published: the patch embedding of 1x1 convolutions, the stride 1 of the last merging, and windows that are
padded before their norm. The attention bias is looked up at every call, so it cannot go stale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import TinyVitSpec
from .attention import attend
from .layers import ConvNorm, Detail, neck2d


class PatchEmbed2d(nn.Module):
    """Two convolutions; of stride 1 they are 1x1, of stride 2 they are 3x3."""

    def __init__(self, width: int, strides: tuple[int, int]) -> None:
        super().__init__()
        a, b = strides
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 2 * a - 1, a), nn.GELU(), ConvNorm(width // 2, width, 2 * b - 1, b)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class ConvBlock(nn.Module):
    """Widen, mix 3x3 per channel, narrow, around an identity path; the activation follows the sum."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(y))


class PatchMerging(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Attention inside windows of n x n tokens with a learned bias for each (|dy|, |dx|) and head; norm first."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def bias(self) -> Tensor:
        """(1, heads, n * n, n * n): row-major tokens, entry |dy| * n + |dx| of the table."""
        n = self.window
        axis = torch.arange(n, device=self.attention_biases.device)
        away = (axis[:, None] - axis[None, :]).abs()
        index = n * away[:, None, :, None] + away[None, :, None, :]  # (y, x, ky, kx)
        return self.attention_biases[:, index.reshape(n * n, n * n)][None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) of any H and W: zeros are appended to full windows before the norm, as published."""
        b, h, w, width = x.shape
        n = self.window
        if h % n or w % n:
            x = F.pad(x, (0, 0, 0, -w % n, 0, -h % n))
        rows, columns = x.shape[1] // n, x.shape[2] // n
        x = x.reshape(b, rows, n, columns, n, width).transpose(2, 3).reshape(b * rows * columns, n * n, width)
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        x = attend(*qkv.unbind(0), self.bias().to(qkv.dtype))
        x = self.proj(x.transpose(1, 2).flatten(2))
        x = x.reshape(b, rows, columns, n, n, width).transpose(2, 3).reshape(b, rows * n, columns * n, width)
        return x[:, :h, :w]


class PerceptronBlock(nn.Module):
    """Norm, two linear layers, GELU between; keys `norm`, `fc1`, `fc2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class AttentionBlock(nn.Module):
    """Window attention, a 3x3 convolution per channel (no identity path), and a perceptron. (B, width, H, W)."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.mlp = PerceptronBlock(width, mlp_ratio * width)
        self.local_conv = ConvNorm(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.movedim(1, -1)
        tokens = tokens + self.attn(tokens)
        tokens = self.local_conv(tokens.movedim(-1, 1)).movedim(1, -1)
        return (tokens + self.mlp(tokens)).movedim(-1, 1)


class Stage(nn.Module):
    """Blocks of one resolution, then the merging that leads to the next stage."""

    def __init__(self, spec: TinyVitSpec, index: int) -> None:
        super().__init__()
        width = spec.widths[index]
        if index == 0:
            blocks = (ConvBlock(width, spec.expansion) for _ in range(spec.depths[0]))
        else:
            heads, window = spec.heads[index], spec.windows[index]
            blocks = (AttentionBlock(width, heads, window, spec.mlp_ratio) for _ in range(spec.depths[index]))
        self.blocks = nn.ModuleList(blocks)
        last = index == len(spec.widths) - 1
        self.downsample = None if last else PatchMerging(width, spec.widths[index + 1], spec.merge_strides[index])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVitEncoder(nn.Module):
    """See the module. State-dict keys are the published ones."""

    def __init__(self, spec: TinyVitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed2d(spec.widths[0], spec.stem_strides)
        self.layers = nn.ModuleList(Stage(spec, i) for i in range(len(spec.widths)))
        self.neck = neck2d(spec.widths[-1], spec.out)
        self.detail = Detail(spec.detail, spec.image_size // (4 * spec.grid)) if spec.detail else None
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stages(self, x: Tensor) -> list[Tensor]:
        """[after the patch embedding, after stage 0, ..., after stage 3], each (B, C, h, w)."""
        out = [self.patch_embed(x)]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> embedding (B, out + 16 * (3 + detail), H / 4, W / 4)."""
        image, x = x, self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x) if self.detail is None else torch.cat([self.neck(x), self.detail(image)], dim=1)

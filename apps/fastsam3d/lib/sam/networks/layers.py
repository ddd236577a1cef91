"""Small layers that every network of this package shares."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLAB = 16
"""So many planes of a patch at a time stay in a processor's own memory while several steps pass over them."""


def unasked(x: Tensor) -> bool:
    """Whether a network may not look at values on its way: they are not known while it is exported, and on another device than
    the CPU a look would wait for all that was given to it, and could be no part of a CUDA graph.
    """
    return torch.compiler.is_exporting() or x.device.type != "cpu"


def may_hold(condition: Tensor) -> bool:
    """Whether a condition holds anywhere, so that work for it has to be done.

    Where it is `unasked` the answer is always True. So this may only guard work that changes nothing where the condition holds
    nowhere.

    Args:
        condition: bool, any shape.
    """
    return unasked(condition) or bool(condition.any())


def in_parts(count: int, size: int) -> list[slice]:
    """Consecutive parts of at most `size` of so many things; one part with all of them while a network is exported."""
    if torch.compiler.is_exporting():
        return [slice(None)]
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def zero_(layer: nn.Module) -> nn.Module:
    """The same layer with all parameters 0, so that it begins without effect."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class ChannelNorm(nn.Module):
    """Normalises the channel axis of (B, C, H, W) or (B, C, D, H, W) at every pixel or voxel.

    As published the epsilon is 1e-6 in necks, mask downscaling and upscaling.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


class ConvNorm(nn.Module):
    """2D convolution without bias, padded to keep the size, and batch norm (epsilon 1e-5); keys `c` and `bn`.

    Args:
        zero: the norm starts at zero, so that a residual branch that ends here starts as the identity.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, zero: bool = False
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.bn.weight, 0.0 if zero else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The one convolution that this is at inference, float64."""
        return fold_norm(self.bn, self.c.weight.double(), self.bn.running_mean.new_zeros(()).double())

    def fused(self) -> nn.Conv2d:
        """The same as one convolution with bias, for inference."""
        return conv_like(self.c, *self.kernel_and_bias())


def fold_norm(norm: nn.BatchNorm2d, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias (float64) of a convolution followed by a batch norm with its running statistics."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return kernel * scale[:, None, None, None], norm.bias.double() + (bias - norm.running_mean.double()) * scale


def conv_like(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of that geometry, dtype and device with these weights."""
    weight = conv.weight
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(kernel)
        new.bias.copy_(bias)
    return new


def neck2d(inputs: int, outputs: int) -> nn.Sequential:
    """The two convolutions with channel norms that end SAM's image encoders; (B, C, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        ChannelNorm(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        ChannelNorm(outputs),
    )


class Detail(nn.Module):
    """The image and fine features of it at four times its embedding's grid, folded into the channels of that grid.

    Args:
        channels: of the features; the image's three come before them. stride: pixels a fine cell.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(3, channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 16 * (3 + channels), H / (4 * stride), W / (4 * stride))."""
        fine = self.conv2(F.gelu(self.conv1(image)))
        return F.pixel_unshuffle(torch.cat([F.avg_pool2d(image, self.stride).to(fine.dtype), fine], dim=1), 4)


class FeedForward(nn.Module):
    """Two linear layers with an activation between; keys `lin1`, `lin2` as in SAM."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class Perceptron(nn.Module):
    """`depth` linear layers with ReLU between them; keys `layers.N` as in SAM's heads."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def gelu(x: Tensor) -> Tensor:
    """`F.gelu` of a tensor that nobody else needs: without gradients it is computed in x's own memory.

    Of volumes (B, C, D, H, W) whose channels lie last in memory in half of the time on a CPU.
    """
    last = x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)
    rows = x.movedim(1, -1) if last else x
    rows = F.gelu(rows) if torch.is_grad_enabled() else torch.ops.aten.gelu_(rows)
    return rows.movedim(-1, 1) if last else rows


class ResidualConv3d(nn.Module):
    """Two 3x3x3 convolutions with channel norms around an identity path: x + f(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(gelu(self.norm1(x)))
        return x + self.conv2(gelu(self.norm2(y)))


def trilinear(x: Tensor, size: int) -> Tensor:
    """Trilinear interpolation of cubes as published (cell centres, edges repeated), one axis after the other.

    Products with a small matrix: the values of `F.interpolate` up to rounding, in a quarter of its time on a CPU. Where nobody
    asks for gradients the longer steps mix whole rows and planes instead, in a third of a product's time.

    Args:
        x: (..., m, m, m) float32.
        size: edge of the result.

    Returns:
        (..., size, size, size) float32.
    """
    m, lead = x.shape[-1], x.shape[:-3]
    with torch.autocast(x.device.type, enabled=False):
        # Exporting computes with stand-ins for tensors, which must not stay in the cache.
        table = _interpolation.__wrapped__ if torch.compiler.is_exporting() else _interpolation
        weights = table(m, size, x.device)
        plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu"
        plain = plain or (x.requires_grad and torch.is_grad_enabled())
        x = (x.reshape(math.prod(lead) * m * m, m) @ weights.T).reshape(math.prod(lead) * m, m, size)
        mix = (lambda x: weights @ x) if plain or size % m else (lambda x: _mix_planes(x, size // m))
        return mix(mix(x).reshape(math.prod(lead), m, size * size)).reshape(*lead, size, size, size)


def _mix_planes(x: Tensor, times: int) -> Tensor:
    """Linear interpolation along axis 1, (n, m, p) -> (n, times * m, p); without gradients."""
    out = x.new_empty(x.shape[0], x.shape[1], times, x.shape[2])
    for part in range(times):
        share = (part + 0.5) / times - 0.5  # of the next plane, or where negative of the one before
        if share < 0:
            torch.lerp(x[:, :-1], x[:, 1:], 1 + share, out=out[:, 1:, part])
            out[:, 0, part] = x[:, 0]
        else:
            torch.lerp(x[:, :-1], x[:, 1:], share, out=out[:, :-1, part])
            out[:, -1, part] = x[:, -1]
    return out.flatten(1, 2)


@cache  # few; and a CUDA graph reads a table where it was when the graph was recorded
def _interpolation(cells: int, size: int, device: torch.device) -> Tensor:
    """(size, cells): the share of every cell in every place of the result along one axis."""
    with torch.inference_mode(False):
        shares = F.interpolate(torch.eye(cells)[None], size=size, mode="linear", align_corners=False)[0].T.contiguous()
        return shares.to(device)

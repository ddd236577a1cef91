"""Smooth random fields on a cube, the material of shapes, textures and artefacts.

All functions draw from the torch.Generator that they are given, so a seed fixes everything, and run on its device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


class Draw:
    """Scalar and tensor draws from one seeded generator."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(device=self.device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """One float in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, device=self.device))

    def log_uniform(self, low: float, high: float) -> float:
        """One float in [low, high), uniform in its logarithm."""
        return low * (high / low) ** self.uniform(0.0, 1.0)

    def integer(self, low: int, high: int) -> int:
        """One integer in [low, high)."""
        return int(torch.randint(low, high, (), generator=self.generator, device=self.device))

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self.uniform(0.0, 1.0) < probability

    def choice(self, items: list):
        """One of the items."""
        return items[self.integer(0, len(items))]

    def weighted(self, shares: Iterable[float]) -> int:
        """Index of one of the shares, which add up to 1, each as likely as it is large."""
        pick, total, index = self.uniform(0.0, 1.0), 0.0, -1
        for index, share in enumerate(shares):
            total += share
            if pick < total:
                return index
        return index  # rounding left the shares a little below 1

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def rand(self, *shape: int) -> Tensor:
        """Uniform values in [0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def rotation(self) -> Tensor:
        """A uniformly random rotation matrix (3, 3)."""
        q, r = torch.linalg.qr(self.normal(3, 3).cpu())
        q = q * r.diagonal().sign()
        q[:, 0] *= torch.linalg.det(q).sign()
        return q.to(self.device)


def smooth_field(draw: Draw, size: int, cells: int, channels: int = 1) -> Tensor:
    """Cubic-like smooth noise (channels, size, size, size) with about `cells` bumps an axis and unit variance."""
    cells = max(2, min(cells, size))
    coarse = draw.normal(1, channels, cells + 1, cells + 1, cells + 1)
    middle = min(size, 4 * (cells + 1))
    field = F.interpolate(coarse, size=(middle,) * 3, mode="trilinear", align_corners=True)
    field = F.avg_pool3d(F.pad(field, (1,) * 6, mode="replicate"), 3, stride=1)
    field = F.interpolate(field, size=(size,) * 3, mode="trilinear", align_corners=True)[0]
    return field / field.std().clamp_min(1e-6)


def blur(volume: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Separable Gaussian blur of (D, H, W); sigma in voxels per axis, replicated edges."""
    x = volume[None, None]
    for axis, s in enumerate(sigma):
        if s < 0.2:
            continue
        radius = max(1, int(3 * s + 0.5))
        t = torch.arange(-radius, radius + 1, device=volume.device, dtype=volume.dtype)
        kernel = torch.exp(-0.5 * (t / s) ** 2)
        kernel = kernel / kernel.sum()
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        x = F.conv3d(F.pad(x, pad, mode="replicate"), kernel.reshape(shape))
    return x[0, 0]

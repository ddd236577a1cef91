"""What the clicked voxels look like, and where else it looks like that.

Fourier features tell a decoder where a click is, not what lies there. Here every click's token also gets the image
features at the clicked cell, and maps say how similar each cell is to the clicked ones. The idea that a click's
appearance is a cue of its own is that of interactive methods from random walkers to DeepIGeoS (Wang et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import SamSpec
from .connectedness import at_cells, clicked_cells, far_from_clicks, prompted_maps
from .layers import SLAB, in_parts, may_hold, zero_

KEY_CHANNELS = 16
SOFTNESS = 0.08
"""A difference of normalised intensity (range -1 to 1) at which the similarity falls to 1 / e."""

_CHUNK = 16


def pool_cells(patch: Tensor, cell: int) -> Tensor:
    """Mean intensities of cells of `cell` voxels: (B, c, S, S, S) -> (B, c, S / cell, ...)."""
    if cell != 2 or patch.device.type != "cpu" or torch.is_grad_enabled():
        return F.avg_pool3d(patch, cell)
    return torch.cat([_pool_halves(patch[:, :, slab]) for slab in in_parts(patch.shape[2], SLAB)], 2)


def _pool_halves(x: Tensor) -> Tensor:
    """Means of cells of two voxels, in half of the time of `avg_pool3d` on a CPU."""
    x = x[:, :, ::2] + x[:, :, 1::2]
    x = x[..., ::2, :] + x[..., 1::2, :]
    return (x[..., ::2] + x[..., 1::2]).mul_(1 / 8)


def map_channels(spec: SamSpec) -> int:
    """Channels of `Appearance.maps`."""
    return 2 * (spec.encoder.channels + 1) + (5 * spec.encoder.channels if spec.decoder.grow else 0)


class Appearance(nn.Module):
    """Features of clicks and similarity maps.

    `cues` are (intensity (b, c, m, m, m), fine (b, f, m, m, m), coarse (b, e, m/2, ...), embedding (b, w, m/4, ...)) with
    b = 1 or B; and behind them, where the spec has `sharpen`, the intensities of cells half as wide, (b, c, 2m, ...).
    """

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        _, fine, coarse = spec.encoder.stem_widths
        self.cell = spec.cell
        self.key = nn.Conv3d(fine, KEY_CHANNELS, 1)
        self.channels = spec.encoder.channels + 1
        self.grow = bool(spec.decoder.grow)
        self.norm = nn.LayerNorm(fine + coarse + spec.encoder.out)
        self.project = zero_(nn.Linear(fine + coarse + spec.encoder.out, spec.decoder.width))
        self.dense = zero_(nn.Conv3d(map_channels(spec), spec.decoder.width, 1))

    def tokens(self, points: Tensor, cues: tuple[Tensor, ...]) -> Tensor:
        """Image features at points (B, N, 3) in patch voxels -> additions to their tokens (B, N, width)."""
        _, fine, coarse, embedding = cues[:4]
        found = [at_cells(f, points // (self.cell * step)) for f, step in ((fine, 1), (coarse, 2), (embedding, 4))]
        return self.project(self.norm(torch.cat(found, dim=1).transpose(1, 2).float()))

    def maps(self, points: Tensor, signs: tuple[Tensor, Tensor], cues: tuple[Tensor, ...], box: Tensor) -> Tensor:
        """Similarity of every cell to the most similar click of each sign, in [0, 1].

        Args:
            points: (B, N, 3) in patch voxels. signs: (B, N) bool for positive, for negative clicks.
            box: (B, 1, m, m, m), positive inside the box, all 0 without one.

        Returns:
            (B, map_channels, m, m, m): intensity channels and learned key, for positive, then negative clicks; 0
            without a click of that sign. Where the spec has `grow`, then the maps of connectedness.py.
        """
        intensity, fine = cues[0].float(), cues[1]
        keys = F.normalize(self.key(fine).float(), dim=1)
        b, m = points.shape[0], intensity.shape[-1]
        cells = points // self.cell
        out = []
        for chosen in signs:
            best = intensity.new_zeros(b, self.channels, m**3)
            for part in in_parts(points.shape[1], _CHUNK):
                use = chosen[:, part, None]
                if not may_hold(use):
                    continue
                value = at_cells(intensity, cells[:, part])  # (B, c, n)
                away = (intensity.flatten(2)[:, :, None] - value[..., None]).abs()  # (B, c, n, m^3)
                alike = torch.exp(-away / SOFTNESS) * use[:, None]
                same = torch.einsum("bcn,bcx->bnx", at_cells(keys, cells[:, part]), keys.flatten(2).expand(b, -1, -1))
                same = same.clamp_min(0) * use
                best = torch.maximum(best, torch.cat([alike.amax(2), same.amax(1, keepdim=True)], dim=1))
            out.append(best.unflatten(2, (m, m, m)))
        if self.grow:
            clicked = [clicked_cells(cells, chosen, intensity.shape[2:]) for chosen in signs]
            parts = cues[4].float() if len(cues) > 4 else intensity
            far = tuple(far_from_clicks(intensity, cells, chosen, parts) for chosen in signs)
            out.append(prompted_maps(intensity, *clicked, far, box > 0, parts))
        return torch.cat(out, dim=1)

"""What the compact decoder says last: a small U-Net over the mask's cells that lets an object grow to its borders.

The two-way transformer works on tokens of sixteen voxels, and the upscaling behind it sees little around a cell. This
U-Net sees a whole neighbourhood at three scales: the decoder's logits and features, the prompt maps with similarity and
connectedness to the clicks, and how much closer each cell is to what lies inside the mask than to what lies outside.
U-Net: Ronneberger et al. 2015; clicks as maps beside the image: RITM (Sofiiuk et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import SamSpec
from .appearance import map_channels, zero_
from .sharpen import closer_inside


class Pair(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv2(F.relu(self.conv1(x))))


class Grow(nn.Module):
    """See the module. Begins without effect: the last layer is 0 when fresh."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        a = spec.decoder.grow
        b, c = 2 * a, 3 * a
        _, fine, coarse = spec.encoder.stem_widths
        maps = 4 + map_channels(spec) + 2 * spec.encoder.channels + 2
        self.maps = nn.Conv3d(maps, a, 1)
        self.features = nn.Conv3d(spec.decoder.width // 8, a, 1)
        self.fine_skip = nn.Conv3d(fine, a, 1)
        self.norm1 = nn.GroupNorm(4, a)
        self.down1 = nn.Conv3d(a, b, 2, stride=2)
        self.coarse_skip = nn.Conv3d(coarse, b, 1)
        self.norm2 = nn.GroupNorm(4, b)
        self.pair2 = Pair(b)
        self.down2 = nn.Conv3d(b, c, 2, stride=2)
        self.embedding_skip = nn.Conv3d(spec.decoder.width, c, 1)
        self.norm3 = nn.GroupNorm(4, c)
        self.pair3 = Pair(c)
        self.up2 = nn.ConvTranspose3d(c, b, 2, stride=2)
        self.conv2 = nn.Conv3d(b, b, 3, padding=1)
        self.up1 = nn.ConvTranspose3d(b, a, 2, stride=2)
        self.conv1 = nn.Conv3d(a, a, 3, padding=1)
        self.out = zero_(nn.Conv3d(a, 1, 1))

    def forward(self, logits: Tensor, features: Tensor, maps: Tensor, embedding: Tensor, skips) -> Tensor:
        """What to add to the logits.

        Args:
            logits: (B, 1, m, m, m). features: (B, width / 8, m, m, m) from which they were made.
            maps: (B, 4 + map_channels, m, m, m) prompt maps. embedding: (1 or B, width, m/4, m/4, m/4).
            skips: (1 or B, ...) stem features at strides 8 and 4, mean intensities of the cells.

        Returns:
            (B, 1, m, m, m) float32.
        """
        coarse, fine, intensity = skips[:3]
        logits = logits.float()
        masks = [(logits / 4).clamp(-2, 2), torch.tanh(logits)]
        inside = closer_inside(intensity.float(), F.avg_pool3d(logits.sigmoid(), 2))
        cues = torch.cat([maps.float(), inside, *masks], dim=1)
        x = F.relu(self.norm1(self.maps(cues) + self.features(features) + self.fine_skip(fine)))
        y = self.pair2(F.relu(self.norm2(self.down1(x) + self.coarse_skip(coarse))))
        z = self.pair3(F.relu(self.norm3(self.down2(y) + self.embedding_skip(embedding))))
        y = y + F.relu(self.up2(z))
        y = y + F.relu(self.conv2(y))
        x = x + F.relu(self.up1(y))
        x = x + F.relu(self.conv1(x))
        return self.out(x).float()

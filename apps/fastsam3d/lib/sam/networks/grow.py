"""What the compact decoders say last: a small U-Net over the mask's cells that lets an object grow to its borders.

The two-way transformer works on coarse tokens, and the upscaling behind it sees little around a cell. This U-Net sees a
whole neighbourhood at three scales: the decoder's logits and features, the prompt maps with similarity and connectedness
to the prompts, and how much closer each cell is to what lies inside the mask than to what lies outside. U-Net:
Ronneberger et al. 2015; clicks as maps beside the image: RITM (Sofiiuk et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import zero_
from .sharpen import closer_inside

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Pair(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _CONV[dims](channels, channels, 3, padding=1)
        self.conv2 = _CONV[dims](channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv2(F.relu(self.conv1(x))))


class Grow(nn.Module):
    """See the module. Begins without effect: the last layer is 0 when fresh.

    Args:
        dims: 2 or 3 axes.
        width: channels at the finest scale; twice and three times as many at the others.
        fold: with 2 the finest scale has cells of two mask cells an axis, which lie in it side by side as channels: nearly
            the same reach and detail in a fraction of the time.
        intensities: channels of the image. maps, features, fine, coarse, coarsest: channels of the inputs of `forward`; 0
            for none of the last two.
    """

    def __init__(
        self,
        dims: int,
        width: int,
        *,
        fold: int = 1,
        intensities: int,
        maps: int,
        features: int,
        fine: int,
        coarse: int = 0,
        coarsest: int = 0,
    ) -> None:
        super().__init__()
        conv, up = _CONV[dims], _UP[dims]
        a, b, c = width, 2 * width, 3 * width
        self.maps = conv(maps + 2 * intensities + 2, a, fold, stride=fold)
        self.features = conv(features, a, fold, stride=fold)
        self.fine_skip = conv(fine, a, fold, stride=fold)
        self.norm1 = nn.GroupNorm(4, a)
        self.down1 = conv(a, b, 2, stride=2)
        self.coarse_skip = conv(coarse, b, 1) if coarse else None
        self.norm2 = nn.GroupNorm(4, b)
        self.pair2 = Pair(dims, b)
        self.down2 = conv(b, c, 2, stride=2)
        self.coarsest_skip = conv(coarsest, c, 1) if coarsest else None
        self.norm3 = nn.GroupNorm(4, c)
        self.pair3 = Pair(dims, c)
        self.up2 = up(c, b, 2, stride=2)
        self.conv2 = conv(b, b, 3, padding=1)
        self.up1 = up(b, a, 2, stride=2)
        self.conv1 = conv(a, a, 3, padding=1)
        self.out = zero_(up(a, 1, fold, stride=fold))

    def forward(
        self,
        logits: Tensor,
        features: Tensor,
        maps: Tensor,
        intensity: Tensor,
        fine: Tensor,
        coarse: Tensor | None = None,
        coarsest: Tensor | None = None,
    ) -> Tensor:
        """What to add to the logits.

        Args:
            logits: (B, 1, m, ...). features: (B, ., m, ...) from which they were made.
            maps: (B, ., m, ...) prompts and what is known of them.
            intensity: (1 or B, c, m, ...) in [-1, 1]. fine: (1 or B, ., m, ...) features of the image.
            coarse, coarsest: (1 or B, ., n/2, ...) and (1 or B, ., n/4, ...) likewise, n = m / fold.

        Returns:
            (B, 1, m, ...) float32.
        """
        pool = F.avg_pool3d if logits.ndim == 5 else F.avg_pool2d
        logits = logits.float()
        masks = [(logits / 4).clamp(-2, 2), torch.tanh(logits)]
        cues = torch.cat([maps.float(), closer_inside(intensity.float(), pool(logits.sigmoid(), 2)), *masks], dim=1)
        kind = self.maps.weight.dtype
        x = self.maps(cues.to(kind)) + self.features(features.to(kind)) + self.fine_skip(fine.to(kind))
        x = F.relu(self.norm1(x))
        y = self.down1(x) if coarse is None else self.down1(x) + self.coarse_skip(coarse.to(kind))
        y = self.pair2(F.relu(self.norm2(y)))
        z = self.down2(y) if coarsest is None else self.down2(y) + self.coarsest_skip(coarsest.to(kind))
        z = self.pair3(F.relu(self.norm3(z)))
        y = y + F.relu(self.up2(z))
        y = y + F.relu(self.conv2(y))
        x = x + F.relu(self.up1(y))
        x = x + F.relu(self.conv1(x))
        return self.out(x).float()

"""The RepViT image encoder of RepViT-SAM and RepMedSAM: (B, 3, H, W) -> (B, out, H / 16, W / 16).

This is the training form, with batch norms and parallel branches; `fuse.fused_encoder` derives the form for inference.
Source of the ideas: RepViT (Wang et al. 2024), in plain convolutions; structural re-parameterisation: RepVGG (Ding et
al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import RepVitSpec
from .layers import ConvNorm, Detail, conv_like, fold_norm, neck2d


class BranchedDepthwise(nn.Module):
    """bn(3x3 with norm + 1x1 with bias + identity), all per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, width, 3, groups=width)
        self.conv1 = nn.Conv2d(width, width, 1, groups=width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)

    def fused(self) -> nn.Conv2d:
        """The same as one 3x3 convolution with bias, for inference."""
        kernel, bias = self.conv.kernel_and_bias()
        centre = F.pad(self.conv1.weight.double() + 1, (1, 1, 1, 1))  # the identity is a 1x1 kernel of one
        return conv_like(self.conv.c, *fold_norm(self.bn, kernel + centre, bias + self.conv1.bias.double()))


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the image's mean; keys `fc1`, `fc2`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(8, (width // 4 + 4) // 8 * 8)  # a quarter, to the nearest multiple of 8
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(mean))))


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class Block(nn.Module):
    """Mixes pixels per channel, then channels per pixel; keys `token_mixer`, `channel_mixer`.

    Args:
        inputs, outputs: channels.
        stride: None inside a stage; the stride of a downsampling block (which may be 1).
        gate: squeeze and excite.
    """

    def __init__(self, inputs: int, outputs: int, stride: int | None = None, gate: bool = False) -> None:
        super().__init__()
        gating = SqueezeExcite(inputs) if gate else nn.Identity()
        if stride is None:
            self.token_mixer = nn.Sequential(BranchedDepthwise(inputs), gating)
        else:
            mix = ConvNorm(inputs, inputs, 3, stride, groups=inputs)
            self.token_mixer = nn.Sequential(mix, gating, ConvNorm(inputs, outputs))
        self.channel_mixer = Residual(
            nn.Sequential(ConvNorm(outputs, 2 * outputs), nn.GELU(), ConvNorm(2 * outputs, outputs, zero=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))


class RepVitEncoder(nn.Module):
    """See the module. State-dict keys are the published ones."""

    def __init__(self, spec: RepVitSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.widths[0]
        stem = nn.Sequential(ConvNorm(3, width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2))
        features: list[nn.Module] = [stem]
        for stage, (outputs, depth) in enumerate(zip(spec.widths, spec.depths)):
            if stage:
                features.append(Block(width, outputs, spec.strides[stage - 1]))
            width = outputs
            # As published every other block has a gate, but not the one before a downsampling block.
            features += [Block(width, width, gate=i % 2 == 0 and i < depth - 1) for i in range(depth)]
        self.features = nn.ModuleList(features)
        self.neck = neck2d(width, spec.out)
        self.detail = Detail(spec.detail, spec.image_size // (4 * spec.grid)) if spec.detail else None

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stem and of every block, each (B, C, h, w)."""
        out = []
        for feature in self.features:
            x = feature(x)
            out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), multiples of the total stride -> embedding (B, out + 16 * (3 + detail), H / 16, W / 16)."""
        image = x
        for feature in self.features:
            x = feature(x)
        return self.neck(x) if self.detail is None else torch.cat([self.neck(x), self.detail(image)], dim=1)

"""A network's weights in bfloat16, for serving under autocast.

Autocast makes bfloat16 of the weights of every product and convolution, in every pass. Here they are stored so, once: the values
are the same, half the memory is read, and the embedding of a patch costs less by the time in which its weights were converted.
Norms, embeddings and positions stay in float32, as autocast leaves them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HalfLinear(nn.Linear):
    """A linear layer in bfloat16 that adds its bias afterwards, which on a CPU is faster than torch's product with a bias."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


class HalfPatches(nn.Conv3d):
    """A convolution of patches that do not overlap, in bfloat16, as the product of matrices that it is: three times faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        (n, channels), edges = x.shape[:2], self.kernel_size
        d, h, w = (size // edge for size, edge in zip(x.shape[2:], edges))
        x = (
            x.to(torch.bfloat16)
            .reshape(n, channels, d, edges[0], h, edges[1], w, edges[2])
            .permute(0, 2, 4, 6, 1, 3, 5, 7)
        )
        out = F.linear(x.reshape(n, d * h * w, -1), self.weight.reshape(self.out_channels, -1))
        if self.bias is not None:
            out = out.add_(self.bias)
        return out.transpose(1, 2).unflatten(2, (d, h, w))


def halved(model: nn.Module) -> nn.Module:
    """The same model, for inference under bfloat16 autocast only: weights of linear layers and convolutions in bfloat16."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.to(torch.bfloat16)
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            module.__class__ = HalfLinear
        if type(module) is nn.Conv3d and module.weight.device.type == "cpu" and _is_patches(module):
            module.__class__ = HalfPatches
    return model


def _is_patches(layer: nn.Conv3d) -> bool:
    """Whether a convolution cuts its input into large patches that do not overlap."""
    plain = layer.padding == (0, 0, 0) and layer.dilation == (1, 1, 1) and layer.groups == 1
    return plain and layer.stride == layer.kernel_size and min(layer.kernel_size) >= 8

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


def halved(model: nn.Module) -> nn.Module:
    """The same model, for inference under bfloat16 autocast only: weights of linear layers and convolutions in bfloat16."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.to(torch.bfloat16)
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            module.__class__ = HalfLinear
    return model

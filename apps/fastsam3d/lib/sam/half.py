"""A network's weights in bfloat16, for serving under autocast.

Autocast makes bfloat16 of the weights of every product and convolution, in every pass. Here they are stored so, once: the values
are the same, half the memory is read, and the embedding of a patch costs less by the time in which its weights were converted.
Norms and embeddings stay in float32, as autocast leaves them.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks.decoder3d import MaskDecoder3D
from .networks.layers import FeedForward
from .networks.upscaling import as_linear

logger = logging.getLogger(__name__)

_ROWS = 512  # for which oneDNN chooses the order of a weight; others take it too
_TOLERANCE = 0.02  # of the largest value: some steps of bfloat16


class Product:
    """A linear layer in bfloat16 on a CPU as one call of oneDNN: bias and activation in the same pass, and the weight in the
    order that the processor wants, once instead of in every call.

    A tenth faster than torch's product with all that follows one after another, a third where few tokens pass. torch has these
    calls for its compiler and documents them nowhere; so `packed` asks whether they are there and right.

    Args:
        weight: (outputs, inputs) bfloat16. bias: (outputs,) bfloat16, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        """(..., inputs) -> (..., outputs) bfloat16; `then` is "none", "relu" or "gelu" (by the error function)."""
        how = "none" if then == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.weight, self.bias, then, [], how)


def packed(weight: Tensor, bias: Tensor | None) -> Product | None:
    """The product with a weight, or None where this torch or this processor has no such call."""
    return Product(weight, bias) if weight.device.type == "cpu" and _products_work() else None


@cache
def _products_work() -> bool:
    """Whether `Product` gives what torch's own layers give, tried on a small one."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(24, 40, generator=generator).bfloat16() for _ in range(2))
    bias = torch.randn(24, generator=generator).bfloat16()
    expected = F.linear(x.float(), weight.float(), bias.float())
    try:
        with torch.inference_mode():
            product = Product(weight, bias)
            pairs = [
                (product(x), expected),
                (product(x, "relu"), F.relu(expected)),
                (product(x, "gelu"), F.gelu(expected)),
            ]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        logger.info("no products of oneDNN (%s)", str(error).partition("\n")[0])
        return False
    return all((found.float() - right).abs().max() <= _TOLERANCE * right.abs().max() for found, right in pairs)


class HalfLinear(nn.Linear):
    """A linear layer in bfloat16: a `Product`, else with its bias added afterwards, which on a CPU is faster than torch's
    product with a bias.
    """

    product: Product | None

    def forward(self, x: Tensor) -> Tensor:
        if self.product is not None:
            return self.product(x)
        out = F.linear(x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


class HalfFeedForward(FeedForward):
    """The same with the activation as part of the first `Product`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.lin1.product(x, _ACTIVATIONS[type(self.act)]))


_ACTIVATIONS = {nn.GELU: "gelu", nn.ReLU: "relu"}


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
            module.product = packed(module.weight, module.bias)
        if type(module) is nn.Conv3d and module.weight.device.type == "cpu" and _is_patches(module):
            module.__class__ = HalfPatches
    for module in model.modules():
        if type(module) is FeedForward and getattr(module.lin1, "product", None) and type(module.act) in _ACTIVATIONS:
            module.__class__ = HalfFeedForward
        if isinstance(module, MaskDecoder3D) and not hasattr(module, "refine"):  # what `upscaled_masks` is called for
            for layer in module.output_upscaling:
                if isinstance(layer, nn.ConvTranspose3d):
                    layer.product = packed(*as_linear(layer))
    return model


def _is_patches(layer: nn.Conv3d) -> bool:
    """Whether a convolution cuts its input into large patches that do not overlap."""
    plain = layer.padding == (0, 0, 0) and layer.dilation == (1, 1, 1) and layer.groups == 1
    return plain and layer.stride == layer.kernel_size and min(layer.kernel_size) >= 8

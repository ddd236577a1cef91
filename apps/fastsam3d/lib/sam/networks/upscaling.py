"""The published upscaling of the mask decoder, as products of matrices on rows of channels.

A transposed convolution whose stride is its kernel's edge is a linear layer from a cell to its eight halves. So cells stay rows
in whatever order, and only the masks, with one channel each, are put in the order of the grid: the values of the published
layers (two transposed convolutions with norm and GELU, product with a token's kernel) up to rounding, in a third of their time
on a CPU.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import gelu


def upscaled_masks(layers: nn.Sequential, rows: Tensor, kernels: Tensor, grid: int) -> Tensor:
    """Cells of the embedding -> masks at four times their resolution.

    Args:
        layers: `MaskDecoder3D.output_upscaling`: transposed convolution, channel norm, GELU, the same without norm.
        rows: (B, g**3, width), axes D, H, W of the patch flattened.
        kernels: (B, masks, width / 8), of the mask tokens.
        grid: g.

    Returns:
        (B, masks, 4g, 4g, 4g).
    """
    first, norm, _, second, _ = layers
    b, masks = kernels.shape[:2]
    x = _halves(first, rows)
    x = gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    x = _halves(second, x, "gelu")
    x = x @ kernels.transpose(1, 2)  # (B, g**3 * 8 * 8, masks)
    x = x.reshape(b, grid, grid, grid, 2, 2, 2, 8 * masks).permute(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(b, 2 * grid, 2 * grid, 2 * grid, 2, 2, 2, masks).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, masks, 4 * grid, 4 * grid, 4 * grid)


def as_linear(layer: nn.ConvTranspose3d) -> tuple[Tensor, Tensor]:
    """A transposed convolution of kernel 2 and stride 2 as a linear layer: weight (8 * outputs, inputs), bias (8 * outputs,)."""
    return layer.weight.permute(2, 3, 4, 1, 0).flatten(0, 3), layer.bias.repeat(8)


def _halves(layer: nn.ConvTranspose3d, rows: Tensor, then: str = "none") -> Tensor:
    """That layer on rows: (B, n, inputs) -> (B, 8n, outputs); `then` may be "gelu"."""
    product = getattr(layer, "product", None)  # of a network that is served in bfloat16, see half.py
    if product is not None:
        out = product(rows, then)
    else:
        weight, bias = as_linear(layer)
        out = F.linear(rows, weight)
        out = out.add_(bias) if out.dtype == bias.dtype else out + bias  # long rows are added faster than short ones
        out = gelu(out) if then == "gelu" else out
    return out.reshape(rows.shape[0], 8 * rows.shape[1], -1)

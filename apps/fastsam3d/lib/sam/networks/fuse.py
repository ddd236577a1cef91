"""Re-parameterisation: batch norms and parallel branches become single convolutions, for inference.

The fused form is always derived from the trained form, which stays the one that is stored.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4
"""Largest difference between both forms, relative to the largest value of the embedding."""


def fuse(module: nn.Module) -> nn.Module:
    """A copy in which every part that knows its fused form (a method `fused`) is replaced by it, in evaluation mode.

    Kernels are computed in float64 from the running statistics and rounded once; the module itself is not changed.
    """
    return _fuse(copy.deepcopy(module)).eval()


def fused_encoder(encoder: nn.Module, tolerance: float = TOLERANCE) -> nn.Module:
    """The fused form of an image encoder, verified on a small generated image.

    Args:
        encoder: an encoder of (B, 3, H, W).
        tolerance: see TOLERANCE.

    Raises:
        ValueError: both forms disagree; the weights are damaged (or beyond float32), and the trained form is to be used.
    """
    fused = fuse(encoder)
    error = disagreement(encoder, fused)
    if not error <= tolerance:
        raise ValueError(
            f"the fused encoder must agree with the trained one to {tolerance:g} of the largest value, got {error:.2g}: "
            "use the encoder unfused, or check its weights"
        )
    return fused


@torch.no_grad()
def disagreement(encoder: nn.Module, fused: nn.Module, images: Tensor | None = None) -> float:
    """Largest difference of both embeddings, divided by the largest value of the first.

    Args:
        encoder, fused: in any mode; compared in evaluation mode and left as they were.
        images: (B, 3, H, W), or None for a generated image of 64 x 64.
    """
    weight = next(encoder.parameters())
    if images is None:
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.to(weight)
    training = encoder.training
    try:
        reference = encoder.eval()(images)
    finally:
        encoder.train(training)
    return float((fused(images) - reference).abs().max() / reference.abs().max())


def _fuse(module: nn.Module) -> nn.Module:
    if hasattr(module, "fused"):
        return module.fused()
    for name, child in module.named_children():
        setattr(module, name, _fuse(child))
    return module

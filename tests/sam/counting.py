"""Counts parameters and multiply-adds of 2D networks without computing anything (on the meta device)."""

import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

NORMS = (
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit_no_training,
    torch.ops.aten.native_layer_norm,
)


def parameters(module: nn.Module) -> int:
    """How many learned numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(call, *inputs: torch.Tensor, attention: bool = False) -> float:
    """In units of 10^9: convolutions and linear layers, and four for every output of a norm, as is usual in papers.

    Args:
        attention: count the products inside attention, too.
    """
    norm = dict.fromkeys(NORMS, lambda shape, *_, **__: 8 * math.prod(shape))  # the counter's unit is half of one
    with FlopCounterMode(display=False, custom_mapping=norm) as counter, torch.no_grad():
        call(*inputs)
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counts.items() if attention or operation is not torch.ops.aten.bmm) / 2e9

"""Checkpoint files in the published layouts: real keys and shapes, random values, small on disk."""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch
from lib.sam.checkpoints import DECODER, ENCODER, expected_shapes, part
from lib.sam.zoo import SPECS
from torch import Tensor


def sample_state(spec: str, seed: int = 0) -> OrderedDict[str, Tensor]:
    """Random weights of that spec; all tensors are views of one storage, which is what a saved file then holds."""
    shapes = expected_shapes(SPECS[spec])
    sizes = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    pool = torch.randn(max(sizes.values()) + len(sizes), generator=torch.Generator().manual_seed(seed)) * 0.02
    return OrderedDict((key, pool[i : i + sizes[key]].view(shapes[key])) for i, key in enumerate(shapes))


def encoder_alone(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The encoder's tensors without their prefix."""
    return OrderedDict((key.removeprefix(ENCODER[0]), tensor) for key, tensor in part(state, ENCODER).items())


def decoder_alone(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Prompt encoder and mask decoder."""
    return OrderedDict(part(state, DECODER))


def training_checkpoint(state: dict[str, Tensor]) -> dict:
    """What the published training scripts save: weights among optimizer state, schedule, arguments and numpy numbers."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [90, 180, 180])
    assert isinstance(schedule.state_dict()["milestones"], Counter)
    return {
        "epoch": 3,
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": schedule.state_dict(),
        "losses": [np.float64(0.5), np.float32(0.25), 0.1],
        "dices": [np.float64(0.75)],
        "best_loss": np.inf,
        "best_dice": np.float64(0.75),
        "args": argparse.Namespace(lr=8e-4, device=torch.device("cuda:0"), gpu_ids=[0, 1], step=np.int64(3), nested={}),
        "used_datas": ["a/imagesTr", "b/imagesTr"],
    }


def run_checkpoint(spec: str, seed: int = 0) -> dict:
    """What training/pretrain.py saves, without its optimizer."""
    state = sample_state(spec, seed)
    config = f'{{"spec": "{spec}", "minutes": 100.0}}'
    return {"config": config, "step": 7, "seconds": 300.0, "model": sample_state(spec, seed + 1), "average": state}


def save(value: object, path: Path, **options) -> Path:
    """torch.save, returning the path."""
    torch.save(value, path, **options)
    return path

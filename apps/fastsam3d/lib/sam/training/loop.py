"""What every training loop of this package shares: recipes, the clock-based schedule, averaged weights, processes.

Nothing here knows a network or a data set.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

Config = TypeVar("Config")


def config_from(cls: type[Config], raw: dict, source: str) -> Config:
    """A recipe's dataclass from its JSON form; lists become tuples.

    Raises:
        ValueError: unknown keys; the message lists the known ones.
    """
    known = {f.name for f in fields(cls)}
    if set(raw) - known:
        raise ValueError(f"unknown keys {sorted(set(raw) - known)} in {source}; known: {sorted(known)}")
    return cls(**{key: _frozen(value) for key, value in raw.items()})


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(content).__name__}")
    return content


def save_atomic(state: dict, path: Path) -> None:
    """torch.save to a file that appears whole or not at all.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    temporary = path.with_suffix(".tmp")  # one name, so that what a killed process left is written over
    try:
        with open(temporary, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch stumbles over what it could not write, and says that instead
        raise


def read_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    """What `save_atomic` wrote, on the device; None where there is no such file."""
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def states(**parts: nn.Module | Optimizer) -> dict[str, dict[str, Any]]:
    """The states of networks and optimizers by name, for a checkpoint."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(state: Mapping[str, Any], **parts: nn.Module | Optimizer) -> None:
    """Gives networks and optimizers back what `states` took of them."""
    for name, part in parts.items():
        part.load_state_dict(state[name])


def cosine_rate(peak: float, step: int, warmup_steps: int, progress: float) -> float:
    """Learning rate: linear warm-up by steps, times a cosine from 1 to 0 over `progress` in [0, 1]."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """One learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_if_finite(optimizer: Optimizer, parameters: Iterable[nn.Parameter], clip: float) -> bool:
    """Clips the gradients' norm and steps; does not step, and returns False, where the norm is not finite."""
    finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip)))
    if finite:
        optimizer.step()
    return finite


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW: matrices and kernels decay; biases, norms and single vectors do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def processes() -> tuple[int, int]:
    """Rank of this process and how many there are (torchrun); (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_processes(tensors: Sequence[Tensor], clock: float) -> float:
    """Replaces float tensors by their means over the processes, in one exchange.

    Args:
        tensors: gradients (and statistics), the same in number and shape in every process.
        clock: seconds of training as this process counts them.

    Returns:
        The mean of the clocks, so that all processes follow one schedule. Alone nothing changes.
    """
    _, world = processes()
    if world == 1:
        return clock
    device = tensors[0].device
    flat = torch.cat([t.float().flatten() for t in tensors] + [torch.tensor([clock], device=device)])
    dist.all_reduce(flat)
    flat /= world
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
    return float(flat[-1])


def average_decay(ema: float, step: int) -> float:
    """Decay of averaged weights at a step: less at first, so that they forget the weights of the beginning."""
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of the averaged weights towards the model's; running statistics of norms likewise."""
    for a, p in zip(average.parameters(), model.parameters()):
        a.lerp_(p, 1 - decay)
    for a, b in zip(average.buffers(), model.buffers()):
        if a.is_floating_point():
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)

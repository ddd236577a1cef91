"""Where a model runs."""

from __future__ import annotations

import torch


def choose_device(name: str = "auto") -> torch.device:
    """Turns "auto" into CUDA where it works, else into the CPU; other names stand for themselves.

    Raises:
        ValueError: for a name that is no device of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"A device is auto, cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"There is no device {name!r}: {torch.cuda.device_count()} CUDA devices work here; use cpu or auto."
        )
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively: CUDA from compute capability 8, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())

"""How long things take: the stages of an answer, and whole pieces of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def stage(timings: dict[str, float], name: str) -> Iterator[None]:
    """Adds the milliseconds that the block takes to the stage of that name."""
    begin = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + 1000 * (time.perf_counter() - begin)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long the work takes, what it starts on a CUDA device included."""
    wait_for_device()
    begin = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - begin


def wait_for_device() -> None:
    """Returns when a CUDA device has done what it was given; at once without one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

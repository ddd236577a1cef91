"""The threads in which inferences run, so that the server's event loop stays free for everybody else.

They are few and live as long as the server. A thread that is made for a request would make a team of OpenMP threads of its own
first, and libgomp ends the whole process where it cannot; and clicks that wait here take no thread of those that serve uploads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import torch

COUNT = 4
"""Requests answered together; others wait in the order in which they came."""

_pool = ThreadPoolExecutor(COUNT, thread_name_prefix="inference")


def start_workers() -> None:
    """Makes the threads, and in each the team with which torch computes."""
    together = threading.Barrier(COUNT, timeout=60)

    def warm() -> None:
        together.wait()  # so that each task gets a thread of its own
        torch.randn(256, 256) @ torch.randn(256, 256)

    for made in [_pool.submit(warm) for _ in range(COUNT)]:
        made.result()


async def in_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in one of the threads, with the context variables of the caller."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool, partial(copy_context().run, function, *args))

"""The threads in which inferences run, so that the server's event loop stays free for everybody else.

They are few and live as long as the server, and clicks that wait here take no thread of those that serve uploads. They prepare
and finish answers; networks compute in a thread of their own (sam/compute.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

COUNT = 4
"""Requests answered together; others wait in the order in which they came."""

_pool = ThreadPoolExecutor(COUNT, thread_name_prefix="inference")


async def in_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in one of the threads, with the context variables of the caller."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool, partial(copy_context().run, function, *args))

"""Where the time of an answer goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stage(timings: dict[str, float], name: str) -> Iterator[None]:
    """Adds the milliseconds that the block takes to the stage of that name."""
    begin = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + 1000 * (time.perf_counter() - begin)

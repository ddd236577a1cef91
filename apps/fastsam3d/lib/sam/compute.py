"""Where networks compute in a server: one thread takes the steps of all requests, in the order in which they came.

A first look at a click is several steps, a refinement one or two. Two steps at once on one processor would make both slow; a
lock around the whole of an answer would make a refinement wait for somebody's first look. So requests hand over step by step.

The steps are handed to one thread, rather than run by their callers in turn, for OpenMP's sake: every thread that computes gets
a team of helpers, and with more than one team libgomp no longer lets helpers spin while they wait for the next piece of work.
That made a refinement half as slow again (docs/benchmarks.md). What torch does on more than a few thousand numbers belongs
here; what is left to the threads of requests is numpy's and scipy's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import torch


class ComputeThread:
    """A thread that runs what it is given, one thing after another; it begins with the first of them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=self._begin)
        self._ident: int | None = None

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function returns or raises; a step of a step runs at once."""
        if threading.get_ident() == self._ident:
            return function(*args, **kwargs)
        return self._pool.submit(function, *args, **kwargs).result()

    def _begin(self) -> None:
        self._ident = threading.get_ident()
        torch.set_num_threads(torch.get_num_threads())  # torch tells a new thread of its count late, and oneDNN never


_thread: ComputeThread | None = None


def start_compute_thread() -> None:
    """From now on this process computes in one thread. Without it, in a command, each caller computes for itself."""
    global _thread
    _thread = _thread or ComputeThread()


def compute(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the function where this process computes."""
    return function(*args, **kwargs) if _thread is None else _thread.run(function, *args, **kwargs)


def computed(step: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function or method a step: it runs where this process computes, in inference mode."""

    def infer(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return step(*args, **kwargs)

    @wraps(step)
    def handed_over(*args: Any, **kwargs: Any) -> Any:
        return compute(infer, *args, **kwargs)

    return handed_over

"""Whose turn it is on a device: steps of a network run one after another, in the order in which they were asked for.

A first look at a click is several steps, a refinement one or two. Two steps at once on one processor would make both slow; a
lock around the whole of an answer would make a refinement wait for somebody's first look. So callers take turns step by step.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import cache


class Turns:
    """A lock that goes to whoever has waited longest; not to be taken twice by one thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # until the one before hands its turn over

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


@cache
def turns_on(device: str) -> Turns:
    """The turns of all networks on a device, named as torch does."""
    return Turns()

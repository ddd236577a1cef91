"""Work at a low priority: reading scans, which takes a processor for half a second and more, beside others' clicks."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .sam.volume_io import Volume, read_volume

_NICE = 10  # clicks go first; trainings are nicer still


def be_gentle() -> None:
    """Lowers the calling thread's priority for good, where a thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


_reader = ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=be_gentle)


def read_gently(path: str | os.PathLike, **options: Any) -> Volume:
    """`read_volume` in a thread of low priority; a `SessionStore` reads one image at a time anyway."""
    return _reader.submit(read_volume, path, **options).result()

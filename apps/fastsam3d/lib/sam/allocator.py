"""What becomes of memory that a network's layers have freed."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for mallopt
_KEPT_BYTES = 256 * 2**20
_LARGEST_BYTES = 32 * 2**20  # more, glibc does not take; scans are larger, and go back to the system as before


def keep_freed_memory() -> None:
    """Makes glibc keep up to 256 MiB that were freed, in blocks of up to 32 MiB, for the layers to come.

    Otherwise the results of large layers are pages that the system makes anew in every pass, which is
    measured in docs/benchmarks.md. With another C library, or where the user set glibc's own variables, nothing is changed.
    """
    chosen = os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if sys.platform != "linux" or chosen or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)

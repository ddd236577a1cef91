"""Memory that was freed is kept for the next layers."""

import os
import subprocess
import sys
from pathlib import Path

import lib
import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="needs glibc"
)

_PROGRAM = """
import resource, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
from lib.sam.allocator import keep_freed_memory
keep_freed_memory()
def layers(*sizes):
    for _ in range(20):
        several = [torch.ones(size * 2**20) for size in sizes]
        del several
def work():
    layers(2, 2, 2, 2, 2)  # by then glibc would have chosen thresholds of its own
    layers(1, 2, 3, 4, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers(1, 2, 3, 4, 1)
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
torch.set_num_threads(1)
thread = threading.Thread(target=work)  # as in a server
thread.start()
thread.join()
"""


def _faults(**environment: str) -> int:
    """Pages that the system made for twenty times five results of 4 to 16 MiB."""
    made = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(Path(lib.__file__).parents[1])],
        capture_output=True, text=True, check=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    return int(made.stdout)


def test_no_page_is_made_anew():
    assert _faults() < 500


def test_what_the_user_set_stays():
    assert _faults(MALLOC_TRIM_THRESHOLD_="0") > 500

"""The test suite: in several processes, then the tests marked `alone` in one. `make test` runs it.

    .venv/bin/python scripts/run_tests.py [words for pytest, such as tests/sam -k placement -x]

There is a process for each core, four at most, each with one thread for its sums; -n N takes N. With one core, with -n 0
and where pytest needs the terminal (-s, --pdb, --collect-only) it is plain pytest. A file that pytest is told to write
(--junitxml) holds the second part alone: take -n 0 with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 4
ONE_PROCESS = {"-s", "--capture=no", "--pdb", "--trace", "--collect-only", "--co"}
PASSED, FAILED, NOTHING_RUN = 0, 1, 5  # exit statuses of pytest; with any other it did not come to its end


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """The number of processes, as pytest-xdist's -n takes it, and the other words for pytest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--numprocesses", default=str(min(MOST_PROCESSES, cores())))
    known, rest = parser.parse_known_args(words)
    return "0" if ONE_PROCESS & set(rest) else known.numprocesses, rest


def run(words: Sequence[str], **settings: str) -> int:
    """Exit status of pytest with these words; settings are environment variables that may be set already."""
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, cwd=ROOT, env=settings | os.environ, check=False).returncode


def run_in_parts(processes: str, words: Sequence[str]) -> int:
    """Exit status of both parts: 0 if all that was run passed, 1 if anything failed."""
    beside = ["-n", processes, "--dist", "loadfile", "--no-loadscope-reorder", "--part", "beside"]
    parts = {f"in {processes} processes": (beside, {"OMP_NUM_THREADS": "1"}), "alone": (["--part", "alone"], {})}
    statuses, said = set(), []
    for name, (options, settings) in parts.items():
        begin = time.monotonic()
        status = run([*options, *words], **settings)
        if status not in (PASSED, FAILED, NOTHING_RUN):
            return status
        statuses.add(status)
        outcome = {PASSED: "passed", FAILED: "FAILED", NOTHING_RUN: "nothing to run"}[status]
        said.append(f"{name} {outcome}, {time.monotonic() - begin:.0f} s")
    sys.stdout.write(f"tests: {'; '.join(said)}\n")
    return next(status for status in (FAILED, PASSED, NOTHING_RUN) if status in statuses)


def main() -> int:
    """Runs pytest once or twice."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for pytest, which stops the servers of the tests
    processes, words = split(sys.argv[1:])
    return run(words) if processes in ("0", "1") else run_in_parts(processes, words)


if __name__ == "__main__":
    sys.exit(main())

"""Send ten thousand hostile requests to a server of its own, or kill or load one: tests at full length.

.venv/bin/python scripts/fuzz.py [--requests 10000] [--seed 1]       no 5xx, no growth of memory, no file outside touched
.venv/bin/python scripts/fuzz.py --kills 20                          kill -9 of server, training and DICOMweb server under load
.venv/bin/python scripts/fuzz.py --clients 32                        clients that click and save while a training runs
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_HOURS = 6
_KILLS = ("tests/app/test_faults.py", "tests/app/test_training_faults.py", "tests/app/dicom/test_killed.py")
_LOAD = ("tests/app/test_concurrency.py", "tests/app/test_training_faults.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="how many requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (default: %(default)s)")
    parser.add_argument("--kills", type=int, help="kill each of them so many times instead")
    parser.add_argument("--clients", type=int, help="let so many clients work at once instead")
    args = parser.parse_args()
    settings = {"FASTSAM3D_FUZZ": str(args.requests), "FASTSAM3D_FUZZ_SEED": str(args.seed)}
    test = ["tests/app/test_fuzz.py"]
    if args.kills:
        settings, test = {"FASTSAM3D_KILLS": str(args.kills)}, [*_KILLS, "-k", "kills or full_disk"]
    if args.clients:
        settings, test = {"FASTSAM3D_CLIENTS": str(args.clients)}, [*_LOAD, "-k", "clients"]
    command = [sys.executable, "-m", "pytest", *test, "-q", "-s", "--timeout", str(_HOURS * 3600)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())

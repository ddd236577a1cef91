"""`scripts/demo_ohif.py` as a user runs it: Orthanc with a DICOM series, and the server on it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from scripts import demo_ohif
from tests.app import orthanc
from tests.app.serving import environment, shipped_weights

START_SECONDS = 240
STOP_SECONDS = 40


@dataclass(frozen=True)
class Demo:
    """A running demonstration: the server's address, the studies to open, and where everything is logged."""

    url: str
    studies: tuple[str, ...]
    log: Path

    def alive(self) -> bool:
        """Whether the server answers."""
        return requests.get(f"{self.url}/info/", timeout=60).status_code == 200


def missing() -> str | None:
    """What the demonstration or the browser lacks here, in words; None if nothing."""
    lacking = orthanc.missing()
    if lacking:
        return lacking
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: make setup-dev"
    if find_chromium() is None:
        return "Chromium is not installed. On Debian or Ubuntu, as root: sh scripts/debian_packages.sh chromium"
    return None


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def running(dicom: Path, folder: Path, port: int, weights: str | None = None) -> Iterator[Demo]:
    """Starts the demonstration, the server on a port that is free, with its files in a folder; stops it at the end.

    Args:
        weights: for `--conf weights`; None for the default model's that ship.

    Raises:
        RuntimeError: it ended or did not get ready; with the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "demo.log"
    env = environment(folder / "home")
    Path(env["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(demo_ohif.ROOT / "scripts" / "demo_ohif.py"), "--dicom", str(dicom)]
    command += ["--port", str(port), "--folder", str(folder / "work"), "--weights", weights or shipped_weights()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder
        )
    try:
        studies = _wait_until_ready(process, log)
        yield Demo(f"http://127.0.0.1:{port}", studies, log)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen, log: Path) -> tuple[str, ...]:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if "Ctrl-C stops" in text:
            return tuple(re.findall(r"demo-ohif: open \S+StudyInstanceUIDs=(\S+)", text))
        time.sleep(0.2)
    raise RuntimeError(f"demo_ohif.py ({process.poll()}) is not ready:\n{log.read_text(errors='replace')[-4000:]}")

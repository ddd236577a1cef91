"""A MONAI Label server in a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

APP = Path(__file__).resolve().parents[2]
OURS = "fastsam3d"
WARM_UP_SHAPE = (64, 64, 40)
"""Voxels of a scan that a server answers on before anything is measured."""

_START_SECONDS = 180.0
_CLICK_SECONDS = 1800.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class ServerError(RuntimeError):
    """A server that did not start or did not answer; the message holds the end of its log."""


def end_process_group(process: subprocess.Popen) -> None:
    """Ends a process that leads its own group, and everything below it; by force after ten seconds."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(10)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _resident(process: psutil.Process) -> int:
    """Bytes; 0 of a process that ended meanwhile or is no more than its entry."""
    try:
        return process.memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


class Server:
    """One server; use it in a `with` block, which ends its process.

    Args:
        app: the app's folder.
        studies: the folder of scans.
        home: a folder of its own for logs, settings and temporary files.
        conf: the `--conf` pairs.
        threads: CPU threads for every library in it that asks the environment.
        path: folders on which the process also finds modules.
    """

    def __init__(
        self, app: Path, studies: Path, home: Path, conf: Mapping[str, str], threads: int, path: Sequence[Path] = ()
    ) -> None:
        (home / "tmp").mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = home / "server.log"
        self._client = _client()
        words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        for key, value in conf.items():
            words += ["--conf", key, value]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MONAI_", "PYTHONPATH"))}
        environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp")}
        environment |= {variable: str(threads) for variable in _THREAD_VARIABLES}
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=home, start_new_session=True
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        end_process_group(self._process)

    def wait(self) -> None:
        """Returns when the server answers.

        Raises:
            ServerError: it ended, or took too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._client.get(f"{self.url}/info/", timeout=_START_SECONDS).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.2)
        raise ServerError(f"The server did not start. The end of its log:\n{self._log_end()}")

    def another_client(self) -> Server:
        """The same server for another annotator, with a connection of its own: for `click`, and not to be entered."""
        other = copy.copy(self)
        other._client = _client()
        return other

    def click(self, model: str, image: str, clicks: Sequence[tuple[Sequence[int], bool]]) -> tuple[float, bytes]:
        """Asks as OHIF does, with all clicks so far, and waits for the last byte of the answer.

        Returns:
            Milliseconds of the round trip, and the answer: a NRRD file.

        Raises:
            ServerError: any answer but a mask.
        """
        elapsed, answer = self._infer(model, image, clicks, "image")
        return elapsed, answer.content

    def inside_ms(self, model: str, image: str, clicks: Sequence[tuple[Sequence[int], bool]]) -> float:
        """Milliseconds that our server says it spent on such a request itself, the answer's file included.

        Raises:
            ServerError: any answer but a mask.
        """
        return 1000 * self._infer(model, image, clicks, "json")[1].json()["latencies"]["total"]

    def _infer(
        self, model: str, image: str, clicks: Sequence[tuple[Sequence[int], bool]], output: str
    ) -> tuple[float, requests.Response]:
        params = {
            "foreground": [list(ijk) for ijk, positive in clicks if positive],
            "background": [list(ijk) for ijk, positive in clicks if not positive],
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "result_compress": False,
            "restore_label_idx": False,
        }
        begin = time.perf_counter()
        answer = self._client.post(
            f"{self.url}/infer/{model}",
            params={"image": image, "output": output},
            files={"params": (None, json.dumps(params))},
            timeout=_CLICK_SECONDS,
        )
        elapsed = 1000 * (time.perf_counter() - begin)
        if not answer.ok:
            raise ServerError(f"{model} answered {answer.status_code}: {answer.text[:500]}\n{self._log_end()}")
        return elapsed, answer

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    def resident_mb(self) -> float:
        """Resident memory of the server's process and of those below it, in MB (10**6 bytes).

        Raises:
            ServerError: it has ended.
        """
        try:
            leader = psutil.Process(self._process.pid)
            return sum(_resident(process) for process in (leader, *leader.children(recursive=True))) / 1e6
        except psutil.NoSuchProcess as error:
            raise ServerError(f"The server has ended. The end of its log:\n{self._log_end()}") from error

    def _log_end(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


@contextmanager
def studies_folder() -> Iterator[Path]:
    """A new folder for scans; it and what lies beside it are deleted with the block."""
    with tempfile.TemporaryDirectory(prefix="fastsam3d-benchmark-") as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        yield studies


@contextmanager
def our_server(studies: Path, conf: Mapping[str, str], threads: int) -> Iterator[Server]:
    """This app's server on a folder of `studies_folder`, ready, with the default model.

    Raises:
        ServerError: it does not start.
    """
    with Server(APP, studies, studies.parent / "home", {"models": OURS, **conf}, threads) as server:
        server.wait()
        yield server


def _client() -> requests.Session:
    """A client that connects anew for each request: a server closes a connection that was idle for five seconds, maybe just
    when the next request is on its way."""
    client = requests.Session()
    client.headers["Connection"] = "close"
    return client

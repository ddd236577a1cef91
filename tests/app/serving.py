"""Starting and stopping the real server process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from lib.benchmarks.servers import end_process_group

from tests.sam.models2d import write_small_model

MODEL = "fastsam3d"
SLICE_MODEL = "repmedsam"
APP = Path(__file__).resolve().parents[2] / "apps" / "fastsam3d"
_START_SECONDS = 120
_REQUEST_SECONDS = 120


def shipped_weights() -> str:
    """What `--conf weights` says for the model that the repository holds, whatever else was imported on this machine."""
    registry = json.loads((APP / "model" / "registry.json").read_text())
    return f"{MODEL}={registry['defaults'][MODEL]}"


def shipped_slice_weights() -> str | None:
    """Name of the weights for slices that the repository holds; None as long as it holds none."""
    return json.loads((APP / "model" / "registry.json").read_text())["defaults"].get(SLICE_MODEL)


def all_weights(folder: Path) -> str:
    """As `shipped_weights`, and for the model for slices; untrained ones, written into a folder, where none ship."""
    return f"{shipped_weights()},{SLICE_MODEL}={shipped_slice_weights() or write_small_model(folder)}"


def all_models(folder: Path) -> tuple[str, ...]:
    """The `--conf` words for a server of the default model and of the model for slices, see `all_weights`."""
    return ("models", f"{MODEL},{SLICE_MODEL},{SLICE_MODEL}_2d", "weights", all_weights(folder))


def shipped_model() -> tuple[str, ...]:
    """The `--conf` words for a server of the default model alone, with the weights of the repository."""
    return ("models", MODEL, "weights", shipped_weights())


@dataclass
class Server:
    """A running server: its address, its log, its folders and its process."""

    url: str
    log: Path
    studies: Path | str
    temporary: Path
    process: subprocess.Popen

    def infer(self, image: str, params: dict | str, model: str = "fastsam3d", **query: str) -> requests.Response:
        """POST /infer/{model} as OHIF does: one multipart field with JSON."""
        text = params if isinstance(params, str) else json.dumps(params)
        return requests.post(
            f"{self.url}/infer/{model}",
            params={"image": image, **query},
            files={"params": (None, text)},
            timeout=_REQUEST_SECONDS,
        )

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=_REQUEST_SECONDS)

    def alive(self) -> bool:
        return self.process.poll() is None and self.get("/info/").status_code == 200


_held: list[socket.socket] = []


def free_port() -> int:
    """A port of the loopback address that nobody listens on and that no test, of this process or another, was given.

    A server listens on it seconds later. To keep others from it this process holds the UDP port of the same number, for
    which nothing here has a use, as long as it lives.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sign = socket.socket(type=socket.SOCK_DGRAM)
        try:
            sign.bind(("127.0.0.1", port))
        except OSError:
            sign.close()
            continue
        _held.append(sign)
        return port


def command(studies: Path | str, port: int, *conf: str, app: Path = APP) -> list[str]:
    """The documented start command, for this machine only; `conf` alternates keys and values."""
    launcher = shutil.which("monailabel", path=str(Path(sys.executable).parent))
    words = [launcher] if launcher else [sys.executable, "-m", "monailabel.main"]
    words += ["start_server", "--app", str(app), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    for key, value in zip(conf[::2], conf[1::2]):
        words += ["--conf", key, value]
    return words


def environment(home: Path) -> dict[str, str]:
    """An activated environment with folders of its own, and none of MONAI Label's settings."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MONAI_") and key != "PYTHONPATH"}
    env["PATH"] = str(Path(sys.executable).parent) + os.pathsep + env.get("PATH", "")
    env["HOME"] = str(home)
    env["TMPDIR"] = str(home / "tmp")
    return env


def launch(
    studies: Path | str, home: Path, *conf: str, app: Path = APP, settings: Mapping[str, str] | None = None
) -> Server:
    """Starts the server's process and returns at once; `settings` are MONAI Label's environment variables."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(studies, port, *conf, app=app),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment(home), **(settings or {})},
            cwd=home,
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", log, studies, home / "tmp", process)


def start(
    studies: Path | str, home: Path, *conf: str, app: Path = APP, settings: Mapping[str, str] | None = None
) -> Server:
    """Starts the server and waits until it answers (with 401 where it asks for tokens)."""
    server = launch(studies, home, *conf, app=app, settings=settings)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"The server ended with {server.process.returncode}:\n{server.log.read_text()[-4000:]}")
        try:
            if server.get("/info/").status_code in (200, 401):
                return server
        except requests.ConnectionError:
            time.sleep(0.2)
    stop(server)
    raise RuntimeError(f"The server did not answer within {_START_SECONDS} s:\n{server.log.read_text()[-4000:]}")


def stop(server: Server) -> None:
    """Ends the process group that `launch` made: the launcher and the server below it."""
    end_process_group(server.process)


def within(seconds: float, condition) -> bool:
    """Waits until something holds; whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()

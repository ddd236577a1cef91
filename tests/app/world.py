"""Studies, a copy of the app, and a server on them that may be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import requests
from lib.sam.weights import resolve
from safetensors.torch import load_file, save_file

from tests.app.learning import copy_app
from tests.app.serving import Server, shipped_model, start
from tests.app.volumes import save, scan


def kill(server: Server) -> None:
    """kill -9 of the launcher and of everything below it."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(30)


class World:
    """case1 to case6, a copy of the app, and the server on them, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.studies, self.home = folder / "studies", folder / "home"
        self.studies.mkdir()
        for n in range(1, 7):
            save(self.studies / f"case{n}.nii.gz", scan(n))
        self.app = copy_app(folder)
        self.server = self.started()

    def started(self) -> Server:
        """Starts the server (again)."""
        self.server = start(self.studies, self.home, *shipped_model()[:2], app=self.app)
        return self.server


def send_weights(world: World, name: str, content: bytes, model: str = "fastsam3d") -> requests.Response:
    """PUT /model/{model}."""
    files = {"file": (name, content)}
    return requests.put(f"{world.server.url}/model/{model}", files=files, timeout=900)


def other_weights(world: World, path: Path) -> bytes:
    """The shipped weights, a thousandth larger."""
    shipped = resolve("fastsam3d", world.app / "model")
    state = {key: tensor * 1.001 for file in shipped.paths for key, tensor in load_file(file).items()}
    save_file(state, path, metadata={"spec": shipped.spec.name})
    return path.read_bytes()

"""A copy of the app whose weights may change, and the calls of a client that annotates and trains."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import requests

from tests.app.serving import APP, MODEL, Server

IDLE = {
    "learning_rate": 0, "epochs": 1, "steps_per_epoch": 1, "patches": 1, "rehearsal": 0, "keep": 0, "guard_cases": 1,
    "gate_clicks": 1, "slices": 2, "images": 1, "gate_slices": 1,
}  # fmt: skip
"""One step at a learning rate of 0: the candidate is exactly as good as the served model, which is enough for the gate."""
_NOT_COPIED = ("runs", "imported", "accepted", "atlas", "logs", "__pycache__", "bin", ".fetch-*")


def copy_app(folder: Path) -> Path:
    """The app with the weights of the repository and nothing that this machine learned or imported."""
    return Path(shutil.copytree(APP, folder / "fastsam3d", ignore=shutil.ignore_patterns(*_NOT_COPIED)))


def save_label(server: Server, image: str, label: Path, names: dict[int, str]) -> None:
    """PUT /datastore/label as 3D Slicer does."""
    params = {"label_info": [{"name": name, "idx": value} for value, name in names.items()]}
    answer = requests.put(
        f"{server.url}/datastore/label?image={image}",
        files={"label": (label.name, label.read_bytes()), "params": (None, json.dumps(params))},
        timeout=60,
    )
    answer.raise_for_status()


def train(server: Server, params: dict, every: bool = False, model: str = MODEL) -> dict:
    """POST /train/{model}, or /train/ as OHIF does."""
    path = "/train/" if every else f"/train/{model}"
    answer = requests.post(server.url + path, json=params, timeout=60)
    answer.raise_for_status()
    return answer.json()


def stats(server: Server, model: str | None = None) -> dict:
    """A trainer's entry of train_stats, or the first one, as Slicer reads it."""
    found = server.get("/info/").json()["train_stats"]
    return found[model] if model else next(iter(found.values()))


def wait_for_training(server: Server, seconds: float) -> dict:
    """Asks until no training runs; returns the last task.

    The task itself is asked: `check_if_running` says no until the training's process has started.
    """
    deadline = time.monotonic() + seconds
    while (task := server.get("/train/").json())["status"] in ("SUBMITTED", "RUNNING"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still trains after {seconds} s: {stats(server)}\n{server.log.read_text()[-3000:]}")
        time.sleep(0.5)
    return task


def next_sample(server: Server, strategy: str) -> dict:
    """POST /activelearning/{strategy}."""
    answer = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=120)
    answer.raise_for_status()
    return answer.json()


def click(server: Server, image: str, ijk, **more) -> dict:
    """One click; the answer's parameters."""
    answer = server.infer(image, {"foreground": [[int(v) for v in ijk]], **more}, output="json")
    assert answer.status_code == 200, answer.text
    return answer.json()

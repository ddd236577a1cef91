"""The server killed under load, on a full disk, with images and weights that change below it. Its app is a copy."""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import torch
from lib.sam.registry import IMPORTED
from lib.sam.weights import resolve
from safetensors.torch import load_file, save_file

from tests.app.load import Image, Load, label_map, packed, unpacked
from tests.app.serving import APP, shipped_model, start, stop
from tests.app.volumes import CENTRE_IJK, SHAPE, save, scan

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = int(os.environ.get("FASTSAM3D_KILLS", "1"))
"""Of the server; `make faults` takes 20."""
CLICK = {"foreground": [list(CENTRE_IJK)], "result_extension": ".nrrd"}


def kill(server) -> None:
    """kill -9 of the launcher and of everything below it."""
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(30)


class World:
    """Studies, a copy of the app, and the server on them, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.studies, self.home = folder / "studies", folder / "home"
        self.studies.mkdir()
        for n in range(1, 7):
            save(self.studies / f"case{n}.nii.gz", scan(n))
        ignored = shutil.ignore_patterns("__pycache__", "logs", "bin", "imported", "accepted", "runs", ".fetch-*")
        self.app = Path(shutil.copytree(APP, folder / "app", ignore=ignored))
        self.server = self.started()

    def started(self):
        self.server = start(self.studies, self.home, *shipped_model()[:2], app=self.app)
        return self.server


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("faults"))
    yield made
    stop(made.server)


def test_kills_under_load_lose_nothing_and_the_next_click_is_the_same(world):
    rng = random.Random(20)
    load = Load(world.server, [Image(f"case{n}") for n in (1, 2, 3)], ["case4", "case5"])
    before = [load.click("case4", n) for n in range(2)]
    for n in range(KILLS):
        load.begin()
        load.wait(saves=3, clicks=2)
        time.sleep(rng.uniform(0.0, 1.5))
        kill(world.server)
        load.end()
        load.server = world.started()
        load.check_labels()
        assert [load.click("case4", n) for n in range(2)] == before
        assert not list(world.studies.rglob("*.part"))
        print(f"kill {n + 1}: {load.saves} labels saved, {load.clicks} clicks answered")  # noqa: T201
    assert load.wrong == []
    assert load.saves > KILLS
    assert load.clicks > KILLS
    assert load.server.get("/info/").json()["datastore"]["completed"] >= 1


def processes(server) -> list[psutil.Process]:
    top = psutil.Process(server.process.pid)
    return [top, *top.children(recursive=True)]


def test_a_full_disk_is_said_and_the_old_label_stays(world):
    """No file may grow beyond 300 kB, as on a disk without room; the label would have some 700."""
    old = packed(label_map(5))
    assert put_label(world.server, old).status_code == 200
    noise = packed(np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16))
    running = processes(world.server)
    limits = [process.rlimit(resource.RLIMIT_FSIZE) for process in running]
    try:
        for process, (_, hard) in zip(running, limits):
            process.rlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        answer = put_label(world.server, noise)
    finally:
        for process, limit in zip(running, limits):
            process.rlimit(resource.RLIMIT_FSIZE, limit)
    assert answer.status_code == 507
    assert "kept what it had" in answer.json()["detail"]
    kept = world.server.get("/datastore/label?label=case6&tag=final").content
    assert np.array_equal(unpacked(kept), label_map(5))
    assert put_label(world.server, noise).status_code == 200


def put_label(server, content: bytes) -> requests.Response:
    query, files = {"image": "case6"}, {"label": ("l.nii.gz", content)}
    return requests.put(f"{server.url}/datastore/label", params=query, files=files, timeout=60)


def test_an_image_that_is_replaced_on_disk_is_read_again(world):
    def masks(name):
        return world.server.infer(name, CLICK, output="image").content

    first = masks("case5")
    replaced = np.roll(scan(5), 12, axis=0)
    save(world.studies / ".new.nii.gz", replaced).replace(world.studies / "case5.nii.gz")
    save(world.studies / "fresh.nii.gz", replaced)
    second = masks("case5")
    assert second != first
    deadline = time.monotonic() + 10
    while "fresh" not in world.server.get("/datastore/?output=all").json()["objects"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert masks("fresh") == second


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def send_weights(world, name: str, content: bytes, model: str = "fastsam3d") -> requests.Response:
    files = {"file": (name, content)}
    return requests.put(f"{world.server.url}/model/{model}", files=files, timeout=120)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_weights_with_a_payload_never_run_and_change_nothing(world, tmp_path, name, how):
    canary, path = tmp_path / "canary", tmp_path / "file"
    value = {"model_state_dict": Payload(canary)}
    torch.save(value, path) if how == "torch" else path.write_bytes(pickle.dumps(value))
    answer = send_weights(world, name, path.read_bytes())
    assert answer.status_code == 422
    assert not canary.exists()
    assert str(world.server.temporary) not in answer.text
    assert not list((world.app / "model").glob("imported/*"))
    assert world.server.infer("case1", CLICK, output="json").status_code == 200


@pytest.mark.parametrize("name", ["../../x.pt", "..", "x.exe", ".pt", "a/../x.safetensors"])
def test_names_of_weights(world, name):
    assert send_weights(world, name, b"x").status_code in (400, 422)
    assert send_weights(world, "x.pt", b"x", "..%2f..%2fx").status_code == 404
    assert sorted(p.name for p in world.app.parent.iterdir()) == ["app", "home", "studies"]


def test_good_weights_are_imported_and_serve_the_next_click(world, tmp_path):
    before = world.server.infer("case1", CLICK, output="json").json()["weights"]
    shipped = resolve("fastsam3d", world.app / "model")
    state = {key: tensor for path in shipped.paths for key, tensor in load_file(path).items()}
    save_file(
        {key: tensor * 1.001 for key, tensor in state.items()}, tmp_path / "w", metadata={"spec": shipped.spec.name}
    )
    answer = send_weights(world, "mine.safetensors", (tmp_path / "w").read_bytes())
    assert answer.status_code == 200, answer.text
    after = world.server.infer("case1", CLICK, output="json").json()["weights"]
    assert after["name"] == "mine"
    assert after["version"] != before["version"]
    assert requests.delete(f"{world.server.url}/model/fastsam3d", timeout=60).status_code == 403
    shutil.rmtree(world.app / "model" / IMPORTED)
    assert world.server.infer("case1", CLICK, output="json").json()["weights"] == before

"""The server killed under load, on a full disk, with images and weights that change below it. Its app is a copy."""

from __future__ import annotations

import os
import pickle
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import torch
from lib.sam.registry import IMPORTED

from tests.app.load import Image, Load, label_map, packed, unpacked
from tests.app.serving import stop, within
from tests.app.volumes import CENTRE_IJK, SHAPE, save, scan
from tests.app.world import World, kill, other_weights, send_weights

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = int(os.environ.get("FASTSAM3D_KILLS", "1"))
"""Of the server; `make faults` takes 20."""
CLICK = {"foreground": [list(CENTRE_IJK)], "result_extension": ".nrrd"}


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


@contextmanager
def limited(server, what: int, limit: Callable[[psutil.Process], int]) -> Iterator[None]:
    """Sets a limit of the operating system for each process of the server, and takes it back."""
    top = psutil.Process(server.process.pid)
    running = [top, *top.children(recursive=True)]
    before = [process.rlimit(what) for process in running]
    try:
        for process, (_, hard) in zip(running, before):
            process.rlimit(what, (limit(process), hard))
        yield
    finally:
        for process, limits in zip(running, before):
            process.rlimit(what, limits)


def disk_with_room_for(server, size: int):
    """No process of the server can make a file larger than that, as on a disk without room."""
    return limited(server, resource.RLIMIT_FSIZE, lambda process: size)


def test_a_server_without_memory_says_so_and_answers_the_next_click(world):
    expected = world.server.infer("case1", CLICK, output="image").content
    large = np.zeros((420, 420, 240), np.int16)  # more than any thread has at hand
    large[200:] = 100
    save(world.studies / "large.nii.gz", large)
    wait_for_image(world.server, "large")
    fresh = {"foreground": [[300, 200, 100]], "result_extension": ".nrrd"}
    with limited(world.server, resource.RLIMIT_AS, lambda process: process.memory_info().vms + (8 << 20)):
        refused = [world.server.infer("large", fresh, output="image") for _ in range(3)]
    assert {answer.status_code for answer in refused} == {503}, [answer.text[:300] for answer in refused]
    assert all("not enough memory" in answer.json()["detail"] for answer in refused)
    assert world.server.infer("case1", CLICK, output="image").content == expected
    assert world.server.infer("large", fresh, output="image").status_code == 200


def wait_for_image(server, image: str) -> None:
    """Until the server has noticed a file that was put into the folder."""
    assert within(10, lambda: image in server.get("/datastore/?output=all").json()["objects"])


def test_a_full_disk_is_said_and_the_old_label_stays(world):
    old = packed(label_map(5))
    assert put_label(world.server, old).status_code == 200
    noise = packed(np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16))
    with disk_with_room_for(world.server, len(noise) // 2):
        answer = put_label(world.server, noise)
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
    wait_for_image(world.server, "fresh")
    assert masks("fresh") == second


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


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
    assert sorted(p.name for p in world.app.parent.iterdir()) == ["fastsam3d", "home", "studies"]


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_weights_for_which_the_disk_has_no_room_change_nothing(world, tmp_path, share):
    """With a tenth of the room the upload ends; with room for the upload its import, which adds metadata."""
    before = world.server.infer("case1", CLICK, output="json").json()["weights"]
    content = other_weights(world, tmp_path / "w")
    with disk_with_room_for(world.server, int(len(content) * share)):
        answer = send_weights(world, "mine.safetensors", content)
    assert answer.status_code == 507, answer.text
    assert "kept what it had" in answer.json()["detail"]
    assert world.server.infer("case1", CLICK, output="json").json()["weights"] == before
    assert not list((world.app / "model").rglob("*mine*"))


def test_good_weights_are_imported_and_serve_the_next_click(world, tmp_path):
    before = world.server.infer("case1", CLICK, output="json").json()["weights"]
    answer = send_weights(world, "mine.safetensors", other_weights(world, tmp_path / "w"))
    assert answer.status_code == 200, answer.text
    after = world.server.infer("case1", CLICK, output="json").json()["weights"]
    assert after["name"] == "mine"
    assert after["version"] != before["version"]
    assert requests.delete(f"{world.server.url}/model/fastsam3d", timeout=60).status_code == 403
    shutil.rmtree(world.app / "model" / IMPORTED)
    assert world.server.infer("case1", CLICK, output="json").json()["weights"] == before

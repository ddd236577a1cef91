"""The training process killed under load, and clients at work while the weights change. Minutes; see `make faults`."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psutil
import pytest
import requests
from lib.sam.versions import rollback

from tests.app.learning import IDLE, next_sample, save_label, stats, train, wait_for_training
from tests.app.load import Image, Load, click, label_map, packed, unpacked
from tests.app.serving import stop
from tests.app.volumes import CENTRE_IJK, save, target
from tests.app.world import World, other_weights, send_weights

KILLS = int(os.environ.get("FASTSAM3D_KILLS", "0"))
CLIENTS = int(os.environ.get("FASTSAM3D_CLIENTS", "0"))
TRAINING_SECONDS = 1200
ROOM = {"patches": 1 << 20, "checkpoint": 32 << 20}
"""What has no room on a full disk -> bytes that a file may have."""
ANNOTATED = ("case5", "case6")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    """A server with two annotated cases; everybody else's labels have another tag, so trainings do not read them."""
    made = World(tmp_path)
    for case in ANNOTATED:
        save_label(made.server, case, save(tmp_path / f"{case}.nii.gz", target().astype(np.uint8)), {1: "ball"})
    yield made
    stop(made.server)


def training_processes(server) -> list[psutil.Process]:
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in found if "monailabel.interfaces.utils.app" in process.cmdline()]


def hurry(server) -> None:
    """Lets the training compete with the clients as an equal: at its own low priority it would end long after them."""
    for process in training_processes(server):
        with suppress(psutil.Error):  # who is not root may only lower it
            process.nice(0)


def weights_served(server) -> str:
    return click(server, "case4", CENTRE_IJK)[0]


@pytest.mark.skipif(not KILLS, reason="takes minutes: make faults")
def test_kills_of_the_training_process_lose_no_label_and_no_model(world):
    server, rng = world.server, random.Random(5)
    load = Load(server, [Image(f"case{n}") for n in (1, 2)], ["case3", "case4"], tag="draft")
    begun = time.monotonic()
    train(server, IDLE)
    assert wait_for_training(server, TRAINING_SECONDS)["status"] == "DONE"
    seconds, states = time.monotonic() - begun, {}  # of a training, here without anybody else
    for n in range(KILLS):
        load.begin()
        train(server, {**IDLE, "seed": n})
        time.sleep(rng.uniform(0, 2 * seconds))  # twice as long: the load makes it slower
        message = stats(server).get("message", "")
        for process in training_processes(server):
            process.kill()
        wait_for_training(server, TRAINING_SECONDS)
        load.end()
        load.check_labels()
        for case in ANNOTATED:
            stored = server.get(f"/datastore/label?label={case}&tag=final").content
            assert np.array_equal(unpacked(stored) > 0, target())
        states[stats(server)["state"]] = states.get(stats(server)["state"], 0) + 1
        assert weights_served(server)
        print(f"kill {n + 1} at {message!r}: {load.saves} labels, {load.clicks} clicks")  # noqa: T201
    assert load.wrong == []
    assert set(states) <= {"stopped", "accepted", "refused"}
    assert states.get("stopped"), f"no training was hit: {states}"
    train(server, {**IDLE, "seed": KILLS})
    assert wait_for_training(server, TRAINING_SECONDS)["status"] == "DONE"
    print(f"states after the kills: {states}")  # noqa: T201


@pytest.mark.skipif(not KILLS, reason="takes minutes: make faults")
def test_a_full_disk_ends_a_training_which_says_so_and_changes_nothing_that_is_served(world):
    server = world.server
    before = click(server, "case4", CENTRE_IJK)
    for room in ROOM.values():
        train(server, IDLE)
        wait_until(lambda: training_processes(server))
        hurry(server)
        for process in training_processes(server):
            process.rlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        assert wait_for_training(server, TRAINING_SECONDS)["status"] == "ERROR"
        found = stats(server)
        assert found["state"] == "failed"
        assert "File too large" in found["message"]  # as the system words it; of a full disk: No space left on device
        assert click(server, "case4", CENTRE_IJK) == before
    runs = world.app / "model" / "runs"
    assert list(runs.rglob("patches"))  # the second one came further than the first
    assert not list(runs.rglob("checkpoint*"))
    assert not list((world.app / "model" / "accepted").rglob("*"))


class Client(threading.Thread):
    """Clicks, saves and asks for the next image until it is told to end.

    Attributes:
        masks: (job, version of the weights) -> the masks that it got.
        wrong: what went wrong, in words.
    """

    def __init__(self, number: int, server, end: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.server, self.end = number, server, end
        self.masks: dict[tuple[int, str], set[bytes]] = {}
        self.wrong: list[str] = []

    def run(self) -> None:
        turn = 0
        while not self.end.is_set():
            turn += 1
            try:
                self._turn(turn)
            except (requests.RequestException, OSError) as error:
                self.wrong.append(f"client {self.number}: {error!r}")

    def _turn(self, turn: int) -> None:
        job = (self.number + turn) % len(JOBS)
        version, mask = click(self.server, *JOBS[job])
        self.masks.setdefault((job, version), set()).add(mask)
        label, tag = label_map(1 + self.number + 50 * turn), f"client{self.number}"
        query, files = {"image": JOBS[job][0], "tag": tag}, {"label": ("l.nii.gz", packed(label))}
        requests.put(f"{self.server.url}/datastore/label", params=query, files=files, timeout=300).raise_for_status()
        stored = self.server.get(f"/datastore/label?label={query['image']}&tag={tag}")
        if not np.array_equal(unpacked(stored.content), label):
            self.wrong.append(f"client {self.number}: another label than it sent")
        next_sample(self.server, "first")


JOBS = [(image, [c + shift for c in CENTRE_IJK]) for image in ("case1", "case2") for shift in (0, 2, 4)]


def serial(server) -> dict[tuple[int, str], bytes]:
    """(job, version) -> mask of one client alone, with the weights that are served."""
    found = {}
    for job, (image, ijk) in enumerate(JOBS):
        version, mask = click(server, image, ijk)
        found[job, version] = mask
    return found


@pytest.mark.skipif(not CLIENTS, reason="takes minutes: python scripts/fuzz.py --clients 32")
def test_clients_get_the_masks_of_a_serial_run_while_a_training_runs_and_the_weights_change(world, tmp_path):
    server, end = world.server, threading.Event()
    alone = serial(server)
    clients = [Client(n, server, end) for n in range(CLIENTS)]
    train(server, IDLE)
    for client in clients:
        client.start()
    wait_until(lambda: all(client.masks for client in clients))
    assert send_weights(world, "mine.safetensors", other_weights(world, tmp_path / "w")).status_code == 200
    hurry(server)
    wait_until(lambda: len(versions(clients)) == 2)
    assert wait_for_training(server, TRAINING_SECONDS)["status"] == "DONE"
    wait_until(lambda: len(versions(clients)) == 3)
    end.set()
    for client in clients:
        client.join(300)
    alone |= serial(server)  # with what was learned
    rollback(world.app / "model", "fastsam3d", "default", "2026-01-01T00:00:00+00:00")
    alone |= serial(server)  # with what was sent
    assert [text for client in clients for text in client.wrong] == []
    assert len({version for _, version in alone}) == 3
    for client in clients:
        for key, masks in client.masks.items():
            assert masks == {alone[key]}, (client.number, key)
    seen = {key for client in clients for key in client.masks}
    print(f"{CLIENTS} clients, {len(seen)} of {len(alone)} pairs of click and weights")  # noqa: T201


def versions(clients: list[Client]) -> set[str]:
    return {version for client in clients for _, version in list(client.masks)}


def wait_until(condition) -> None:
    deadline = time.monotonic() + TRAINING_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)

"""Some hundred hostile requests to a real server; `make fuzz` sends ten thousand."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import psutil
import pytest
import requests

from tests.app.connections import connections, watch_connections
from tests.app.fuzzing import Fuzzer, Sent
from tests.app.serving import Server, shipped_model, start, stop
from tests.app.trees import tree_hash
from tests.app.volumes import CENTRE_IJK, save, scan

pytestmark = pytest.mark.e2e

COUNT = int(os.environ.get("FASTSAM3D_FUZZ", "250"))
SEED = int(os.environ.get("FASTSAM3D_FUZZ_SEED", "1"))
GROWTH = 1.10
_PARTS = 10
_WARM_CLICKS = 150  # until the cache is full, and the allocator has met every order in which it is filled


def memory(server: Server) -> int:
    """Bytes that the server's processes hold."""
    top = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in [top, *top.children(recursive=True)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "studies").mkdir()
    for n in (1, 2):
        save(folder / "studies" / f"case{n}.nii.gz", scan(n))
    (folder / "victim").mkdir()
    (folder / "victim" / "secret.nii.gz").write_bytes((folder / "studies" / "case1.nii.gz").read_bytes())
    return folder


@pytest.fixture(scope="module")
def fuzzed(world, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    conf = (*shipped_model(), "upload_gb", "0.05", "cache_gb", "0.06")
    running = start(world / "studies", home, *conf, settings=watch_connections(home))
    yield running
    stop(running)


def send(server: Server, sent: Sent) -> int | None:
    """The status of the answer; None if the client's own library refuses to send such a thing."""
    try:
        return requests.request(sent.method, server.url + sent.path, **sent.options).status_code
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, UnicodeError):
        return None


def test_a_connection_to_another_host_would_be_noted(tmp_path):
    code = "import socket; socket.getaddrinfo('localhost', 1); socket.getaddrinfo('elsewhere.invalid', 1)"
    settings = {**os.environ, **watch_connections(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code], env=settings, stderr=subprocess.DEVNULL, check=False, timeout=60)
    assert connections(tmp_path / "home") == {"here", "elsewhere.invalid"}


def test_hostile_requests(fuzzed, world):
    fuzzer = Fuzzer(fuzzed.get("/openapi.json").json(), SEED)
    outside = tree_hash(world, [world / "studies"])
    long = COUNT >= 5000  # long enough to see memory grow
    if long:
        assert all((send(fuzzed, sent) or 0) < 500 for sent in fuzzer.warm_up(_WARM_CLICKS))
    statuses: dict[int, int] = {}
    failed, sizes = [], []
    for number in range(COUNT):
        sent = fuzzer.next()
        try:
            status = send(fuzzed, sent)
        except requests.RequestException as error:
            status = 599
            failed.append(f"{sent}: {error!r}")
        if status is None:
            continue
        statuses[status] = statuses.get(status, 0) + 1
        if status >= 500:
            failed.append(f"{number}: {status} {sent}")
        if number % max(1, COUNT // 100) == 0:
            sizes.append(memory(fuzzed))
    print(f"{sum(statuses.values())} requests, answers {dict(sorted(statuses.items()))}")  # noqa: T201
    tenth = max(1, len(sizes) // _PARTS)
    parts = [int(statistics.median(sizes[n : n + tenth])) for n in range(0, len(sizes), tenth)]
    print("memory in MiB, tenth by tenth:", *(size >> 20 for size in parts))  # noqa: T201
    assert failed == []
    assert tree_hash(world, [world / "studies"]) == outside
    assert statuses.get(200, 0) > COUNT // 20  # not everything was refused at the door
    assert fuzzed.alive()
    save(world / "studies" / "last.nii.gz", scan(3))
    deadline = time.monotonic() + 30
    while "last" not in fuzzed.get("/datastore/?output=all").json()["objects"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert fuzzed.infer("last", {"foreground": [list(CENTRE_IJK)]}, output="json").json()["voxels"] > 0
    assert not long or max(parts) <= GROWTH * parts[0], parts
    assert connections(fuzzed.temporary.parent) == {"here"}

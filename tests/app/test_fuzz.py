"""Some hundred hostile requests to a real server; `make fuzz` sends ten thousand."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import requests

from tests.app.connections import connections, watch_connections
from tests.app.fuzzing import Fuzzer, Sent
from tests.app.learning import copy_app
from tests.app.serving import Server, all_models, start, stop, within
from tests.app.trees import tree_hash
from tests.app.volumes import CENTRE_IJK, save, scan

pytestmark = pytest.mark.e2e

COUNT = int(os.environ.get("FASTSAM3D_FUZZ", "250"))
SEED = int(os.environ.get("FASTSAM3D_FUZZ_SEED", "1"))
GROWTH = 1.10
THREADS = 4
_PARTS = 10
_WARM_CLICKS = 150  # until the cache is full, and the allocator has met every order in which it is filled


def memory(server: Server) -> int:
    """Bytes that the server's processes hold."""
    top = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in [top, *top.children(recursive=True)])


class World(NamedTuple):
    """A folder with the studies and a file beside them, the app that is served (a copy), and the server's home."""

    folder: Path
    app: Path
    home: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def sessions(self) -> Path:
        return self.home / ".cache" / "monailabel" / "sessions"

    def untouched(self) -> tuple[str, str, str]:
        """A hash of everything that requests may not change; the last two: the app's files, and the server's home.

        Of the app, logs and compiled files may change, and the atlas, which is learned from the labels; of the home,
        the log, the record of connections, the sessions and the temporary files.
        """
        home = [self.sessions, *(self.home / name for name in ("server.log", "connections.txt", "tmp"))]
        return (
            tree_hash(self.folder, [self.studies]),
            tree_hash(self.app, [self.app / "logs", self.app / "model" / "atlas"], ["__pycache__"]),
            tree_hash(self.home, home, ["__pycache__"]),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "studies").mkdir()
    for n in (1, 2):
        save(folder / "studies" / f"case{n}.nii.gz", scan(n))
    (folder / "victim").mkdir()
    (folder / "victim" / "secret.nii.gz").write_bytes((folder / "studies" / "case1.nii.gz").read_bytes())
    made = World(folder, copy_app(tmp_path_factory.mktemp("app")), tmp_path_factory.mktemp("home"))
    made.sessions.mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def fuzzed(world, tmp_path_factory):
    conf = (*all_models(tmp_path_factory.mktemp("weights")), "upload_gb", "0.05", "cache_gb", "0.06")
    running = start(world.studies, world.home, *conf, app=world.app, settings=watch_connections(world.home))
    yield running
    stop(running)


def send(server: Server, sent: Sent) -> int | None:
    """The status of the answer; None if the client's own library refuses to send such a thing, 599 without an answer."""
    try:
        return requests.request(sent.method, server.url + sent.path, **sent.options).status_code
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, UnicodeError):
        return None
    except requests.RequestException:
        return 599


def send_all(server: Server, stream: Iterable[Sent]) -> Iterator[tuple[Sent, int | None]]:
    """Sends from several threads, and gives each request with its status in the order of the stream."""
    every = list(stream)
    with ThreadPoolExecutor(THREADS) as pool:
        yield from zip(every, pool.map(lambda sent: send(server, sent), every))


def temporary(server: Server) -> set[str]:
    """What lies in the folder of temporary files."""
    return {path.name for path in server.temporary.iterdir()}


def test_a_connection_to_another_host_would_be_noted(tmp_path):
    code = "import socket; socket.getaddrinfo('localhost', 1); socket.getaddrinfo('elsewhere.invalid', 1)"
    settings = {**os.environ, **watch_connections(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code], env=settings, stderr=subprocess.DEVNULL, check=False, timeout=60)
    assert connections(tmp_path / "home") == {"here", "elsewhere.invalid"}


def test_a_file_that_is_sent_beside_another_image_is_removed(fuzzed):
    at_first = temporary(fuzzed)
    options = {"files": {"params": (None, '{"image": "nothing"}'), "file": ("x.nii.gz", b"no image")}, "timeout": 60}
    assert send(fuzzed, Sent("POST", "/infer/fastsam3d", options)) == 404
    assert within(2, lambda: temporary(fuzzed) <= at_first)


def test_hostile_requests(fuzzed, world):
    fuzzer = Fuzzer(fuzzed.get("/openapi.json").json(), SEED)
    long = COUNT >= 5000  # long enough to see memory grow
    if long:
        assert all((status or 0) < 500 for _, status in send_all(fuzzed, fuzzer.warm_up(_WARM_CLICKS)))
    before, at_first = world.untouched(), temporary(fuzzed)
    statuses: dict[int, int] = {}
    failed, sizes = [], []
    for number, (sent, status) in enumerate(send_all(fuzzed, (fuzzer.next() for _ in range(COUNT)))):
        if status is not None:
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
    assert world.untouched() == before
    assert within(10, lambda: temporary(fuzzed) <= at_first), temporary(fuzzed) - at_first
    assert statuses.get(200, 0) > COUNT // 20  # not everything was refused at the door
    assert fuzzed.alive()
    save(world.studies / "last.nii.gz", scan(3))
    assert within(30, lambda: "last" in fuzzed.get("/datastore/?output=all").json()["objects"])
    assert fuzzed.infer("last", {"foreground": [list(CENTRE_IJK)]}, output="json").json()["voxels"] > 0
    assert not long or max(parts) <= GROWTH * parts[0], parts
    assert connections(world.home) == {"here"}

"""Fetching weights from a server on this machine: verified, bounded, and nothing left behind when it fails."""

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lib.sam.checkpoint_files import WeightsError
from lib.sam.fetching import fetch
from lib.sam.weights import load_sam, resolve

from tests.sam.checkpoint_samples import decoder_alone, encoder_alone, sample_state, save

COMPACT = "fastsam3d_compact"


@pytest.fixture(autouse=True)
def _tidy(tmp_path) -> Iterator[None]:
    """Removes the large files of a test at once; pytest would keep those of its last runs."""
    yield
    shutil.rmtree(tmp_path)


class _Files(BaseHTTPRequestHandler):
    """GET /good, /cut, /large, /endless, /silent, /away, /downgrade, /missing; counts what was asked for."""

    data = b""
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = self.path.strip("/").partition("/")[0]
        if kind in ("away", "downgrade", "moved"):
            targets = {"away": "file:///etc/passwd", "downgrade": "http://example.com/x.pth", "moved": "/good"}
            self.send_response(302)
            self.send_header("Location", targets[kind])
            self.end_headers()
        elif kind == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            if kind != "endless":
                self.send_header("Content-Length", str(10**13 if kind == "large" else len(self.data)))
            self.end_headers()
            self.send_body(kind)

    def send_body(self, kind: str) -> None:
        try:
            if kind == "silent":
                self.server.stopped.wait(10)
            elif kind == "endless":
                for _ in range(1000):
                    self.wfile.write(bytes(1 << 20))
            elif kind != "large":
                self.wfile.write(self.data[: len(self.data) // 2] if kind == "cut" else self.data)
        except ConnectionError:
            pass  # the client had enough

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ThreadingHTTPServer]:
    """Serves one compact checkpoint."""
    _Files.data = save(sample_state(COMPACT), tmp_path_factory.mktemp("served") / "own.pth").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as running:
        running.stopped = threading.Event()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def offer(server, tmp_path):
    """Makes a folder of weights whose registry names one file of the server."""
    _Files.asked.clear()

    def make(kind: str, **fields) -> Path:
        row = {
            "name": "own",
            "model": "fastsam3d",
            "files": ["own.pth"],
            "sha256": [hashlib.sha256(_Files.data).hexdigest()],
            "licence": "Apache-2.0",
            "spec": COMPACT,
            "url": f"http://127.0.0.1:{server.server_port}/{kind}",
        }
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "registry.json").write_text(json.dumps({"weights": [row | fields]}))
        return folder

    return make


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name != "registry.json"]


@pytest.mark.parametrize("kind", ["good", "moved"])
def test_a_pinned_file_is_fetched_verified_and_imported(offer, kind):
    folder = offer(kind)
    path = fetch("own", folder)
    assert path == folder / "imported" / "own.safetensors"
    assert sorted(leftovers(folder)) == ["imported", "own.safetensors"]
    found = resolve("fastsam3d", folder)
    assert (found.name, found.origin) == ("own", "imported")
    assert load_sam(found).spec.name == COMPACT
    assert fetch("own", folder) == path  # once more, over the first


def test_an_unpinned_file_reports_its_hash(offer, caplog):
    folder = offer("good", sha256=["unpinned"])
    digest = hashlib.sha256(_Files.data).hexdigest()
    with caplog.at_level(logging.WARNING):
        fetch("own", folder)
    assert digest in caplog.text
    assert "to pin it" in caplog.text
    fetch("own", folder, sha256=digest.upper())
    with pytest.raises(WeightsError, match="expected"):
        fetch("own", folder, sha256="0" * 64)


def test_a_wrong_hash_is_an_error(offer):
    folder = offer("good", sha256=["0" * 64])
    with pytest.raises(WeightsError, match=f"has sha256 {hashlib.sha256(_Files.data).hexdigest()}, but 0000"):
        fetch("own", folder)
    assert leftovers(folder) == []


@pytest.mark.parametrize(
    "kind, what",
    [
        ("cut", "cut short: [0-9]+ of [0-9]+ bytes"),
        ("missing", "answers 404"),
        ("large", "more than the [0-9]+ bytes"),
        ("endless", "more than the [0-9]+ bytes"),
        ("silent", "cannot be downloaded.*(timed out|timeout)"),
        ("away", "by https|cannot be downloaded|answers 302"),
        ("downgrade", "by https"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(offer, kind, what):
    folder = offer(kind)
    with pytest.raises(WeightsError, match=what):
        fetch("own", folder, timeout=1, max_bytes=64 << 20)
    assert leftovers(folder) == []


def test_a_server_that_is_not_there(offer):
    folder = offer("good", url="http://127.0.0.1:9/own.pth")
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        fetch("own", folder, timeout=2)


def test_the_stated_size_bounds_the_download(offer):
    folder = offer("endless", bytes=[1000])
    with pytest.raises(WeightsError, match="more than the 1000 bytes"):
        fetch("own", folder)


@pytest.mark.parametrize("url", ["http://example.com/own.pth", "file:///etc/passwd", "ftp://127.0.0.1/x", "own.pth"])
def test_other_addresses_are_refused(offer, url):
    with pytest.raises(WeightsError, match="fetched by https"):
        fetch("own", offer("good", url=url))
    assert _Files.asked == []


def test_names_without_an_address(tmp_path):
    with pytest.raises(WeightsError, match="no weights called 'nothing'; there are fastsam3d-compact-v4"):
        fetch("nothing", tmp_path)
    with pytest.raises(WeightsError, match="no address.*weights import"):
        fetch("fastsam3d_published_encoder_h6", tmp_path)


def test_an_encoder_alone_asks_for_its_decoder_before_the_download(offer, tmp_path):
    state = sample_state(COMPACT)
    decoder = save(decoder_alone(state), tmp_path / "decoder.pth")
    whole, _Files.data = _Files.data, save(encoder_alone(state), tmp_path / "encoder.pth").read_bytes()
    try:
        folder = offer("good", decoder="sam_med3d_turbo", sha256=["unpinned"])
        with pytest.raises(WeightsError, match="fetch or import sam_med3d_turbo first"):
            fetch("own", folder)
        assert _Files.asked == []
        fetch("own", folder, decoder=decoder)
        assert resolve("fastsam3d", folder).name == "own"
    finally:
        _Files.data = whole

"""The phantom studies, and the servers that the clients talk to, once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.serving import Server, all_weights, free_port, shipped_model, start, stop
from tests.clients import demo, phantom
from tests.needs import need

CASES = 2


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Folder of generated studies, case1 also as a DICOM series."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.make_small(folder, CASES)
    return folder


@pytest.fixture(scope="session")
def folder_server(phantoms, tmp_path_factory) -> Iterator[Server]:
    """The server on a folder with the phantoms' images, without their labels."""
    home = tmp_path_factory.mktemp("folder-server")
    (home / "studies").mkdir()
    for image in (phantoms / "studies").glob("*.nii.gz"):
        (home / "studies" / image.name).write_bytes(image.read_bytes())
    running = start(home / "studies", home, *shipped_model())
    yield running
    stop(running)


@pytest.fixture(scope="session")
def ohif_demo(phantoms, tmp_path_factory) -> Iterator[demo.Demo]:
    """Orthanc with the phantom's series, and the server on it, as `make demo-ohif` starts them."""
    need(demo.missing())
    weights, folder = all_weights(tmp_path_factory.mktemp("weights")), tmp_path_factory.mktemp("demo")
    with demo.running(phantoms / "dicom", folder, free_port(), weights) as running:
        yield running

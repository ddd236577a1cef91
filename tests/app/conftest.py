"""One server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.serving import Server, all_models, start, stop
from tests.app.volumes import write_studies


@pytest.fixture(scope="session")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "studies"
    write_studies(folder)
    return folder


@pytest.fixture(scope="session")
def server(studies, tmp_path_factory) -> Iterator[Server]:
    running = start(studies, tmp_path_factory.mktemp("home"), *all_models(tmp_path_factory.mktemp("weights")))
    yield running
    stop(running)


@pytest.fixture(autouse=True)
def _server_survives(request) -> Iterator[None]:
    """After each test that used the server, it still answers."""
    yield
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").alive()

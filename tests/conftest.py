"""Fixtures for every test, and the path on which the app's library is found."""

import os
import sys
from pathlib import Path

import pytest

from scripts.demo_ohif import reach_loopback_directly

REPO = Path(__file__).resolve().parents[1]
APP = REPO / "apps" / "fastsam3d"
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))
reach_loopback_directly()


def find_shared() -> Path | None:
    """The optional folder of reference numbers and volumes: $FASTSAM3D_SHARED, else `shared` beside the checkout."""
    folder = Path(os.environ.get("FASTSAM3D_SHARED") or REPO.parent / "shared")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def app_dir() -> Path:
    """The app's folder."""
    return APP


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional shared folder; the test is skipped where it is absent."""
    folder = find_shared()
    if folder is None:
        pytest.skip("no shared folder: set FASTSAM3D_SHARED or put it beside the checkout")
    return folder

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


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--part",
        choices=("beside", "alone"),
        help="only the tests that may run beside others, or only the `alone` ones",
    )


def pytest_ignore_collect(collection_path, config) -> bool | None:
    """Files that do not speak of the mark are not imported for the few tests that have it, unless pytest was given paths."""
    if config.getoption("part") == "alone" and config.args_source is config.ArgsSource.TESTPATHS:
        if collection_path.suffix == ".py" and "mark.alone" not in collection_path.read_text(encoding="utf-8"):
            return True
    return None


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items) -> None:
    part = config.getoption("part")
    if part is not None:
        chosen = [item for item in items if bool(item.get_closest_marker("alone")) == (part == "alone")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    if config.getoption("dist") != "loadfile":
        return None
    from tests.units import FilesThatShare

    return FilesThatShare(config, log)


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

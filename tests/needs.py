"""Programs that some tests need: without them these skip, or fail where everything is to be checked."""

import os

import pytest

REQUIRED = "FASTSAM3D_REQUIRE_E2E"


def need(lacking: str | None) -> None:
    """Skips the test that asks, or fails it if $FASTSAM3D_REQUIRE_E2E is set to anything but 0.

    Args:
        lacking: what is not there, in words; None if nothing.
    """
    if lacking is None:
        return
    if os.environ.get(REQUIRED, "0") not in ("", "0"):
        pytest.fail(f"{lacking} ({REQUIRED} is set, so this may not be skipped)", pytrace=False)
    pytest.skip(lacking)

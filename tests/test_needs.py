"""What a missing program does to a test."""

import pytest

from tests.needs import REQUIRED, need


def test_nothing_lacks(monkeypatch):
    monkeypatch.setenv(REQUIRED, "1")
    need(None)


@pytest.mark.parametrize(("value", "outcome"), [("", pytest.skip), ("0", pytest.skip), ("1", pytest.fail)])
def test_a_missing_program_skips_or_fails(monkeypatch, value, outcome):
    monkeypatch.setenv(REQUIRED, value)
    with pytest.raises(outcome.Exception, match="Orthanc is not installed"):
        need("Orthanc is not installed")

"""The suite in several processes: how many, what a failure in either part does, and which files stay together."""

from pathlib import Path

import pytest

from scripts import run_tests
from scripts.run_tests import FAILED, NOTHING_RUN, PASSED
from tests.units import SHARING, unit

REPO = Path(__file__).resolve().parents[1]
INTERRUPTED = 2


@pytest.mark.parametrize(("count", "processes"), [(1, "1"), (2, "2"), (4, "4"), (64, "4")])
def test_a_process_for_each_core_up_to_four(monkeypatch, count, processes):
    monkeypatch.setattr(run_tests, "cores", lambda: count)
    assert run_tests.split(["tests/sam", "-k", "a and b"]) == (processes, ["tests/sam", "-k", "a and b"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["-n", "8", "-x"], ("8", ["-x"])), (["-n0"], ("0", [])), (["-s", "-n", "3"], ("0", ["-s"]))],
)
def test_who_asks_for_a_number_or_for_the_terminal_gets_it(words, expected):
    assert run_tests.split(words) == expected


@pytest.mark.parametrize(
    ("beside", "alone", "expected"),
    [
        (PASSED, PASSED, PASSED),
        (FAILED, PASSED, FAILED),
        (PASSED, FAILED, FAILED),
        (FAILED, NOTHING_RUN, FAILED),
        (NOTHING_RUN, PASSED, PASSED),
        (PASSED, NOTHING_RUN, PASSED),
        (NOTHING_RUN, NOTHING_RUN, NOTHING_RUN),
        (INTERRUPTED, None, INTERRUPTED),  # as with -x, or Ctrl-C
        (PASSED, INTERRUPTED, INTERRUPTED),
    ],
)
def test_a_failure_in_either_part_fails_the_whole(monkeypatch, beside, alone, expected):
    statuses = [beside, alone]
    monkeypatch.setattr(run_tests, "run", lambda words, **settings: statuses.pop(0))
    assert run_tests.run_in_parts("2", []) == expected
    assert statuses == ([alone] if alone is None else [])


def test_files_that_share_a_server_are_one_unit():
    assert unit("tests/app/test_info.py") == unit("tests/app/test_infer.py")
    assert unit("tests/clients/test_ohif.py") == unit("tests/clients/test_ohif_slices.py")
    assert unit("tests/app/test_access.py") == "tests/app/test_access.py"
    for paths in SHARING:
        assert len(set(map(unit, paths))) == 1
        assert all((REPO / path).exists() for path in paths)

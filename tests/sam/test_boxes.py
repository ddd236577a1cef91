"""Which boxes can be asked."""

import numpy as np
import pytest
from lib.sam.boxes import MAX_BOXES, check_boxes


def test_good_boxes_stay_as_they_are():
    found = check_boxes(np.array([[0, 0, 99, 79], [5.9, 6.2, 7, 8]]), (100, 80))
    assert found.boxes.tolist() == [[0, 0, 99, 79], [5, 6, 7, 8]]
    assert (found.numbers.tolist(), found.faults, found.warnings) == ([1, 2], (), ())


def test_boxes_are_sorted_and_cut_and_that_is_said():
    found = check_boxes(np.array([[20, 5, 3, 9], [-4, 5, 300, 9]]), (100, 80))
    assert found.boxes.tolist() == [[3, 5, 20, 9], [0, 5, 99, 9]]
    assert "box 1 had its corners the other way round" in found.warnings[0]
    assert "box 2 reached past the image" in found.warnings[1]


@pytest.mark.parametrize(
    "box, fault",
    [
        ([np.nan, 1, 5, 5], "finite"),
        ([1, 1, np.inf, 5], "finite"),
        ([100, 1, 120, 5], "must touch the image of 100 x 80"),
        ([-9, -9, -1, -1], "must touch"),
        ([5, 1, 5, 9], "area"),
        ([5, 5, 5, 5], "area"),
        ([1e300, 1, 2e300, 5], "must touch"),
    ],
)
def test_what_cannot_be_asked_is_left_out_with_its_reason(box, fault):
    found = check_boxes(np.array([[1, 1, 9, 9], box, [2, 2, 8, 8]], dtype=float), (100, 80))
    assert found.numbers.tolist() == [1, 3]
    assert len(found.faults) == 1
    assert "box 2" in found.faults[0]
    assert fault in found.faults[0]


def test_one_slice_is_a_stack():
    found = check_boxes(np.array([[1, 1, 4, 9, 9, 4], [1, 1, 4, 9, 1, 7]]), (100, 80, 60))
    assert found.numbers.tolist() == [1]


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 5)), np.zeros(4), np.array([["a"] * 4]), np.zeros((2, 4), bool), np.zeros((MAX_BOXES + 1, 4))],
)
def test_other_shapes_and_thousands_are_refused(values):
    with pytest.raises(ValueError, match="boxes must be rows of 4 numbers|at most 1000 boxes"):
        check_boxes(values, (100, 80))


def test_no_boxes_are_none():
    assert check_boxes(np.zeros((0, 4), np.int64), (9, 9)).boxes.shape == (0, 4)

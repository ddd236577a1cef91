"""Parts of a mask without a click."""

import numpy as np
from lib.sam.postprocess import connected_to_clicks


def _two_parts():
    logits = np.full((8, 8, 8), -3.0, np.float32)
    logits[1:3, 1:3, 1:3] = 2.0
    logits[5:7, 5:7, 5:7] = 1.0
    return logits


def test_only_parts_with_a_click_stay():
    out = connected_to_clicks(_two_parts(), np.array([[1, 1, 1]]))
    assert (out[1:3, 1:3, 1:3] == 2).all() and not (out[5:7, 5:7, 5:7] > 0).any()
    assert not ((out > 0) & ~(_two_parts() > 0)).any()


def test_a_click_beside_a_part_and_clicks_on_both_keep_them():
    assert (connected_to_clicks(_two_parts(), np.array([[3, 3, 3], [6, 6, 6]])) > 0).sum() == 16


def test_nothing_is_dropped_without_a_click_near_any_part():
    logits = _two_parts()
    assert np.array_equal(connected_to_clicks(logits, np.array([[0, 7, 0]])), logits)
    assert np.array_equal(connected_to_clicks(logits, np.zeros((0, 3), int)), logits)

"""Boxes that were drawn around lung, and the clicks that say so."""

import numpy as np
import pytest
from lib.sam.lungs import box_means_lung, lung_clicks

LUNG, TISSUE, GAS, AIR = -840, 50, -970, -1000


@pytest.fixture
def chest():
    """(H, W): a crescent of lung around a dome, in tissue."""
    y, x = np.mgrid[:70, :80]
    plane = np.full((70, 80), TISSUE)
    plane[:4] = AIR
    plane[np.hypot(y - 36, x - 40) < 26] = LUNG
    plane[np.hypot(y - 38, x - 40) < 20] = TISSUE
    return plane


AROUND_LUNG, AROUND_DOME = (15, 11, 65, 61), (21, 19, 59, 57)


def test_what_lies_at_the_faces_and_not_beyond_them_is_meant(chest):
    assert box_means_lung(chest, AROUND_LUNG)
    assert not box_means_lung(chest, AROUND_DOME)
    assert not box_means_lung(chest, (30, 28, 50, 46))  # within the dome
    assert not box_means_lung(chest, (0, 0, 79, 69))  # the whole slice


def test_clicks_say_what_is_meant(chest):
    chest[30:33, 17:20] = TISSUE  # a vessel
    assert box_means_lung(chest, AROUND_LUNG, [(18, 31)])
    assert box_means_lung(chest, AROUND_LUNG, [(40, 14)])  # on the lung
    assert not box_means_lung(chest, AROUND_LUNG, [(40, 14), (40, 40)])
    assert box_means_lung(chest, AROUND_LUNG, [(2, 2)])  # outside the box


@pytest.mark.parametrize("other", [GAS, AIR, TISSUE])
def test_gas_in_bowel_is_no_lung(chest, other):
    chest[chest == LUNG] = other
    assert not box_means_lung(chest, AROUND_LUNG)


def test_clicks_lie_in_the_middle_of_what_they_mean(chest):
    (x, y, on_lung), (u, v, on_dome) = lung_clicks(chest, AROUND_LUNG)
    assert (on_lung, on_dome) == (True, False)
    assert chest[y, x] == LUNG and chest[y - 2 : y + 3, x - 2 : x + 3].max() == LUNG
    assert abs(u - 40) <= 2 and abs(v - 38) <= 2


def test_a_box_of_lung_alone_gets_no_click_beside_it():
    assert [on_lung for *_, on_lung in lung_clicks(np.full((20, 20), LUNG), (2, 2, 17, 17))] == [True]
    assert lung_clicks(np.full((20, 20), LUNG), (3, 3, 3, 3)) == []

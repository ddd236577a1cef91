"""Boxes that were drawn around lung, and the clicks that say so; clicks in lung."""

import numpy as np
import pytest
from lib.sam.geometry import Grid
from lib.sam.lungs import box_means_lung, click_in_lung, far_inside, lung_clicks
from lib.sam.volume_io import Volume

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


@pytest.fixture
def thorax():
    """(40, 40, 40) of 2 mm: tissue with a lung, which holds a vessel of 6 mm, a vessel's end of one voxel and a nodule of 12 mm, in air."""
    array = np.full((40, 40, 40), TISSUE, np.int16)
    array[:2] = AIR
    array[6:34, 8:36, 8:36] = LUNG
    array[19:22, 20:23, :] = TISSUE
    array[26, 14, 14] = TISSUE
    i, j, k = np.ogrid[:40, :40, :40]
    array[(i - 13) ** 2 + (j - 27) ** 2 + (k - 20) ** 2 <= 9] = TISSUE
    return Volume(array, Grid(array.shape, np.diag([2.0, 2.0, 2.0, 1.0])))


@pytest.mark.parametrize(
    ("place", "lung"),
    [
        ((12, 12, 12), True),
        ((17, 21, 20), True),
        ((20, 21, 20), True),
        ((26, 14, 14), True),
        ((26, 15, 14), True),
        ((13, 27, 20), False),
        ((13, 30, 20), False),
        ((13, 31, 20), True),
        ((39, 39, 39), False),
        ((36, 38, 38), False),
        ((0, 0, 0), False),
        ((39, 20, 20), False),
    ],
)
def test_where_a_click_is_in_lung(thorax, place, lung):
    assert click_in_lung(thorax, np.array(place, dtype=float)) == lung


def test_no_click_is_in_lung_where_the_scan_is_no_ct(thorax):
    array = thorax.array.copy()
    array[array == AIR], array[array == LUNG] = TISSUE, -600
    assert not click_in_lung(Volume(array, thorax.grid), np.array([12.0, 12.0, 12.0]))


def test_far_clicks_lie_deep_in_the_mask_and_far_from_the_others():
    mask = np.zeros((32, 32, 32), bool)
    mask[4:28, 4:12, 4:12] = True  # a bar
    mask[26:28, 4:30, 6:8] = True  # and a thin arm, farther away
    first = far_inside(mask, np.array([[6.0, 8.0, 8.0]]))
    assert mask[first] and first[0] >= 22 and first[1] < 12
    second = far_inside(mask, np.array([[6.0, 8.0, 8.0], list(first)]))
    assert mask[second] and 10 <= second[0] <= 20
    assert far_inside(np.zeros_like(mask), np.zeros((1, 3))) is None

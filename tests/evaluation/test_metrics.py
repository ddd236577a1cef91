"""Dice, surface Dice and the numbers over clicks, against plain computations."""

import numpy as np
import pytest
from lib.sam.metrics import click_area, clicks_to_reach, dice, surface_dice
from scipy.spatial import cKDTree


def box_mask(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


def surface_points(mask, spacing):
    """Places in mm where eight voxels meet of which some are inside and some outside."""
    padded = np.pad(mask, 1).astype(int)
    corners = [slice(0, -1), slice(1, None)]
    inside = sum(padded[a, b, c] for a in corners for b in corners for c in corners)
    return (np.argwhere((inside > 0) & (inside < 8)) - 0.5) * spacing


def test_dice_by_hand():
    a, b = box_mask((6, 6, 6), (0, 0, 0), (4, 4, 4)), box_mask((6, 6, 6), (2, 0, 0), (6, 4, 4))
    assert dice(a, b) == pytest.approx(2 * 32 / 128)
    assert dice(a, a) == 1 and dice(a, ~a) == 0 and dice(np.zeros_like(a), np.zeros_like(a)) == 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.5, 1.0, 0.8)])
def test_surface_dice_agrees_with_distances_between_points(spacing):
    place = np.moveaxis(np.indices([int(60 / s) for s in spacing]), 0, -1) * spacing
    a = (((place - 30) / [20, 16, 14]) ** 2).sum(-1) <= 1
    b = (((place - [32, 29, 31]) / [18, 18, 15]) ** 2).sum(-1) <= 1
    points = [surface_points(mask, spacing) for mask in (a, b)]
    away = np.concatenate([cKDTree(points[1]).query(points[0])[0], cKDTree(points[0]).query(points[1])[0]])
    for tolerance in (1.0, 2.0, 3.0):  # the points are not weighted by area, which costs up to 0.021 here
        plain = (away <= tolerance + 1e-9).mean()
        assert 0.5 < plain < 0.99 and surface_dice(a, b, spacing, tolerance) == pytest.approx(plain, abs=0.025)


def test_a_shift_along_one_axis_counts_in_its_millimetres():
    a = box_mask((30, 30, 30), (10, 10, 10), (20, 20, 20))
    b = np.roll(a, 1, axis=2)
    assert surface_dice(a, b, (1, 1, 1.5), 2.0) == 1.0
    assert surface_dice(a, b, (1, 1, 4.0), 2.0) < 0.9
    assert surface_dice(np.roll(a, 1, axis=0), a, (1, 1, 4.0), 2.0) == 1.0


def test_surface_dice_where_nothing_is():
    a, empty = box_mask((9, 9, 9), (3, 3, 3), (5, 5, 5)), np.zeros((9, 9, 9), bool)
    assert surface_dice(a, empty, (1, 1, 1)) == 0 and surface_dice(empty, a, (1, 1, 1)) == 0
    assert surface_dice(empty, empty, (1, 1, 1)) == 1 and surface_dice(a, a, (1, 1, 1), 0.0) == 1
    one = box_mask((9, 9, 9), (4, 4, 4), (5, 5, 5))
    assert surface_dice(one, one, (1, 1, 1)) == 1
    with pytest.raises(ValueError, match="finite"):
        surface_dice(a, a, (1, 1, 1), float("nan"))


def test_a_single_slice_is_a_plane():
    a, b = box_mask((40, 40, 1), (5, 5, 0), (25, 25, 1)), box_mask((40, 40, 1), (5, 5, 0), (33, 25, 1))
    assert surface_dice(a, a, (1, 1, 5)) == 1
    assert 0.5 < surface_dice(a, b, (1, 1, 5)) < 0.95  # the far edge is 8 mm away, although the slice's faces overlap


def test_numbers_over_clicks():
    assert click_area([0.5]) == 0.5 and click_area([0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert clicks_to_reach([0.2, 0.9, 0.7], 0.9) == 2 and clicks_to_reach([0.2], 0.9) is None

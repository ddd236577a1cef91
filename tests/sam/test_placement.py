"""Where the patch goes when clicks reach beyond it."""

from dataclasses import replace

import numpy as np
import pytest
from lib.sam.geometry import Grid, PatchFrame
from lib.sam.placement import MAX_COARSENING, follow, holds, look_closer, place_patch
from lib.sam.prompts import Box, Click, Prompts
from lib.sam.zoo import get_spec

SPEC = get_spec("fastsam3d_compact")
GRID = Grid((300, 260, 200), np.diag([1.5, 1.5, 2.0, 1.0]))
MIDDLE = (150, 130, 100)


def clicks(*points):
    return Prompts(tuple(Click(p) for p in points))


def mask_around(frame, point, cells):
    """A cube of cells around a voxel, in the frame's mask grid."""
    mask = np.zeros((SPEC.mask_size,) * 3, bool)
    middle = (frame.to_patch([point])[0] // (frame.size / SPEC.mask_size)).astype(int)
    mask[tuple(slice(max(0, c - cells), c + cells + 1) for c in middle)] = True
    return mask


@pytest.fixture
def first():
    return place_patch(GRID, clicks(MIDDLE), SPEC)


def test_it_stays_where_the_click_is_on_the_mask_or_near_it(first):
    mask = mask_around(first, MIDDLE, 5)
    assert follow(first, mask, clicks(MIDDLE, (152, 131, 100)), SPEC) is first
    assert follow(first, mask, clicks(MIDDLE, (170, 130, 100)), SPEC) is first


def test_it_moves_for_a_click_far_from_the_mask_and_gets_coarser_where_it_must(first):
    mask = mask_around(first, MIDDLE, 2)
    moved = follow(
        first, mask, clicks(MIDDLE, (195, 130, 100)), SPEC
    )  # mask, click and as much beyond it as fits 19 cm
    assert moved.spacing_mm == first.spacing_mm and not holds(first, np.array([(217, 130, 100)]))
    assert holds(moved, np.array([MIDDLE, (195, 130, 100), (217, 130, 100)]))
    coarser = follow(first, mask, clicks(MIDDLE, (225, 130, 100)), SPEC)
    assert 1.25 * first.spacing_mm <= coarser.spacing_mm < 1.5 * first.spacing_mm and coarser.size == first.size
    assert holds(coarser, np.array([MIDDLE, (225, 130, 100), (268, 130, 100)]))


def test_a_click_outside_is_always_inside_afterwards(first):
    for mask in (mask_around(first, MIDDLE, 3), np.zeros((SPEC.mask_size,) * 3, bool)):
        for point in ((5, 5, 5), (299, 130, 100), (150, 130, 199)):
            moved = follow(first, mask, clicks(MIDDLE, point), SPEC)
            assert holds(moved, np.array([point])) and moved.spacing_mm <= MAX_COARSENING * SPEC.spacing_mm


def test_what_is_expected_outside_the_scan_counts_for_nothing():
    small = Grid((110, 100, 60), np.diag([1.5, 1.5, 2.0, 1.0]))  # 17 x 15 x 12 cm: the patch holds all of it
    frame = place_patch(small, clicks((55, 50, 30)), SPEC)
    mask = mask_around(frame, (55, 50, 30), 1)
    assert follow(frame, mask, clicks((55, 50, 30), (105, 95, 55)), SPEC) is frame


def test_a_fine_patch_is_given_up_for_a_large_object():
    fine = PatchFrame.around(GRID, MIDDLE, SPEC.patch_size, 0.6, "click")
    moved = follow(fine, mask_around(fine, MIDDLE, 4), clicks(MIDDLE, (190, 130, 100)), SPEC)
    assert moved.spacing_mm >= 0.9


def test_where_nothing_was_found_a_cell_may_be_as_small_as_a_voxel():
    coarse, fine = (Grid((130, 110, 100), np.diag([v, v, v, 1.0])) for v in (3.0, 1.0))
    assert look_closer(coarse, clicks((65, 55, 50)), SPEC) is None  # a patch voxel is half a voxel of the scan already
    assert look_closer(coarse, clicks((65, 55, 50)), SPEC, found=False).spacing_mm == 3.0 / SPEC.cell
    assert look_closer(fine, clicks((65, 55, 50)), SPEC).spacing_mm == 1.0
    assert look_closer(fine, clicks((65, 55, 50)), SPEC, found=False).spacing_mm == 0.6


def test_boxes_choose_the_scale_themselves():
    small, usual, large = (
        place_patch(GRID, Prompts((), Box(tuple(m - h for m in MIDDLE), tuple(m + h for m in MIDDLE))), SPEC).spacing_mm
        for h in (6, 32, 95)
    )
    assert small == 0.75 and usual == 1.5 and large > 3  # never finer than half of a voxel
    plain = replace(SPEC, zoom=False)
    box = Prompts((), Box((50, 50, 50), (250, 200, 150)))
    assert place_patch(GRID, box, plain).spacing_mm == 1.5  # the published patch, whatever is asked

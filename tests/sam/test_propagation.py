"""Following objects through a stack, with a network that sees perfectly, or ends, or errs, as the test says."""

import numpy as np
import pytest
from lib.sam.propagation import AHEAD, SliceMask, StackPlan, follow
from lib.sam.slice_network import SlicePrompt
from lib.sam.slices import SliceFrame

FRAME = SliceFrame((256, 256))
BOX = (90.0, 90.0, 150.0, 150.0)


class Eye:
    """Sees one square object: half-width by slice, 0 where there is none. Every call is kept."""

    def __init__(self, halves, centre=120, grey=None):
        self.halves, self.centre, self.grey = halves, centre, grey or {}
        self.asked, self.coming = [], []

    def __call__(self, asked, coming):
        self.asked.append([(index, prompt) for index, prompt in asked])
        self.coming.append(list(coming))
        return [self.look(index) for index, _ in asked]

    def look(self, index):
        half = self.halves[index]
        if not half:
            return SliceMask(np.zeros((0, 0), bool), (0, 0), 0.1)
        corner = (self.centre - half, self.centre - half)
        return SliceMask(np.ones((2 * half, 2 * half), bool), corner, 0.9, (self.grey.get(index, 100.0), 5.0))


def slices(plan, eye):
    return {index: found.mask.shape[0] // 2 for index, found in follow([plan], eye, FRAME)[0].items()}


HALVES = [0, 0, 0, 4, 8, 12, 16, 18, 16, 12, 8, 4, 0, 0, 0, 0]


def test_an_object_is_followed_until_it_ends():
    eye = Eye(HALVES)
    found = slices(StackPlan({7: SlicePrompt(BOX)}, (0, 15)), eye)
    assert found == {index: half for index, half in enumerate(HALVES) if half}


@pytest.mark.parametrize("margin", [1, 3])
def test_the_next_box_is_the_masks_a_little_wider(margin):
    eye = Eye(HALVES)
    follow([StackPlan({7: SlicePrompt(BOX)}, (0, 15))], eye, FRAME, margin)
    assert eye.asked[0] == [(7, SlicePrompt(BOX))]
    low, high = 102.0 - margin, 137.0 + margin
    assert dict(eye.asked[1]) == {index: SlicePrompt((low, low, high, high)) for index in (6, 8)}


@pytest.mark.parametrize(
    "change, end",
    [
        ({"halves": [0, 0, 0, 4, 8, 12, 16, 18, 16, 40, 40, 40, 40, 0, 0, 0]}, 8),  # leaks into another object
        ({"halves": HALVES, "grey": {10: 180.0}}, 9),  # is something else by its grey
    ],
)
def test_an_object_without_bounds_ends_where_the_next_mask_is_another(change, end):
    assert max(slices(StackPlan({7: SlicePrompt(BOX)}, (0, 15)), Eye(**change))) == end


def test_a_bounded_object_is_looked_for_in_every_slice():
    halves = [0, 0, 0, 4, 8, 0, 16, 18, 16, 0, 0, 4, 0, 0, 0, 0]
    eye = Eye(halves)
    plan = StackPlan({7: SlicePrompt(BOX)}, (2, 12), roi=BOX)
    assert slices(plan, eye) == dict(enumerate(halves[2:13], start=2))
    given = {index: prompt.box for wave in eye.asked for index, prompt in wave}
    assert given[4] == BOX  # the slice before it was empty
    assert all(b[0] >= BOX[0] and b[1] >= BOX[1] and b[2] <= BOX[2] and b[3] <= BOX[3] for b in given.values())


def test_between_two_anchors_the_nearer_one_leads():
    eye = Eye(HALVES)
    plan = StackPlan({4: SlicePrompt(BOX), 9: SlicePrompt(BOX)}, (4, 9))
    assert sorted(slices(plan, eye)) == [4, 5, 6, 7, 8, 9]
    waves = [[index for index, _ in wave] for wave in eye.asked]
    assert waves == [[4, 9], [5, 8], [6, 7]]
    assert sum(map(len, waves)) == 6


def test_clicks_elsewhere_join_the_box_of_the_neighbour():
    eye = Eye(HALVES)
    click = ((100.0, 100.0, 0),)
    follow([StackPlan({7: SlicePrompt(BOX)}, (5, 9), clicks={8: click}, roi=BOX)], eye, FRAME)
    given = {index: prompt for wave in eye.asked for index, prompt in wave}
    assert given[8].clicks == click and given[8].box is not None
    assert not any(given[index].clicks for index in (5, 6, 9))


def test_many_objects_advance_together():
    eye = Eye(HALVES)
    plans = [StackPlan({at: SlicePrompt(BOX)}, (3, 11), roi=BOX) for at in (4, 7, 10)]
    found = follow(plans, eye, FRAME)
    assert [sorted(masks) for masks in found] == [list(range(3, 12))] * 3
    assert len(eye.asked) == 1 + 7  # as many waves as the longest way


def test_what_comes_next_is_announced():
    eye = Eye(HALVES)
    follow([StackPlan({7: SlicePrompt(BOX)}, (5, 8), roi=BOX)], eye, FRAME)
    assert AHEAD == 1
    assert [sorted(c) for c in eye.coming] == [[], [5, 6, 8], [5]]


@pytest.mark.parametrize("reach", [(7, 7), (6, 7)])
def test_no_slice_beyond_the_reach_is_asked(reach):
    eye = Eye(HALVES)
    follow([StackPlan({7: SlicePrompt(BOX)}, reach)], eye, FRAME)
    asked = {index for wave in eye.asked for index, _ in wave}
    assert asked == set(range(reach[0], reach[1] + 1))

"""Which slices prompts mean."""

import numpy as np
import pytest
from lib.sam.geometry import Grid
from lib.sam.prompts import Box, Click, PromptError, Prompts
from lib.sam.slice_network import SlicePrompt
from lib.sam.slice_prompts import model_box, plan_prompts, plane_axis, stack_axis
from lib.sam.slices import SliceFrame

SHAPE = (60, 50, 40)


def grid(*spacing, shape=SHAPE) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def clicks(*points, negative=()) -> tuple[Click, ...]:
    return tuple(Click(p) for p in points) + tuple(Click(p, False) for p in negative)


@pytest.mark.parametrize(
    "spacing, axis",
    [((1, 1, 1), 2), ((0.7, 0.7, 5), 2), ((5, 0.7, 0.7), 0), ((0.7, 5, 0.7), 1), ((1.2, 1, 1), 2), ((1, 1, 0.4), 0)],
)
def test_slices_lie_across_the_last_axis_or_the_thickest(spacing, axis):
    assert stack_axis(grid(*spacing)) == axis


def test_a_thin_box_tells_its_plane_whichever_it_is():
    for axis in range(3):
        high = [20, 20, 20]
        high[axis] = 5
        assert plane_axis(grid(1, 1, 3), Prompts(box=Box((5, 5, 5), tuple(high))), single=True) == axis


def test_clicks_for_one_slice_tell_its_plane():
    isotropic = grid(1, 1, 1)
    assert plane_axis(isotropic, Prompts(clicks((3, 4, 5))), single=True) == 2
    assert plane_axis(isotropic, Prompts(clicks((3, 4, 5), (9, 4, 7))), single=True) == 1
    assert plane_axis(isotropic, Prompts(clicks((3, 4, 5), (3, 8, 7))), single=True) == 0
    assert plane_axis(isotropic, Prompts(clicks((3, 4, 5), (3, 8, 5), negative=[(3, 8, 0)])), single=True) == 0
    with pytest.raises(PromptError, match="must lie in one slice, got 2 clicks"):
        plane_axis(isotropic, Prompts(clicks((3, 4, 5), (9, 8, 7))), single=True)


def test_a_stack_keeps_its_axis_whatever_is_clicked():
    assert plane_axis(grid(1, 1, 1), Prompts(clicks((3, 4, 5), (9, 4, 7))), single=False) == 2


FRAME = SliceFrame((SHAPE[1], SHAPE[0]))
SCALE = 256 / 60


def plan(prompts, single=False, extent=0):
    return plan_prompts(grid(1, 1, 3), prompts, 2, FRAME, single, extent)


def test_a_box_bounds_a_stack_and_starts_in_its_middle():
    found, warnings = plan(Prompts(box=Box((6, 12, 0), (30, 36, 9))))
    box = model_box(np.array([6, 12, 30, 36]), FRAME)
    assert box == tuple(float(int(v * SCALE)) for v in (6, 12, 30, 36))
    assert found.anchors == {4: SlicePrompt(box)}
    assert (found.reach, found.roi, warnings) == ((0, 9), box, [])


def test_a_box_in_one_slice_is_followed_both_ways():
    found, _ = plan(Prompts(box=Box((6, 12, 0), (30, 36, 0))))
    assert list(found.anchors) == [0] and found.roi is None and found.reach == (0, 39)
    assert plan(Prompts(box=Box((6, 12, 20), (30, 36, 20))), extent=3)[0].reach == (17, 23)


def test_clicks_in_several_slices_are_several_starts():
    found, warnings = plan(Prompts(clicks((10, 10, 5), (12, 10, 5), (10, 10, 9), negative=[(3, 3, 7)])))
    assert list(found.anchors) == [5, 9]
    assert [len(prompt.clicks) for prompt in found.anchors.values()] == [2, 1]
    assert all(prompt.box is None for prompt in found.anchors.values())
    assert found.clicks[7] == (((3 + 0.5) * SCALE - 0.5, (3 + 0.5) * 213 / 50 - 0.5, 0),)
    assert not warnings


def test_clicks_join_a_box():
    box = Box((6, 12, 2), (30, 36, 9))
    found, warnings = plan(Prompts(clicks((10, 14, 8), (10, 14, 20), negative=[(7, 13, 5)]), box))
    assert sorted(found.anchors) == [5, 8]
    assert [len(found.anchors[i].clicks) for i in (5, 8)] == [1, 1]
    assert found.anchors[5].box == found.anchors[8].box == found.roi
    assert warnings == ["1 clicks lie in slices that are not asked for and were not used"]


def test_one_slice_is_that_of_the_box_or_the_clicks():
    thin = Prompts(clicks(negative=[(7, 13, 0)]), Box((6, 12, 0), (30, 36, 0)))
    found, warnings = plan(thin, single=True)
    assert (list(found.anchors), found.reach, found.roi, warnings) == ([0], (0, 0), None, [])
    assert len(found.anchors[0].clicks) == 1
    assert list(plan(Prompts(clicks((10, 14, 8))), single=True)[0].anchors) == [8]
    found, warnings = plan(Prompts(box=Box((6, 12, 2), (30, 36, 9))), single=True)
    assert list(found.anchors) == [5] and "slices 2 to 9; its middle one, 5" in warnings[0]


def test_a_box_below_a_model_pixel_keeps_one():
    assert model_box(np.array([100, 100, 101, 101]), SliceFrame((1024, 1024))) == (25.0, 25.0, 26.0, 26.0)

"""Which prompts are made, by a model that answers with a given mask."""

import numpy as np
import pytest
from lib.sam.clicks import next_click
from lib.sam.evaluation.interface import Answer
from lib.sam.evaluation.protocols import (
    BOX,
    box_step,
    challenge_box,
    click_steps,
    slice_boxes,
    slices_step,
    tight_box,
)
from lib.sam.prompts import Box, Click
from scipy import ndimage


def target_mask():
    mask = np.zeros((12, 10, 8), bool)
    mask[2:9, 3:8, 2:6] = True
    mask[2:6, 3:5, 5] = False
    return mask


class Grower:
    """Answers with the truth around every positive click, and notes what it was asked."""

    def __init__(self, target, radius):
        self.target, self.radius, self.asked = target, radius, []

    def __call__(self, prompts):
        self.asked.append(prompts)
        near = np.zeros(self.target.shape, bool)
        for click in prompts.clicks:
            distance = np.abs(np.indices(self.target.shape).T - click.ijk).T.max(axis=0)
            near |= (distance <= self.radius) & click.positive
        if prompts.box is not None and not prompts.clicks:
            near[tuple(slice(a, b + 1) for a, b in zip(prompts.box.low_ijk, prompts.box.high_ijk))] = True
        return Answer(near & self.target, 0.25)


def test_each_click_lies_in_the_error_of_the_mask_before():
    target = target_mask()
    model = Grower(target, 1)
    mask = np.zeros_like(target)
    for n, step in enumerate(click_steps(model, target, (1, 1, 1), 4, "centre"), start=1):
        newest = step.prompts.clicks[-1]
        assert step.clicks == n == len(step.prompts.clicks) and newest.positive
        assert target[newest.ijk] and not mask[newest.ijk]
        mask = step.answer.mask


def test_nothing_is_asked_once_the_mask_is_perfect():
    target = target_mask()
    model = Grower(target, 20)
    steps = list(click_steps(model, target, (1, 1, 1), 3, "centre"))
    assert len(model.asked) == 1 and [s.answer.seconds for s in steps] == [0.25, 0.0, 0.0]
    assert all((s.answer.mask == target).all() for s in steps)


def test_the_challenge_keeps_the_box_and_clicks_in_its_mask():
    target = target_mask()
    model = Grower(target, 1)
    boxed = box_step(model, challenge_box(target))
    steps = list(click_steps(model, target, (1, 1, 1), 2, "cvpr25", first=boxed))
    assert boxed.clicks == BOX and all(s.prompts.box == boxed.prompts.box for s in steps)
    assert box_step(model, None) is None


def test_the_challenges_click_is_the_deepest_voxel_of_the_largest_error():
    rng = np.random.default_rng(5)
    target = ndimage.gaussian_filter(rng.normal(size=(14, 12, 10)), 2) > 0.02
    pred = ndimage.gaussian_filter(rng.normal(size=(14, 12, 10)), 2) > 0.02
    seg, gt = pred.T, target.T  # the challenge's arrays are (depth, height, width)
    parts, _ = ndimage.label(seg != gt, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = parts == sizes.argmax()
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    places = np.argwhere(depth == depth.max())
    np.random.seed(42)  # noqa: NPY002 (as published)
    k, j, i = places[np.random.choice(len(places))]  # noqa: NPY002
    assert next_click(pred, target, rule="cvpr25") == Click((int(i), int(j), int(k)), bool(target[i, j, k]))
    assert next_click(target, target, rule="cvpr25") is None


def test_boxes():
    target = target_mask()
    assert tight_box(target) == Box((2, 3, 2), (8, 7, 5))
    thin = np.zeros((5, 5, 5), bool)
    thin[2, 2, 1:4] = True
    assert tight_box(thin) is None and tight_box(np.zeros_like(thin)) is None
    narrow = target.copy()
    narrow[2:6, :, 2] = False  # a smaller slice; the box takes its extent from the largest
    assert challenge_box(narrow) == Box((2, 3, 2), (8, 7, 5))
    wide = narrow.copy()
    wide[0, 0, 2] = True
    assert challenge_box(wide) == Box((2, 3, 2), (8, 7, 5)) != tight_box(wide)


def test_a_box_in_every_slice():
    target = target_mask()
    target[:, :, 2] = False
    target[0, 0, 2] = True  # a single pixel becomes two by two
    assert slice_boxes(target)[0] == Box((0, 0, 2), (1, 1, 2))
    model = Grower(target, 0)
    step = slices_step(model, target)
    assert [p.box.low_ijk[2] for p in model.asked] == [2, 3, 4, 5]
    assert (step.answer.mask == target).all() and step.answer.seconds == pytest.approx(1.0)

"""The click simulator against plain whole-volume computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.sam.clicks import RULES, click_candidates, next_click, simulator_mask
from lib.sam.prompts import Click
from scipy import ndimage


def ball(shape, centre, radius):
    index = np.indices(shape)
    return sum((x - c) ** 2 for x, c in zip(index, centre)) <= radius**2


def masks(seed, shape=(12, 9, 15)):
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0
    pred = ndimage.gaussian_filter(rng.normal(size=shape), 2) > rng.choice([-1, 0, 0.2, 1])
    return pred, target


@given(st.integers(0, 10_000), st.sampled_from(RULES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_click_lies_in_the_error_and_has_its_sign(seed, rule, legacy):
    pred, target = masks(seed)
    rng = np.random.RandomState(seed) if legacy else np.random.default_rng(seed)
    click = next_click(pred, target, rng, rule)
    assert (click is None) == bool((pred == target).all())
    if click is not None:
        assert pred[click.ijk] != target[click.ijk] and click.positive == target[click.ijk]


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_candidates_equal_the_whole_volume_rule(seed):
    pred, target = masks(seed)
    depth = [ndimage.distance_transform_edt(np.pad(r, 1))[1:-1, 1:-1, 1:-1] for r in (target & ~pred, pred & ~target)]
    missed = depth[0].max() > depth[1].max()
    deeper = depth[0] if missed else depth[1]
    if deeper.max() == 0:
        return
    for rule, expected in (
        ("random", np.argwhere(pred ^ target)),
        ("ritm", np.argwhere(deeper > deeper.max() / 2)),
        ("centre", [np.unravel_index(deeper.argmax(), deeper.shape)]),
    ):
        candidates, positive = click_candidates(pred, target, rule)
        np.testing.assert_array_equal(candidates, expected)
        np.testing.assert_array_equal(positive, target[tuple(candidates.T)])


def test_the_draw_is_numpys():
    pred, target = masks(4)
    candidates, _ = click_candidates(pred, target)
    assert next_click(pred, target, np.random.RandomState(7)).ijk == tuple(
        candidates[np.random.RandomState(7).randint(len(candidates))]
    )
    assert next_click(pred, target, np.random.default_rng(7)).ijk == tuple(
        candidates[np.random.default_rng(7).integers(len(candidates))]
    )


def test_no_error_no_click():
    target = ball((9, 9, 9), (4, 4, 4), 3)
    for rule in RULES:
        assert next_click(target, target, np.random.default_rng(0), rule) is None
    empty = np.zeros((3, 3, 3), bool)
    assert next_click(empty, empty, np.random.default_rng(0)) is None


def test_the_first_click_hits_the_centre_and_ties_go_to_the_surplus():
    target, empty = ball((21, 21, 21), (10, 9, 8), 5), np.zeros((21, 21, 21), bool)
    assert next_click(empty, target, rule="centre") == Click((10, 9, 8), True)
    assert next_click(target, empty, rule="centre") == Click((10, 9, 8), False)
    pair = np.zeros((1, 1, 9), bool)
    pair[..., 1:4] = True
    assert next_click(pair, pair[..., ::-1], rule="centre").positive is False


def test_depth_reaches_the_volumes_edge():
    target = np.zeros((8, 8, 8), bool)
    target[:3] = True  # the edge of the volume counts as outside, so the middle layer is the deepest
    candidates, _ = click_candidates(np.zeros_like(target), target, "centre")
    assert candidates[0][0] == 1


def test_depth_in_millimetres():
    target = np.ones((3, 9, 9), bool)
    flat = click_candidates(np.zeros_like(target), target, "ritm", (10.0, 1.0, 1.0))[0]
    assert set(flat[:, 0]) == {0, 1, 2}  # thick slices: depth is limited within the slice
    assert set(click_candidates(np.zeros_like(target), target, "ritm")[0][:, 0]) == {1}


def test_other_dtypes_are_taken_as_masks():
    pred, target = masks(1)
    expected = next_click(pred, target, rule="centre")
    assert next_click(pred.astype(np.uint8), target.astype(np.float32), rule="centre") == expected


def test_published_thresholds():
    logits = np.array([-0.1, 0.1, 0.5, 0.6])
    assert simulator_mask(logits).tolist() == [False, False, False, True]
    assert simulator_mask(logits, "sam_med3d").tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="fastsam3d, sam_med3d"):
        simulator_mask(logits, "other")


def test_bad_arguments_are_named():
    pred, target = masks(1)
    with pytest.raises(ValueError, match="random, ritm, centre"):
        next_click(pred, target, np.random.default_rng(0), "nearest")
    with pytest.raises(ValueError, match="one shape"):
        next_click(pred[1:], target, np.random.default_rng(0))
    with pytest.raises(ValueError, match="one shape"):
        next_click(pred[0], target[0], np.random.default_rng(0))
    with pytest.raises(ValueError, match="rng"):
        next_click(pred, target)

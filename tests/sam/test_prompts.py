"""Clicks and boxes: what is accepted, and what the user is told otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.sam.geometry import Grid
from lib.sam.prompts import MAX_CLICKS, Box, Click, PromptError, Prompts

GRID = Grid((10, 20, 30), np.eye(4))


@settings(deadline=None)
@given(st.tuples(st.integers(0, 9), st.integers(0, 19), st.integers(0, 29)), st.booleans())
def test_every_voxel_of_the_scan_can_be_clicked(ijk, positive):
    Prompts((Click(ijk, positive),)).validate(GRID)


def test_arrays_for_the_model():
    prompts = Prompts([Click((1, 2, 3), True), Click((4, 5, 6), False)])
    assert prompts.clicks_ijk.tolist() == [[1, 2, 3], [4, 5, 6]] and prompts.labels.tolist() == [1, 0]
    assert Prompts(box=Box((0, 0, 0), (1, 1, 1))).clicks_ijk.shape == (0, 3)
    assert isinstance(prompts.clicks, tuple) and hash(prompts) == hash(Prompts(prompts.clicks))


def test_numpy_and_integral_numbers_become_ints():
    click = Click(np.array([1.0, 2.0, 3.0]), np.bool_(True))
    assert click == Click((1, 2, 3), True) and all(type(v) is int for v in click.ijk) and click.positive is True


@pytest.mark.parametrize(
    "ijk",
    [
        (1, 2),
        (1, 2, 3, 4),
        (1.5, 2, 3),
        (float("nan"), 2, 3),
        (float("inf"), 2, 3),
        (10**400, 2, 3),
        (2**40, 2, 3),
        ("1", 2, 3),
        (None, 2, 3),
        (True, 2, 3),
        (1j, 2, 3),
        5,
        "abc",
        None,
    ],
)
def test_a_click_needs_three_whole_numbers(ijk):
    with pytest.raises(PromptError, match="three whole voxel indices"):
        Click(ijk, True)
    with pytest.raises(PromptError, match="low corner"):
        Box(ijk, (1, 1, 1))


@pytest.mark.parametrize("sign", [1, 0, "true", None])
def test_a_sign_is_a_bool(sign):
    with pytest.raises(PromptError, match="sign"):
        Click((1, 2, 3), sign)


@pytest.mark.parametrize("ijk", [(-1, 0, 0), (10, 0, 0), (0, 20, 0), (0, 0, 30), (2**31 - 1, 0, 0)])
def test_a_click_outside_is_named(ijk):
    with pytest.raises(PromptError, match=r"10 x 20 x 30.*click 2 at \(" + str(ijk[0])):
        Prompts((Click((0, 0, 0)), Click(ijk))).validate(GRID)


def test_nothing_to_go_by():
    with pytest.raises(PromptError, match="at least one click or a box"):
        Prompts().validate(GRID)


def test_the_cap_is_named_and_duplicates_are_allowed():
    Prompts((Click((1, 1, 1)),) * MAX_CLICKS).validate(GRID)
    with pytest.raises(PromptError, match=f"{MAX_CLICKS}.*MAX_CLICKS.*got {MAX_CLICKS + 1}"):
        Prompts((Click((1, 1, 1)),) * (MAX_CLICKS + 1)).validate(GRID)


@pytest.mark.parametrize("low, high", [((0, 0, 0), (9, 19, 29)), ((1, 1, 5), (3, 4, 5)), ((2, 1, 1), (2, 4, 5))])
def test_boxes_and_single_slice_boxes(low, high):
    Prompts(box=Box(low, high)).validate(GRID)
    assert Box(low, high).centre_ijk == tuple((a + b) / 2 for a, b in zip(low, high))


@pytest.mark.parametrize(
    "low, high, message",
    [
        ((5, 5, 5), (4, 9, 9), "swap"),
        ((5, 5, 5), (5, 5, 9), "one axis only"),
        ((5, 5, 5), (5, 5, 5), "one axis only"),
        ((5, 5, 5), (10, 9, 9), "must lie in the image"),
        ((-1, 5, 5), (9, 9, 9), "must lie in the image"),
    ],
)
def test_boxes_that_are_none(low, high, message):
    with pytest.raises(PromptError, match=message):
        Prompts(box=Box(low, high)).validate(GRID)

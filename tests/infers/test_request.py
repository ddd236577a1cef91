"""Clients' dialects -> Prompts."""

import numpy as np
import pytest
from lib.infers.request import (
    MAX_CLICKS,
    SLICE_CONFIG,
    AnswerOptions,
    RequestError,
    parse_answer,
    parse_prompts,
    parse_slice_prompts,
)
from lib.sam.geometry import Grid
from lib.sam.prompts import Box, Click, PromptError, Prompts

GRID = Grid((100, 80, 60), np.diag([1.0, 1.0, 2.0, 1.0]))


def test_ohif_deepgrow():
    request = {
        "model": "fastsam3d",
        "foreground": [[10, 20, 30], [11, 21, 31]],
        "background": [[50, 60, 40]],
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    assert parse_prompts(request, GRID) == Prompts(
        (Click((10, 20, 30), True), Click((50, 60, 40), False), Click((11, 21, 31), True))
    )  # in turn, as nobody says how the lists interleave
    assert parse_answer(request) == AnswerOptions("foreground", ".nrrd", "uint8", True)


def test_slicer_deepgrow_with_an_unsorted_box():
    request = {
        "label": "left kidney",
        "foreground": [[5, 6, 7]],
        "background": [],
        "roi": [60, 20, 10, 40, 50, 30],
        "reset_state": True,
        "client_id": "user-xyz",
    }
    prompts = parse_prompts(request, GRID)
    assert prompts.clicks == (Click((5, 6, 7), True),)
    assert prompts.box == Box((20, 10, 30), (60, 40, 50))
    assert parse_answer(request).label == "left kidney"


def test_a_box_alone_is_enough_and_no_roi_is_none():
    assert parse_prompts({"foreground": [], "roi": [1, 5, 2, 6, 3, 7]}, GRID).box == Box((1, 2, 3), (5, 6, 7))
    assert parse_prompts({"foreground": [[1, 2, 3]], "roi": []}, GRID).box is None


def test_a_box_is_cut_to_the_image():
    assert parse_prompts({"roi": [-20, 300, 70, 90, -1, 5]}, GRID).box == Box((0, 70, 0), (99, 79, 5))


def test_two_corner_points_make_a_box():
    assert parse_prompts({"box": [[5, 6, 7], [1, 2, 3]]}, GRID).box == Box((1, 2, 3), (5, 6, 7))


def test_deepedit_form_takes_the_current_label_only():
    request = {"label": "spleen", "spleen": [[1, 2, 3]], "liver": [[9, 9, 9]], "background": [[4, 5, 6]]}
    assert parse_prompts(request, GRID).clicks == (Click((1, 2, 3), True), Click((4, 5, 6), False))


def test_point_form():
    request = {"points": [[1, 2, 3], [4, 5, 6]], "point_labels": [0, 1], "label_prompt": [1]}
    assert parse_prompts(request, GRID).clicks == (Click((1, 2, 3), False), Click((4, 5, 6), True))


def test_whole_numbers_may_come_as_floats():
    assert parse_prompts({"foreground": [[1.0, 2.0, 3.0]]}, GRID).clicks == (Click((1, 2, 3), True),)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "at least one foreground click or a box.*found none"),
        ({"foreground": []}, "at least one foreground click"),
        ({"foreground": None, "roi": None}, "at least one foreground click"),
        ({"background": [[1, 2, 3]]}, "only 1 background clicks"),
        ({"foreground": "[[1,2,3]]"}, r"foreground must be a list, got '\[\[1,2,3\]\]'"),
        ({"foreground": {"0": [1, 2, 3]}}, "foreground must be a list"),
        ({"foreground": [1, 2, 3]}, r"foreground\[0\] must be a point of three"),
        ({"foreground": [[1, 2]]}, r"foreground\[0\] must be a point of three"),
        ({"foreground": [[1, 2, 3, 4]]}, r"foreground\[0\] must be a point of three"),
        ({"foreground": [[1, 2, 3], ["1", "2", "3"]]}, r"foreground\[1\] must hold numbers, got \['1', '2', '3'\]"),
        ({"foreground": [[1, 2, None]]}, "must hold numbers"),
        ({"foreground": [[1, True, 3]]}, "must hold numbers"),
        ({"foreground": [[1, 2, 3.5]]}, "whole voxel indices"),
        ({"foreground": [[1, 2, float("nan")]]}, "whole voxel indices"),
        ({"foreground": [[1, 2, float("inf")]]}, "whole voxel indices"),
        ({"foreground": [[1, 2, 10**400]]}, "whole voxel indices"),
        ({"foreground": [[1, 2, 3]], "background": [["a", 2, 3]]}, r"background\[0\] must hold numbers"),
        ({"roi": [1, 2, 3, 4, 5]}, r"roi must be \[i0, i1, j0, j1, k0, k1\]"),
        ({"roi": [1, 2, 3, 4, 5, "6"]}, "must hold numbers"),
        ({"roi": [200, 300, 0, 10, 0, 10]}, "roi must touch the image of 100 x 80 x 60 voxels"),
        ({"box": "all"}, "box must be a list"),
        ({"points": [[1, 2, 3]]}, "point_labels must hold 1 or 0 for each of the 1 points"),
        ({"points": [[1, 2, 3]], "point_labels": [2]}, "point_labels must hold 1 or 0"),
        ({"foreground": [[1, 2, 3]] * (MAX_CLICKS + 1)}, f"at most {MAX_CLICKS} clicks, got {MAX_CLICKS + 1}"),
        ({"foreground": [["x"]] * 100_000}, f"at most {MAX_CLICKS} clicks, got 100000"),
    ],
)
def test_a_bad_request_names_the_rule_and_the_value(request_, message):
    with pytest.raises(RequestError, match=message):
        parse_prompts(request_, GRID)


@pytest.mark.parametrize("point", [[100, 0, 0], [0, 80, 0], [0, 0, 60], [-1, 0, 0], [2**31 - 1, 0, 0]])
def test_a_click_outside_the_image_is_refused(point):
    with pytest.raises(PromptError, match="100 x 80 x 60"):
        parse_prompts({"foreground": [point]}, GRID)


def test_the_answer_has_defaults():
    assert parse_answer({}) == AnswerOptions("foreground", ".nii.gz", "uint8", True)
    assert parse_answer({"result_write_to_file": False}).write is False


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"label": ["liver"]}, "label must be a name"),
        ({"label": "x" * 129}, "label must be a name"),
        ({"label": "a\nb"}, "label must be a name"),
        ({"result_extension": ".exe"}, r"result_extension must be one of \.nrrd, \.nii\.gz, \.nii"),
        ({"result_extension": "/../../x.nrrd"}, "result_extension must be one of"),
        ({"result_extension": [".nrrd"]}, "result_extension must be one of"),
        ({"result_dtype": "object"}, "result_dtype must be one of"),
        ({"result_dtype": {"a": 1}}, "result_dtype must be one of"),
        ({"result_write_to_file": "no"}, "result_write_to_file must be true or false"),
    ],
)
def test_an_answer_that_is_not_offered_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        parse_answer(request_)


# ------------------------------------------------------------------ models for slices

ROI = [40, 10, 9, 35, 12, 4]


def sliced(single=False, **request):
    return parse_slice_prompts(request, GRID, single)


def box_of(prompts):
    return (prompts.box.low_ijk, prompts.box.high_ijk)


def test_extreme_points_are_a_box():
    points = [[10, 20, 5], [40, 22, 5], [25, 9, 5], [26, 35, 5]]
    prompts, options = sliced(foreground=points, background=[[1, 1, 5]])
    assert box_of(prompts) == ((10, 9, 5), (40, 35, 5))
    assert [c.positive for c in prompts.clicks] == [False]
    assert (options.single, options.window, options.extent, options.axis, options.notes) == (False, "auto", 0, None, ())


def test_a_foreground_point_that_is_no_end_is_a_click():
    prompts, _ = sliced(foreground=[[10, 20, 5], [40, 22, 5], [25, 9, 5], [26, 35, 5], [24, 21, 5]])
    assert [(c.ijk, c.positive) for c in prompts.clicks] == [((24, 21, 5), True)]


def test_extreme_points_in_several_slices_bound_a_stack():
    prompts, _ = sliced(foreground=[[10, 20, 5], [40, 22, 7], [25, 9, 6], [26, 35, 9]])
    assert box_of(prompts) == ((10, 9, 5), (40, 35, 9))


@pytest.mark.parametrize("chosen", ["clicks", ["clicks"]])
def test_the_client_chooses_how_points_are_read(chosen):
    prompts, _ = sliced(points=chosen, foreground=[[10, 20, 5], [40, 35, 5]])
    assert prompts.box is None and len(prompts.clicks) == 2


def test_the_choices_that_a_client_sends_back_stand_for_the_first():
    prompts, options = sliced(**SLICE_CONFIG, foreground=[[10, 20, 5], [40, 35, 5]])
    assert prompts.box is not None and not prompts.clicks
    assert options.window == "auto"


def test_points_in_one_line_stay_clicks():
    assert sliced(foreground=[[10, 20, 5]])[0].clicks
    prompts, options = sliced(foreground=[[10, 20, 5], [40, 20, 5]])
    assert prompts.box is None and len(prompts.clicks) == 2
    assert "span no box" in options.notes[0]


def test_with_a_box_the_points_are_clicks():
    prompts, _ = sliced(roi=ROI, foreground=[[12, 20, 5], [30, 30, 5]])
    assert box_of(prompts) == ((10, 9, 4), (40, 35, 12))
    assert len(prompts.clicks) == 2


@pytest.mark.parametrize("index", [4, 0.0, 12])
def test_slicers_slice_cuts_its_box(index):
    roi = [*ROI[:4], 12, 0]
    prompts, options = sliced(single=True, roi=roi, slice=index)
    assert box_of(prompts) == ((10, 9, index), (40, 35, index))
    assert options.axis == 2


def test_without_a_slice_the_box_stays_whole():
    assert box_of(sliced(single=True, roi=ROI, slice=None)[0]) == ((10, 9, 4), (40, 35, 12))
    assert box_of(sliced(roi=ROI, slice=5)[0]) == ((10, 9, 4), (40, 35, 12))  # a stack has no slice


def test_a_box_past_the_image_is_cut_and_that_is_said():
    prompts, options = sliced(roi=[-5, 20, 3, 5000, 2, 8])
    assert box_of(prompts) == ((0, 3, 2), (20, GRID.shape[1] - 1, 8))
    assert "reaches past the image" in options.notes[0]


@pytest.mark.parametrize(
    "request_, what",
    [
        ({"roi": [700, 900, 1, 2, 1, 2]}, "must touch the image"),
        ({"roi": [float("nan"), 9, 1, 2, 1, 2]}, "whole voxel indices"),
        ({"roi": [5, 5, 6, 6, 1, 9]}, "one voxel thin along one axis only"),
        ({"roi": [1, 9] * 1000}, "must be .i0, i1"),
        ({"roi": [[1, 2, 3]] * 5000}, "must be .i0, i1"),
        ({"roi": ROI, "slice": 3}, "must touch the slice"),
        ({"roi": ROI, "slice": 99}, "slice must be the k of a slice"),
        ({"roi": ROI, "slice": "4"}, "slice must be the k of a slice"),
        ({"foreground": [[1, 2, 3]], "points": "boxes"}, "points must be one of extreme, clicks"),
        ({"foreground": [[1, 2, 3]], "window": "liver"}, "window must be one of auto"),
        ({"foreground": [[1, 2, 3]], "extent": -1}, "extent must be"),
        ({"foreground": [[1, 2, 3]], "extent": "many"}, "extent must be"),
        ({"background": [[1, 2, 3]]}, "at least one foreground"),
    ],
)
def test_what_cannot_be_asked_of_a_slice_is_refused(request_, what):
    with pytest.raises((RequestError, PromptError), match=what):
        sliced(single=True, **request_)


def test_numbers_from_a_text_field_are_taken():
    assert sliced(foreground=[[1, 2, 3]], extent="4")[1].extent == 4


def test_points_of_other_slices_are_left_out_of_a_slice():
    ends = [[10, 20, 5], [40, 22, 5], [25, 9, 5], [26, 35, 5]]
    prompts, options = sliced(single=True, foreground=[*ends, [50, 50, 3]], background=[[2, 2, 4]], slice=5)
    assert box_of(prompts) == ((10, 9, 5), (40, 35, 5))
    assert not prompts.clicks
    assert options.notes == ("2 points lie in other slices and were not used",)
    with pytest.raises(RequestError, match="at least one foreground"):
        sliced(single=True, foreground=[[50, 50, 3]], slice=5)

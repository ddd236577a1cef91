"""The models for slices over HTTP, as Slicer and OHIF ask them.

Until weights for slices ship, untrained ones are served: then all but the quality of the masks is checked.
"""

import numpy as np
import pytest
import SimpleITK as sitk
from lib.infers.request import SLICE_CONFIG
from lib.sam.prompts import Click

from tests.app.serving import shipped_slice_weights
from tests.app.volumes import CENTRE_IJK, SHAPE, target
from tests.clients.slicer import Slicer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # MONAI Label's client leaves its sockets open
]

LOW, HIGH = (np.argwhere(target()).min(axis=0).tolist(), np.argwhere(target()).max(axis=0).tolist())
ROI = [edge for pair in zip(HIGH, LOW) for edge in pair]  # as Slicer sends it: unsorted
MIDDLE = CENTRE_IJK[2]
ENDS = [[LOW[0], CENTRE_IJK[1]], [HIGH[0], CENTRE_IJK[1]], [CENTRE_IJK[0], LOW[1]], [CENTRE_IJK[0], HIGH[1]]]
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
needs_weights = pytest.mark.skipif(shipped_slice_weights() is None, reason="no weights for slices ship yet")


@pytest.fixture(scope="module")
def slicer(server, tmp_path_factory):
    """Gives the module's SmartEdit section on one of the models."""

    def on(model: str) -> Slicer:
        made = Slicer(server.url, tmp_path_factory.mktemp("slicer"), model)
        made.connect()
        return made

    return on


def asked(server, tmp_path, model: str, **prompts) -> np.ndarray:
    """(I, J, K) bool: what OHIF gets."""
    answer = server.infer("case1", {**OHIF, **prompts}, model=model, output="image")
    assert answer.status_code == 200, answer.text
    (tmp_path / "answer.nrrd").write_bytes(answer.content)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "answer.nrrd"))).transpose(2, 1, 0)
    assert (mask.shape, mask.dtype) == (SHAPE, np.uint8)
    return mask > 0


def answer_of(server, model: str, **prompts) -> dict:
    """The parameters of an answer without a file."""
    answer = server.infer("case1", {**prompts, "result_write_to_file": False}, model=model)
    assert answer.status_code == 200, answer.text
    return answer.json()


def slices_of(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(mask.any(axis=(0, 1))).tolist())


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (truth & mask).sum() / max(1, truth.sum() + mask.sum()))


def test_both_models_are_offered_with_their_options(server):
    models = server.get("/info/").json()["models"]
    for name, dimension in (("repmedsam", 3), ("repmedsam_2d", 2)):
        assert (models[name]["type"], models[name]["dimension"]) == ("deepgrow", dimension)
        assert models[name]["config"] == SLICE_CONFIG
        assert models[name]["labels"] and models[name]["description"]
        assert not {"foreground", "background", "label", "roi"} & set(models[name]["config"])


def test_slicers_unsorted_box_bounds_the_stack(slicer, studies):
    repmedsam = slicer("repmedsam")
    file, params = repmedsam.click("case1", "liver", [], roi=ROI)
    answer, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(studies / "case1.nii.gz"))
    assert answer.GetSize() == image.GetSize()
    np.testing.assert_allclose(answer.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(answer.GetDirection(), image.GetDirection(), atol=1e-6)
    mask = sitk.GetArrayFromImage(answer).transpose(2, 1, 0) > 0
    assert slices_of(mask) <= set(range(LOW[2], HIGH[2] + 1))
    assert params["voxels"] == mask.sum()
    assert (params["label_names"], params["model"]) == ({"liver": 1}, "repmedsam")
    ordered = [edge for pair in zip(LOW, HIGH) for edge in pair]
    assert np.array_equal(repmedsam.mask("case1", "liver", [], roi=ordered), mask)


@pytest.mark.parametrize("index", [0, MIDDLE])
def test_slicers_click_in_a_slice_is_answered_there(slicer, index):
    clicks = [Click((40, 40, 5)), Click((3, 3, index), False), Click((*CENTRE_IJK[:2], index))]
    mask = slicer("repmedsam_2d").mask("case1", "liver", clicks, roi=[80, 20, 10, 60, 0, 60])
    assert slices_of(mask) <= {index}


@pytest.mark.parametrize("index", [0, MIDDLE])
def test_extreme_points_in_a_slice_are_answered_there(server, tmp_path, index):
    mask = asked(server, tmp_path, "repmedsam_2d", foreground=[[*end, index] for end in ENDS], background=[])
    assert slices_of(mask) <= {index}


def test_extreme_points_in_another_pane_are_answered_in_its_plane(server, tmp_path):
    j = CENTRE_IJK[1]
    ends = [[LOW[0], j, MIDDLE], [HIGH[0], j, MIDDLE], [CENTRE_IJK[0], j, LOW[2]], [CENTRE_IJK[0], j, HIGH[2]]]
    mask = asked(server, tmp_path, "repmedsam_2d", foreground=ends)
    assert set(np.flatnonzero(mask.any(axis=(0, 2))).tolist()) <= {j}


def test_extreme_points_bound_as_the_box_does(server, tmp_path):
    points = [[*end, MIDDLE] for end in ENDS] + [[*CENTRE_IJK[:2], LOW[2]], [*CENTRE_IJK[:2], HIGH[2]]]
    mask = asked(server, tmp_path, "repmedsam", foreground=points)
    assert np.array_equal(mask, asked(server, tmp_path, "repmedsam", roi=ROI))
    as_clicks = asked(server, tmp_path, "repmedsam", foreground=points[:4], points="clicks", extent=1)
    assert slices_of(as_clicks) <= {MIDDLE - 1, MIDDLE, MIDDLE + 1}


def test_a_slice_is_encoded_once_for_boxes_and_clicks_of_both_models(server):
    box = {"roi": [30, 70, 20, 60, 11, 11]}
    first = answer_of(server, "repmedsam_2d", **box)["latencies"]
    more = answer_of(server, "repmedsam_2d", **box, foreground=[[50, 38, 11]], background=[[3, 3, 11]])["latencies"]
    other = answer_of(server, "repmedsam", **box, extent=1, window="auto", slice=0)["latencies"]
    assert "encode" in first and "encode" not in more
    assert other["decode"] > 0


def test_the_same_request_gives_the_same_answer(server, tmp_path):
    request = {"foreground": [[*end, MIDDLE] for end in ENDS], "background": [[3, 3, MIDDLE]]}
    masks = [asked(server, tmp_path, "repmedsam_2d", **request) for _ in range(2)]
    assert np.array_equal(*masks)


@pytest.mark.parametrize(
    "prompts, what",
    [
        ({"roi": [700, 900, 1, 2, 1, 2]}, "must touch the image"),
        ({"roi": [float("nan"), 9, 1, 2, 1, 2]}, "whole voxel indices"),
        ({"roi": [5, 5, 6, 6, 1, 9]}, "one voxel thin along one axis only"),
        ({"roi": [1, 9] * 4000}, "roi must be"),
        ({"roi": ROI, "slice": 999}, "slice must be"),
        ({"foreground": [[1, 2, 3], [4, 5, 6], [9, 9, 9]], "points": "clicks"}, "must lie in one slice"),
        ({"foreground": [[1, 2, 3]], "window": "liver"}, "window must be one of"),
        ({}, "at least one foreground click or a box"),
    ],
)
def test_a_bad_box_is_a_422_that_says_so(server, prompts, what):
    answer = server.infer("case1", prompts, model="repmedsam_2d")
    assert answer.status_code == 422
    assert what in answer.json()["detail"]


def test_what_was_done_with_a_box_is_said(server):
    said = answer_of(server, "repmedsam_2d", roi=[-20, 50, 10, 60, 3, 3])["warnings"]
    assert any("cut to it" in text for text in said)
    said = answer_of(server, "repmedsam_2d", roi=[20, 50, 10, 60, 3, 9])["warnings"]
    assert any("its middle one, 6, was segmented" in text for text in said)


@needs_weights
@pytest.mark.parametrize("index", [MIDDLE, LOW[2] + 4])
def test_a_box_in_a_slice_of_the_phantom(server, tmp_path, index):
    truth = target()[:, :, index]
    low, high = np.argwhere(truth).min(axis=0), np.argwhere(truth).max(axis=0)
    box = [low[0], high[0], low[1], high[1], index, index]
    mask = asked(server, tmp_path, "repmedsam_2d", roi=[int(v) for v in box])
    assert overlap(mask[:, :, index], truth) >= 0.90


@needs_weights
def test_a_box_and_a_thin_box_through_the_stack_of_the_phantom(server, tmp_path):
    assert overlap(asked(server, tmp_path, "repmedsam", roi=ROI), target()) >= 0.85
    ends = [[*end, MIDDLE] for end in ENDS]
    assert overlap(asked(server, tmp_path, "repmedsam", foreground=ends), target()) >= 0.75

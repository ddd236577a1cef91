"""Slicer's calls in its own order, on phantom studies, over HTTP; and how good the masks are that it gets."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from lib.sam.clicks import next_click
from lib.sam.evaluate import dice
from lib.sam.prompts import Click
from scipy import ndimage

from tests.clients import phantom
from tests.clients.slicer import Slicer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # MONAI Label's client leaves its sockets open
]

# The goal for every organ that fits the patch is 0.80 after one click and 0.90 after five, and that a background click leaves at most
# half of what it is put on. fastsam3d-compact-v4 reaches it here but for one of two vertebrae after one click (0.745); what these tests
# hold is what it does reach, less about 0.05, so that nothing gets worse unseen. Better weights raise the floors.
# FASTSAM3D_E2E_MIN_DICE=0 checks everything but the quality of the masks.
QUALITY = os.environ.get("FASTSAM3D_E2E_MIN_DICE") != "0"
FLOORS = {  # Dice after one click, after five
    "spleen": (0.89, 0.90),
    "left kidney": (0.90, 0.91),
    "right kidney": (0.90, 0.91),
    "vertebra": (0.70, 0.85),
    "lesion": (0.89, 0.90),
    "liver": (0.84, None),
    "left lung": (0.79, None),
    "right lung": (0.84, None),
}
BOX_DICE = 0.88
KEPT_OF_FALSE_POSITIVE = 0.55  # 0 to 0.48 of nine
SMALLEST_FALSE_POSITIVE_ML = 0.5  # a part of the mask outside the organ that a user would notice and click on

CASES = ("case1", "case2")
FITTING = ("spleen", "left kidney", "right kidney", "vertebra", "lesion")  # in the model's patch of 192 mm
REACH_MM = 96
FIVE = 5
LARGE = ("liver", "left lung", "right lung")  # beyond that patch, so that it has to become coarser


@dataclass(frozen=True)
class Curve:
    """Simulated clicks on one organ.

    Attributes:
        clicks: at most five; fewer if there was no error left.
        dice: after each of the five.
        masks: (I, J, K) bool after each of `clicks`.
    """

    clicks: tuple[Click, ...]
    dice: tuple[float, ...]
    masks: tuple[np.ndarray, ...]


@pytest.fixture(scope="session")
def cases(phantoms) -> dict[str, phantom.Case]:
    return {name: phantom.study(phantoms, name) for name in CASES}


@pytest.fixture(scope="session")
def slicer(folder_server, tmp_path_factory) -> Slicer:
    slicer = Slicer(folder_server.url, tmp_path_factory.mktemp("slicer"))
    slicer.connect()
    return slicer


@pytest.fixture(scope="session")
def curve(slicer, cases):
    """Function of (case, organ): clicks on it until there are five, each request holding all clicks so far."""
    done: dict[tuple[str, str], Curve] = {}

    def clicked(case: str, organ: str) -> Curve:
        if (case, organ) not in done:
            done[case, organ] = _five_clicks(slicer, cases[case], case, organ)
        return done[case, organ]

    return clicked


def _five_clicks(slicer: Slicer, case: phantom.Case, image: str, organ: str) -> Curve:
    target = case.organ(organ)
    mask, clicks, scores, masks = np.zeros_like(target), [], [], []
    for _ in range(FIVE):
        click = next_click(mask, target, None, "centre", case.spacing_mm)
        if click is not None:
            clicks.append(click)
            mask = slicer.mask(image, organ, clicks, reset=len(clicks) == 1)
            masks.append(mask)
        scores.append(round(dice(mask, target), 3))
    return Curve(tuple(clicks), tuple(scores), tuple(masks))


def first_click(case: phantom.Case, organ: str) -> Click:
    target = case.organ(organ)
    return next_click(np.zeros_like(target), target, None, "centre", case.spacing_mm)


def test_a_model_for_smart_edit_is_offered(slicer):
    assert slicer.training() is False
    assert slicer.info["datastore"]["total"] == len(CASES)
    assert slicer.info["models"]["fastsam3d"]["type"] == "deepgrow"
    assert {*FITTING, *LARGE, "aorta"} <= set(slicer.info["models"]["fastsam3d"]["labels"])


def test_the_mask_lies_on_the_image(slicer, cases):
    for name in CASES:
        sample = slicer.next_sample("first") if name == "case1" else {"id": name}
        file, params = slicer.click(sample["id"], "spleen", [first_click(cases[sample["id"]], "spleen")], reset=True)
        answer, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(cases[sample["id"]].image))
        assert answer.GetSize() == image.GetSize()
        np.testing.assert_allclose(answer.GetSpacing(), image.GetSpacing(), atol=1e-5)
        np.testing.assert_allclose(answer.GetOrigin(), image.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(answer.GetDirection(), image.GetDirection(), atol=1e-6)
        assert params["label_names"] == {"spleen": 1}
        assert params["voxels"] == int(sitk.GetArrayFromImage(answer).sum())


def test_every_strategy_gives_an_image_that_can_be_opened(slicer, cases):
    for strategy in slicer.info["strategies"]:
        sample = slicer.next_sample(strategy)
        assert sitk.ReadImage(sample["path"]).GetSize() == cases[sample["id"]].labels.shape


def test_a_box_drawn_in_slicer_is_answered(slicer, cases):
    voxels = np.argwhere(cases["case1"].organ("left kidney"))
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    unsorted = [int(edge) for pair in zip(high, low) for edge in pair]
    mask = slicer.mask("case1", "left kidney", [], roi=unsorted, reset=True)
    ordered = [int(edge) for pair in zip(low, high) for edge in pair]
    assert np.array_equal(mask, slicer.mask("case1", "left kidney", [], roi=ordered))
    if QUALITY:
        assert dice(mask, cases["case1"].organ("left kidney")) >= BOX_DICE


def test_an_upload_is_answered_like_the_study(slicer, cases):
    clicks = [first_click(cases["case2"], "left kidney")]
    session = slicer.upload(cases["case2"].image)
    uploaded = slicer.mask("MRHead", "left kidney", clicks, session=session)
    assert np.array_equal(uploaded, slicer.mask("case2", "left kidney", clicks))
    slicer.client().remove_session(session)


@pytest.mark.skipif(not QUALITY, reason="FASTSAM3D_E2E_MIN_DICE=0")
@pytest.mark.parametrize("case", CASES)
class TestQuality:
    """Simulated clicks, each in the deepest part of the larger error."""

    @pytest.mark.parametrize("organ", [*FITTING, *LARGE])
    def test_one_click(self, curve, case, organ):
        assert curve(case, organ).dice[0] >= FLOORS[organ][0]

    @pytest.mark.parametrize("organ", FITTING)
    def test_five_clicks(self, curve, case, organ):
        assert curve(case, organ).dice[-1] >= FLOORS[organ][1], curve(case, organ).dice

    @pytest.mark.parametrize("organ", [*FITTING, "liver"])
    def test_a_background_click_removes_what_it_was_put_on(self, slicer, cases, curve, case, organ):
        found = curve(case, organ)
        spacing = cases[case].spacing_mm
        surpluses = [largest_component(mask & ~cases[case].organ(organ)) for mask in found.masks]
        volumes_ml = [surplus.sum() * np.prod(spacing) / 1000 for surplus in surpluses]
        step = next((n for n, volume in enumerate(volumes_ml) if volume >= SMALLEST_FALSE_POSITIVE_ML), None)
        if step is None:
            pytest.skip(f"nothing to remove: no false-positive component of {SMALLEST_FALSE_POSITIVE_ML} ml")
        surplus = surpluses[step]
        background = next_click(surplus, np.zeros_like(surplus), None, "centre", spacing)
        corrected = slicer.mask(case, organ, [*found.clicks[: step + 1], background])
        assert (corrected & surplus).sum() <= KEPT_OF_FALSE_POSITIVE * surplus.sum(), f"after {step + 1} clicks"


@pytest.mark.parametrize("case", CASES)
def test_the_organs_of_these_tests_fit_the_patch(cases, case):
    for organ in FITTING:
        voxels = np.argwhere(cases[case].organ(organ))
        reach = np.abs(voxels - np.array(first_click(cases[case], organ).ijk)) * cases[case].spacing_mm
        assert reach.max() < REACH_MM


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected part of an (I, J, K) bool array; empty if it is empty."""
    parts, count = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask


def test_a_saved_label_is_the_studys_final_label(slicer, cases, folder_server, tmp_path):
    """The last of the tests on this server: from here on case1 counts as completed."""
    case = cases["case1"]
    labels = sitk.GetImageFromArray(case.labels.transpose(2, 1, 0))
    labels.CopyInformation(sitk.ReadImage(str(case.image)))
    sitk.WriteImage(labels, str(tmp_path / "label.nii.gz"))
    assert slicer.save("case1", tmp_path / "label.nii.gz", case.names)["label"] == "case1"

    stored = slicer.client().datastore()["objects"]["case1"]["labels"]["final"]
    assert [item["name"] for item in stored["info"]["label_info"]] == list(case.names)
    assert slicer.connect()["datastore"]["completed"] == 1
    answer = requests.get(f"{folder_server.url}/datastore/label?label=case1&tag=final", timeout=60)
    (tmp_path / "stored.nii.gz").write_bytes(answer.content)
    kept = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "stored.nii.gz")))
    assert np.array_equal(kept.transpose(2, 1, 0), case.labels)
    assert slicer.next_sample("first")["id"] == "case2"

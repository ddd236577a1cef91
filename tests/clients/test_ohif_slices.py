"""Extreme points in OHIF: the ends of an organ in one pane become its mask in that slice, and through the stack."""

from __future__ import annotations

import json

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from lib.sam.evaluate import dice

from tests.app.serving import shipped_slice_weights
from tests.clients import demo, ohif, phantom

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ORGAN = "left kidney"
MIN_DICE = 0.80 if shipped_slice_weights() else 0.0  # untrained weights, as long as none ship, are not judged


@pytest.fixture(scope="module")
def series(phantoms) -> phantom.Case:
    return phantom.dicom_series(phantoms)


@pytest.fixture(scope="module")
def ends(series) -> list[list[int]]:
    """The organ's left, right, front and back end in its largest slice."""
    organ = series.organ(ORGAN)
    k = int(organ.sum(axis=(0, 1)).argmax())
    voxels = np.argwhere(organ[:, :, k])
    return [[*map(int, voxels[pick(voxels[:, axis])]), k] for axis in (0, 1) for pick in (np.argmin, np.argmax)]


@pytest.fixture(scope="module")
def viewer(ohif_demo, series, ends):
    """OHIF on the phantom's study with the ends of the organ marked; the tests of this module follow each other in it."""
    with ohif.browser_page(demo.find_chromium()) as page:
        viewer = ohif.Viewer(page, ohif_demo.url)
        viewer.open(series.study)
        viewer.connect("repmedsam_2d")
        mark(viewer, ends)
        yield viewer


def mark(viewer: ohif.Viewer, ends: list[list[int]]) -> None:
    """Puts the points of the organ's ends."""
    viewer.choose(ORGAN)
    for end in ends:
        viewer.point(tuple(end))


def served(url: str, model: str, series: phantom.Case, params: dict, folder) -> np.ndarray:
    """(I, J, K) bool: the server's answer to the same parameters, without a browser."""
    answer = requests.post(
        f"{url}/infer/{model}",
        params={"image": series.series, "output": "image"},
        files={"params": (None, json.dumps(params))},
        timeout=300,
    )
    answer.raise_for_status()
    (folder / "answer.nrrd").write_bytes(answer.content)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "answer.nrrd"))).transpose(2, 1, 0) > 0


def test_extreme_points_become_the_mask_of_their_slice(viewer, ohif_demo, series, ends, tmp_path):
    answer = viewer.run()
    assert (answer.status, answer.model) == (200, "repmedsam_2d")
    assert answer.params["foreground"] == ends
    mask, k = viewer.mask(ORGAN), ends[0][2]
    assert np.array_equal(mask, served(ohif_demo.url, "repmedsam_2d", series, answer.params, tmp_path))
    assert set(np.flatnonzero(mask.any(axis=(0, 1))).tolist()) <= {k}
    assert dice(mask[:, :, k], series.organ(ORGAN)[:, :, k]) >= MIN_DICE


def test_the_same_points_go_through_the_stack(viewer, ohif_demo, series, ends, tmp_path):
    viewer.clear_points()
    viewer.take("repmedsam")  # OHIF forgets the points with the model
    mark(viewer, ends)
    answer = viewer.run()
    assert (answer.status, answer.model) == (200, "repmedsam")
    assert answer.params["foreground"] == ends
    mask = viewer.mask(ORGAN)
    if MIN_DICE:  # OHIF does not paint an answer that fills the whole image, as one of untrained weights may
        assert np.array_equal(mask, served(ohif_demo.url, "repmedsam", series, answer.params, tmp_path))
        assert dice(mask, series.organ(ORGAN)) >= 0.35  # the goal is 0.85; the first weights reach 0.45


def test_nothing_broke(viewer, ohif_demo):
    assert viewer.errors == []
    assert "Traceback" not in ohif_demo.log.read_text(errors="replace")

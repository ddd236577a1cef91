"""Which of several looks at a first click is taken."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.geometry import Grid
from lib.sam.looks import FIT, described, expected_dice
from lib.sam.prompts import Click, Prompts
from lib.sam.segmenter import View, VolumeSegmenter
from lib.sam.session import SessionStore
from lib.sam.volume_io import Volume
from lib.sam.zoo import get_spec

EDGE = 32
PLACE = np.stack(np.meshgrid(*[np.arange(EDGE) - 15.5] * 3, indexing="ij"))


def ball(radius, steep=2.0):
    """Logits (m, m, m) of a ball of so many cells."""
    return (steep * (radius - np.sqrt((PLACE**2).sum(0)))).astype(np.float32)


def intensities(logits):
    """Bright inside, dark outside, with a little noise."""
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, *logits.shape))
    return np.where(logits > 0, 0.5, -0.5) + noise


def test_a_ball_in_numbers():
    logits = ball(8)
    found = dict(zip(FIT, described(logits, logits > 0, 0.7, 6.0, intensities(logits)), strict=True))
    assert found["iou"] == 0.7 and found["log_cell"] == np.log(6)
    assert np.exp(found["log_volume"]) == pytest.approx(4 / 3 * np.pi * 8**3 * 0.216, rel=0.03)  # ml
    assert found["longest"] == found["shortest"] == 0.5 and found["fill"] == pytest.approx(np.pi / 6, abs=0.02)
    assert found["stable_1"] == pytest.approx((7.5 / 8.5) ** 3, abs=0.03)
    assert found["stable_2"] == pytest.approx((7 / 9) ** 3, abs=0.03)
    assert found["logit_inside"] > 0 > found["logit_around"]
    assert found["linear_contrast"] > 2 and found["linear_inside"] < 0.3


def test_a_compact_mask_with_a_clear_border_is_expected_to_fit_better_than_specks():
    clear = ball(8)
    specks = np.where(np.random.default_rng(1).random(clear.shape) < 0.02, 0.3, -0.3).astype(np.float32)
    expected = [expected_dice(described(x, x > 0, 0.55, 6.0, intensities(clear))) for x in (clear, specks)]
    assert expected[0] > expected[1] + 0.2


def test_numbers_far_from_all_that_was_fitted_count_as_at_its_end():
    usual = np.array([mean for mean, _, _ in FIT.values()])
    far, farther = usual.copy(), usual.copy()
    far[2], farther[2] = 1e3, 1e6
    assert expected_dice(far) == expected_dice(farther) > expected_dice(usual)


def test_a_mask_of_the_whole_patch_and_one_of_a_cell_can_be_described():
    for mask in (np.ones((EDGE,) * 3, bool), np.arange(EDGE**3).reshape((EDGE,) * 3) == 5):
        logits = np.where(mask, 1.0, -1.0).astype(np.float32)
        assert np.isfinite(expected_dice(described(logits, mask, 0.5, 6.0, np.zeros((2, *mask.shape)))))


CLICK = Prompts((Click((100, 100, 100)),))


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return VolumeSegmenter(build_sam(get_spec("fastsam3d_compact")), get_spec("fastsam3d_compact"), "random", "0")


def frame_of(plain, said, expected=None):
    """The patch after looks of which is said, by their spacing, how large a ball they show in cells and how sure they are.

    Returns:
        Its spacing in mm, and those that were looked at.
    """
    segmenter, looked = copy.copy(plain), []

    def view(session, frame, prompts, timings, glance=False):
        spacing = round(frame.spacing_mm, 2)
        looked.append(spacing)
        radius, iou = said.get(spacing, (12, 0.1))
        rounds = [(((64, 64, 64), 1),)]
        return View(frame, (torch.zeros(1), ()), rounds, 0, torch.from_numpy(ball(radius))[None, None], iou)

    segmenter.view = view
    segmenter._expected = lambda view: (expected or {}).get(round(view.frame.spacing_mm, 2), 0.0)
    volume = Volume(np.zeros((200, 200, 200), np.int16), Grid((200, 200, 200), np.eye(4)))
    with SessionStore(2**30, lambda path, max_bytes: volume).open("scan", __file__) as session:
        return round(segmenter._first_frame(session, CLICK, {}).spacing_mm, 2), looked


def test_a_convincing_look_is_taken_at_once(plain):
    assert frame_of(plain, {1.5: (10, 0.7)}) == (1.5, [1.5, 1.5])


def test_an_unsure_look_gives_way_to_a_finer_one_that_is_expected_to_fit_better(plain):
    said = {1.5: (10, 0.5), 1.0: (7, 0.49)}
    assert frame_of(plain, said, {1.5: 0.4, 1.0: 0.41})[0] == 1.0
    assert frame_of(plain, said, {1.5: 0.4, 1.0: 0.39})[0] == 1.5
    leaving = {1.5: (10, 0.5), 1.0: (20, 0.49)}  # its mask lies on the faces of its patch
    assert frame_of(plain, leaving, {1.5: 0.4, 1.0: 0.9})[0] == 1.5


def test_never_to_a_coarser_one(plain):
    said = {1.5: (10, 0.5), 1.0: (7, 0.6)}
    assert frame_of(plain, said, {1.5: 0.9, 1.0: 0.1})[0] == 1.0


def test_a_large_mask_that_does_not_convince_is_looked_at_from_farther_away(plain):
    said = {1.5: (12, 0.5), 1.0: (7, 0.4), 2.25: (12, 0.7)}
    assert frame_of(plain, said)[0] == 2.25
    for iou in (0.62, 0.45):  # not convincing
        assert frame_of(plain, said | {2.25: (12, iou)})[0] == 1.5
    assert frame_of(plain, said | {1.5: (12, 0.6), 2.25: (12, 0.68)})[0] == 1.5  # hardly more so
    spacing, looked = frame_of(plain, {1.5: (7, 0.5), 1.09: (9.6, 0.5), 1.0: (10.5, 0.4)})  # 84 mm: no organ's part
    assert spacing == 1.09 and 2.25 not in looked

"""The segmenter: pure in its prompts, right about where things are. Quality is judged elsewhere."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.intensity import padding_floor
from lib.sam.placement import follow, place_patch
from lib.sam.prompts import Box, Click, PromptError, Prompts
from lib.sam.segmenter import SINGLE_CLICKS, VolumeSegmenter
from lib.sam.session import SessionStore
from lib.sam.zoo import get_spec


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return VolumeSegmenter(build_sam(get_spec("fastsam3d_compact")), get_spec("fastsam3d_compact"), "random", "0")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image((100 * rng.random((60, 50, 40))).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1])), path)
    return path


@contextmanager
def fresh(scan):
    with SessionStore(2**30).open("scan", scan) as session:
        yield session


def _clicks(*points):
    return Prompts(tuple(Click(p[:3], p[3]) for p in points))


A, B, C = (30, 25, 20, True), (10, 12, 30, False), (40, 30, 22, True)


def test_the_answer_depends_on_the_prompts_alone(segmenter, scan):
    with fresh(scan) as session:
        segmenter.segment(session, _clicks(A))
        segmenter.segment(session, _clicks(C))
        segmenter.segment(session, _clicks(A, B))
        warm = segmenter.segment(session, _clicks(A, B, C))
    with fresh(scan) as session:
        cold = segmenter.segment(session, _clicks(A, B, C))
    assert np.array_equal(warm.full_mask(), cold.full_mask()) and warm.iou == cold.iou


def test_the_patch_follows_each_click_once(segmenter, tmp_path, monkeypatch):
    """Clicks that reach beyond the first patch, asked one by one, again, and all at once."""
    path = tmp_path / "large.nii.gz"
    values = (100 * np.random.default_rng(1).random((130, 120, 60))).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3.0, 5.0, 1])), path)
    points = [(30, 30, 15, True), (95, 90, 40, True), (60, 60, 30, False), (20, 100, 50, True)]
    followed = []

    def noted(frame, mask, prompts, spec):
        followed.append(len(prompts.clicks))
        return follow(frame, mask, prompts, spec)

    monkeypatch.setattr("lib.sam.segmenter.follow", noted)
    with fresh(path) as session:
        frames = [segmenter.look(session, _clicks(*points[: n + 1])).frame for n in range(4)]
        again = segmenter.look(session, _clicks(*points)).frame
    assert followed == [2, 4]  # a background click moves nothing
    with fresh(path) as session:
        cold = segmenter.look(session, _clicks(*points)).frame
    assert followed == [2, 4, 2, 4] and frames[3] == again == cold
    assert frames[1] != frames[0] and frames[2] == frames[1]


def test_a_refinement_runs_no_encoder(segmenter, scan):
    with fresh(scan) as session:
        first = segmenter.segment(session, _clicks(A))
        second = segmenter.segment(session, _clicks(A, B))
    assert "encode" in first.timings_ms and "encode" not in second.timings_ms and "crop" not in second.timings_ms


def test_mask_lies_on_the_scan_s_grid(segmenter, scan):
    with fresh(scan) as session:
        answer = segmenter.segment(session, _clicks(A))
    mask = answer.full_mask()
    assert mask.shape == (60, 50, 40) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}


def test_many_clicks_are_replayed_in_blocks(segmenter, scan):
    rng = np.random.default_rng(1)
    points = [(*map(int, rng.integers(0, 40, 3)), bool(i % 2)) for i in range(3 * SINGLE_CLICKS + 5)]
    with fresh(scan) as session:
        frame = place_patch(session.volume.grid, _clicks(*points), segmenter.spec)
        rounds, outside = segmenter._rounds(frame, _clicks(*points))
        assert len(rounds) == SINGLE_CLICKS + 3 and sum(map(len, rounds)) + outside == len(points)
        segmenter.segment(session, _clicks(*points))


def test_patch_moves_only_when_it_must():
    from lib.sam.geometry import Grid

    grid, spec = Grid((400, 400, 300), np.diag([1.0, 1.0, 1.0, 1])), get_spec("fastsam3d_compact")
    one = place_patch(grid, _clicks((100, 100, 100, True)), spec)
    near = place_patch(grid, _clicks((100, 100, 100, True), (150, 60, 100, True)), spec)
    far = place_patch(grid, _clicks((100, 100, 100, True), (300, 100, 100, True)), spec)
    background = place_patch(grid, _clicks((100, 100, 100, True), (390, 100, 100, False)), spec)
    assert near == one == background
    assert np.allclose(far.to_patch(np.array([[200, 100, 100]])), 64, atol=0.51)  # to the nearest node
    inside = far.to_patch(np.array([[100, 100, 100], [300, 100, 100]]))
    assert (inside >= 0).all() and (inside <= 127).all() and far.spacing_mm > spec.spacing_mm
    box = place_patch(grid, Prompts((), Box((50, 50, 50), (330, 330, 250))), spec)
    corners = box.to_patch(np.array([[50, 50, 50], [330, 330, 250]]))
    assert (corners >= 0).all() and (corners <= 127).all()


def test_a_background_click_far_away_is_reported(segmenter, tmp_path):
    path = tmp_path / "long.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (40, 40, 300)).astype(np.int16), np.eye(4)), path)
    with SessionStore(2**30).open("long", path) as session:
        answer = segmenter.segment(session, _clicks((20, 20, 20, True), (20, 20, 290, False)))
    assert any("outside" in w for w in answer.warnings)


def test_published_models_refuse_a_box(scan):
    spec = get_spec("fastsam3d_published_h6")
    segmenter = VolumeSegmenter(build_sam(spec), spec, "random", "0")
    with fresh(scan) as session, pytest.raises(PromptError, match="box"):
        segmenter.segment(session, Prompts((), Box((5, 5, 5), (20, 20, 20))))


@pytest.mark.parametrize("name", ["fastsam3d_compact", "fastsam3d_published_h6"])
def test_clicks_too_far_apart_for_any_patch_are_answered(name, tmp_path):
    torch.manual_seed(0)
    spec = get_spec(name)
    segmenter = VolumeSegmenter(build_sam(spec), spec, "random", "0")
    path = tmp_path / "long.nii.gz"
    image = np.random.default_rng(0).integers(0, 99, (32, 32, 700)).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2.0, 1.0, 1])), path)
    with SessionStore(2**30).open("long", path) as session:
        answer = segmenter.segment(session, _clicks((16, 16, 10, True), (16, 16, 690, True)))
        wide = place_patch(session.volume.grid, _clicks((16, 16, 100, True), (16, 16, 284, True)), spec)
    assert any("1 clicks" in w for w in answer.warnings)
    nodes = wide.to_patch(np.array([[16, 16, 100], [16, 16, 284]]))
    assert ((nodes >= 0) & (nodes <= 127)).all()  # 184 mm fit into one patch


def test_padding_far_below_the_data_does_not_change_the_answer(segmenter, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(40, 20, (48, 48, 40))
    image[12:30, 12:30, 10:28] += 120
    image[:, :6] = -1000
    answers = []
    for padding in (-1000, -3024, -32768):
        image[:, :6] = padding
        path = tmp_path / f"{-padding}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1])), path)
        with SessionStore(2**30).open("p", path) as session:
            floor = padding_floor(session.volume.array)
            answers.append(segmenter.segment(session, _clicks((20, 20, 18, True))))
        assert (floor is None) == (padding == -1000)
    assert np.array_equal(answers[1].full_mask(), answers[2].full_mask())


def test_a_click_half_a_node_beyond_the_last_moves_the_patch():
    from lib.sam.geometry import Grid

    grid, spec = Grid((300, 300, 300), np.diag([0.75, 0.75, 0.75, 1])), get_spec("fastsam3d_compact")
    far = (100 + 127, 100, 100)  # 63.5 nodes from the first click, whose node is 64 of 0 to 127
    frame = place_patch(grid, _clicks((100, 100, 100, True), (*far, True)), spec)
    assert 0 <= np.floor(frame.to_patch(np.array([far])) + 0.5).min() and frame.to_patch(np.array([far])).max() < 127.5


def test_far_clicks_in_lung_are_kept_where_the_model_thinks_better_of_the_answer(segmenter, tmp_path):
    """And nothing but a single click on the object, in lung, is answered otherwise than without them."""
    values = np.full((60, 50, 40), 40, np.int16)
    values[:4] = -1000
    values[10:50, 10:40, 8:32] = -840 + 40 * np.random.default_rng(0).standard_normal((40, 30, 24))
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1])), tmp_path / "chest.nii.gz")
    plain = copy.copy(segmenter)
    plain.spec = replace(segmenter.spec, far_clicks=0)
    asked = [
        _clicks(A),
        _clicks((30, 25, 2, True)),
        _clicks((30, 25, 20, False)),
        Prompts((), Box((12, 12, 9), (40, 30, 30))),
    ]
    answers = []
    for model in (segmenter, plain):
        with SessionStore(2**30).open("chest", tmp_path / "chest.nii.gz") as session:
            answers.append([model.segment(session, prompts) for prompts in asked])
    (in_lung, *others), (before, *same) = answers
    assert in_lung.iou >= before.iou
    for one, other in zip(others, same):
        assert np.array_equal(one.full_mask(), other.full_mask()) and one.iou == other.iou

"""Pretraining: data, simulated prompts, loss, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lib.sam.anatomy.fields import Draw
from lib.sam.build import build_sam
from lib.sam.losses import hard_iou, mask_loss, surface_loss
from lib.sam.networks.layers import trilinear
from lib.sam.training.data import TrainingPatches, occupancy, pick_targets
from lib.sam.training.pretrain import PretrainConfig, Pretraining, rounds_loss, unroll, validation_cases
from lib.sam.training.prompting import boxes, error_clicks
from lib.sam.zoo import get_spec
from torch.nn import functional as F

RECIPES = Path(__file__).resolve().parents[2] / "apps" / "fastsam3d" / "lib" / "recipes"


def _ball(m=16, centre=(8, 8, 8), radius=4.0):
    axis = torch.arange(m).float()
    d = sum((g - c) ** 2 for g, c in zip(torch.meshgrid(axis, axis, axis, indexing="ij"), centre))
    return (d <= radius**2)[None, None]


def test_first_click_lies_in_the_object_and_next_in_the_larger_error():
    target = torch.cat([_ball(), _ball(centre=(4, 4, 4), radius=2)])
    for _ in range(10):
        points, labels = error_clicks(None, target, 0.5, 4)
        cells = (points[:, 0] // 4).long()
        assert labels.flatten().tolist() == [1, 1]
        assert all(bool(target[(i, 0, *cells[i])]) for i in range(2))
    logits = torch.where(_ball() | _ball(centre=(13, 13, 13), radius=2), 5.0, -5.0)
    points, labels = error_clicks(logits, _ball(), 0.0, 4)
    assert labels.item() == 0 and bool(_ball(centre=(13, 13, 13), radius=2)[(0, 0, *(points[0, 0] // 4).long())])
    _, labels = error_clicks(torch.where(_ball(), 5.0, -5.0), _ball(), 0.0, 4)
    assert labels.item() == -1  # no error: a padding point


def test_boxes_are_tight_without_noise():
    target = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    target[0, 0, 2:5, 3:9, 0:16] = True
    corners, _ = boxes(target, 0.0, 4)
    assert corners[0].tolist() == [[8, 12, 0], [19, 35, 63]]


def test_occupancy_and_targets_take_one_connected_part():
    label = torch.zeros(32, 32, 32, dtype=torch.long)
    label[4:16, 4:16, 4:16] = 1
    label[26:30, 26:30, 26:30] = 1  # a smaller, separate part of the same label
    cells = occupancy(label == 1, 4)
    assert cells.shape == (8, 8, 8) and float(cells.sum()) * 64 == int((label == 1).sum())
    target = pick_targets(Draw(0), label, 2)
    assert target.shape == (2, 16, 16, 16) and int(target[0].sum()) == 12**3 * 8
    assert len(pick_targets(Draw(0), torch.zeros_like(label), 2)) == 0


def test_loss_prefers_the_right_mask():
    target = _ball().float()
    right, wrong = torch.where(_ball(), 8.0, -8.0), torch.where(_ball(), -8.0, 8.0)
    one = torch.ones(1, 1)
    assert mask_loss(right, target, one)["total"] < 0.05 < 1 < mask_loss(wrong, target, one)["total"]
    assert hard_iou(right, target).item() == 1.0 and hard_iou(wrong, target).item() == 0.0


def test_small_cubes_take_their_place_in_the_position_grid():
    torch.manual_seed(0)
    model = build_sam(get_spec("fastsam3d_compact"))
    halves = torch.rand(2, 3, 16, 16, 16)
    outs, sharp = unroll(model, torch.randn(2, 2, 32, 32, 32), occupancy(halves, 2), 2, True, True, 0.3)
    assert [tuple(o[0].shape) for o in outs] == [(6, 1, 8, 8, 8)] * 2 and sharp.shape == (6, 1, 16, 16, 16)
    rounds_loss(outs, sharp, halves)["total"].backward()
    assert all(p.grad is not None for p in model.mask_decoder.sharpen.parameters())


def test_fresh_sharpening_is_interpolation_and_learns_where_the_edge_is():
    torch.manual_seed(0)
    model = build_sam(get_spec("fastsam3d_compact"))
    size = 32
    ball = (torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")).sub(15).square().sum(0) < 81).float()
    image = torch.stack([ball, ball])[None]
    halves = occupancy(ball, 2)[None, None]
    blurred = 3 * (F.avg_pool3d(occupancy(ball, 4)[None, None], 3, stride=1, padding=1) - 0.35)
    with torch.no_grad():
        embedding = model.encode(image, torch.zeros(1, 3, dtype=torch.long))
        torch.testing.assert_close(model.sharpen(embedding, blurred), trilinear(blurred, 16))
    head = model.mask_decoder.sharpen
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = surface_loss(model.sharpen(embedding, blurred), halves)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_patches_are_deterministic_and_of_the_stated_form():
    def first(seed):
        data = TrainingPatches(seed, 64, 1.5, "percentile_rank", 3, [])
        data.edge, data.cubes = 32, 2
        return next(iter(data))

    a, b = first(1), first(1)
    assert torch.equal(a["image"], b["image"]) and a["image"].shape == (2, 2, 32, 32, 32)
    assert a["target"].shape == (2, 3, 16, 16, 16) and int(a["target"].max()) <= 64


def test_small_patches_are_cut_from_cases_of_full_size():
    """Scenes are made for cubes of 128 voxels; in one of 64 their organs would not fit."""
    spec = get_spec("fastsam3d_small_teacher")
    data = TrainingPatches.of(spec, 1, 2)
    data.cubes = 3
    sample = next(iter(data))
    assert data.size == 128 and sample["image"].shape == (3, 2, 64, 64, 64)
    assert sample["target"].shape == (3, 2, 32, 32, 32)
    image, target = validation_cases(spec, 1)[0]
    assert image.shape == (1, 2, 64, 64, 64) and target.shape[2:] == (32, 32, 32)
    assert spec.cell == 2


def test_cubes_larger_than_the_patch_are_refused(tmp_path):
    config = PretrainConfig(spec="fastsam3d_small_teacher", stages=((1.0, 128, 1),))
    with pytest.raises(ValueError, match="at most the 64 voxels"):
        Pretraining(config, tmp_path, None, tmp_path / "none.json", "cpu")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("fastsam3d_*.json")), ids=lambda path: path.stem)
def test_recipes_fit_their_networks(path):
    config = PretrainConfig.read(path)
    spec = get_spec(config.spec)
    assert all(edge <= spec.patch_size and edge % spec.encoder.patch == 0 for _, edge, _ in config.stages)
    assert config.stages[-1][0] == 1.0 and config.stages[-1][1] == spec.patch_size


def test_a_recipe_with_a_typing_error_is_refused(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"learning_rat": 1}))
    with pytest.raises(ValueError, match="learning_rat"):
        PretrainConfig.read(tmp_path / "r.json")


@pytest.mark.slow
def test_a_run_resumes_where_it_stopped(tmp_path, monkeypatch):
    config = PretrainConfig(minutes=0.05, objects=1, rounds=((1.0, 1, 1),), stages=((1.0, 32, 1),), warmup_steps=1)
    monkeypatch.setattr(Pretraining, "validate", lambda self, **kw: {})  # its own test is the recipe's run
    run = Pretraining(config, tmp_path, None, tmp_path / "none.json", "cpu")
    run.run()
    steps = run.step
    assert steps >= 1 and run.checkpoint.exists()
    again = Pretraining(replace(config, minutes=0.1), tmp_path, None, tmp_path / "none.json", "cpu")
    again.run()
    assert again.step > steps

"""Fine-tuning: what it trains on, that it learns, that it goes on where it was stopped, and several processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lib.sam import weights
from lib.sam.anatomy.fields import Draw
from lib.sam.anatomy.generator import generate
from lib.sam.build import build_sam
from lib.sam.intensity import normalise
from lib.sam.segmenters import load_segmenter
from lib.sam.training.data import occupancy
from lib.sam.training.finetune import Finetuning
from lib.sam.training.finetune_config import FinetuneConfig
from lib.sam.training.patches import Patch, PatchSet, _distinct, cut, keep_masks, varied
from lib.sam.training.tuning import Stopped
from lib.sam.zoo import get_spec

REPO = Path(__file__).resolve().parents[2]
COMPACT = get_spec("fastsam3d_compact")
TINY = replace(
    COMPACT,
    encoder=replace(COMPACT.encoder, image_size=32, width=48, depth=2, heads=4, out=96, stem_widths=(4, 8, 8)),
    decoder=replace(COMPACT.decoder, width=96, mlp_width=32, heads=4),
)
QUICK = FinetuneConfig(
    minutes=0, epochs=2, steps_per_epoch=3, warmup_steps=1, learning_rate=1e-3, cube_share=0, rehearsal=0.3, patience=50,
    half=False,
)  # fmt: skip


def write_patches(folder, count=4):
    """Patches with a bright ball as the structure, and a darker slab that the served model is said to know."""
    folder.mkdir()
    axis = np.arange(32)
    for n in range(count):
        rng = np.random.default_rng(n)
        centre = rng.integers(12, 20, 3)
        ball = sum((g - c) ** 2 for g, c in zip(np.meshgrid(axis, axis, axis, indexing="ij"), centre)) <= 49
        image = np.where(ball, 0.8, -0.5) + rng.normal(0, 0.05, (32, 32, 32))
        kept = np.zeros((1, 8, 8, 8), np.uint8)
        kept[0, :, :, :2] = 60
        kind = "validation" if n == count - 1 else "train"
        patch = Patch(np.stack([image, image]).astype(np.float16), ball.astype(np.uint8), kept)
        patch.write(folder / f"{kind}-0000-{n:03d}.npz")
    train, checks = sorted(folder.glob("train-*")), sorted(folder.glob("validation-*"))
    return PatchSet(tuple(train), tuple(checks), tuple(train[:1]))


def fresh():
    torch.manual_seed(0)
    return build_sam(TINY)


@pytest.fixture
def patches(tmp_path):
    return write_patches(tmp_path / "patches")


def test_it_learns_and_says_so(tmp_path, patches):
    rows = []
    config = replace(QUICK, epochs=5, steps_per_epoch=10, ema=0.8)
    Finetuning(config, tmp_path / "run", fresh(), patches, on_epoch=rows.append).run()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert max(row["dice"] for row in rows[1:]) > rows[0]["dice"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, patches):
    whole = Finetuning(QUICK, tmp_path / "whole", fresh(), patches).run()
    calls = iter(range(100))
    stopped = Finetuning(QUICK, tmp_path / "parts", fresh(), patches, should_stop=lambda: next(calls) >= 4)
    with pytest.raises(Stopped):
        stopped.run()
    assert len(stopped.rows) == 1
    parts = Finetuning(QUICK, tmp_path / "parts", fresh(), patches)
    again = parts.run()
    assert len(parts.rows) == 2
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], rtol=0, atol=1e-6)


def test_a_frozen_encoder_stays_as_it_was(tmp_path, patches):
    model = fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    best = Finetuning(replace(QUICK, freeze_encoder=True), tmp_path / "run", model, patches).run()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], best[k])}
    assert changed == {"prompt_encoder", "mask_decoder"} or changed == {"mask_decoder"}


def test_training_ends_when_nothing_gets_better(tmp_path, patches):
    still = Finetuning(replace(QUICK, learning_rate=0.0, epochs=30, patience=3), tmp_path / "run", fresh(), patches)
    still.run()
    assert len(still.rows) == 4


def test_the_time_budget_ends_it_and_a_diverging_loss_is_said(tmp_path, patches):
    short = Finetuning(replace(QUICK, epochs=1000), tmp_path / "short", fresh(), patches, minutes=0.02)
    short.run()
    assert 1 <= short.step < 3000
    assert short.rows
    model = fresh()
    with torch.no_grad():
        model.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="learning_rate"):
        Finetuning(QUICK, tmp_path / "nan", model, patches).run()


@pytest.mark.parametrize(
    "text", [{"epochs": 0}, {"minutes": "soon"}, {"rehearsal": 1.5}, {"epochs": 1.5}, {"rounds": "many"}]
)
def test_settings_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match=next(iter(text))):
        FinetuneConfig.of(text)


def test_settings_come_as_clients_send_them():
    config = FinetuneConfig.of(
        {"epochs": "3", "freeze_encoder": "true", "minutes": [4.0, 5.0], "structures": "aorta, liver", "model": "x"}
    )
    assert (config.epochs, config.freeze_encoder, config.minutes) == (3, True, 4.0)
    assert config.structures == ("aorta", "liver")


def test_targets_are_structures_first_and_then_what_is_kept(patches):
    patch = Patch.read(patches.train[0])
    image, target = varied(Draw(1), patch, 2, 1)
    assert image.shape == (2, 32, 32, 32)
    assert target.shape == (2, 16, 16, 16)  # there is one structure, and it counts once
    assert int(target[0].sum()) == 8 * int(patch.label.sum())
    assert int(target[1].max()) == 60 and 0.8 < int(target[1].sum()) / (60 * 128 * 8) < 1.2
    assert varied(Draw(1), Patch(patch.image, patch.label * 0, patch.kept), 2, 1) is None


def test_what_is_kept_is_what_the_served_model_knows(app_dir):
    served = load_segmenter(weights.resolve("fastsam3d", app_dir / "model"), "cpu")
    case = generate(5, 128)
    image = normalise(case.image.numpy(), case.inside.numpy(), served.spec.intensity)
    everything = case.label.numpy()
    labelled = everything == np.bincount(everything.ravel())[1:].argmax() + 1
    kept = keep_masks(served, image, labelled.astype(np.uint8), case.inside.numpy(), 4, np.random.default_rng(0))
    assert kept.dtype == np.uint8 and 2 <= len(kept) <= 4 and kept.shape[1:] == (32, 32, 32) and kept.max() <= 64
    masks = kept > 32
    assert not masks[:, occupancy(torch.from_numpy(labelled), 4).numpy() > 0.5].any()
    others = [v for v in np.unique(everything) if v and not labelled[everything == v].any()]
    cells = [occupancy(torch.from_numpy(everything == v), 4).numpy() > 0.5 for v in others]
    found = [max(2 * (mask & c).sum() / (mask.sum() + c.sum()) for c in cells) for mask in masks]
    assert max(found) > 0.9, found  # a structure that nobody had labelled


def test_of_old_answers_the_surest_are_kept_small_and_large_ones_by_turns():
    boxes = [(0, 20), (0, 19), (22, 25), (22, 26), (28, 31), (31, 32), (0, 30), (12, 20)]
    masks = np.zeros((len(boxes), 32, 32, 32), bool)
    for mask, (low, high) in zip(masks, boxes):
        mask[low:high, low:high, low:high] = True
    taken = np.zeros((32, 32, 32), bool)
    taken[28:31, 28:31, 28:30] = True  # most of the fifth
    sure = np.array([0.6, 0.8, 0.5, 0.7, 0.9, 0.9, 0.99, 0.55])
    # small: the fourth before the third, which is nearly the same; large: the second before the first; crumbs, what is labelled,
    # what is nearly everything, and what lies in another one are left out
    assert _distinct(masks, taken, sure) == [3, 1]


def test_cubes_lie_on_the_cells_of_the_mask_grid(patches):
    patch = Patch.read(patches.train[0])
    for seed in range(5):
        cube = cut(Draw(seed), patch, 16)
        assert cube.image.shape == (2, 16, 16, 16)
        assert cube.kept.shape == (1, 4, 4, 4)
        assert cube.label.any()
        places = [
            b for b in np.ndindex(5, 5, 5)
            if np.array_equal(patch.image[0, b[0] * 4 :, b[1] * 4 :, b[2] * 4 :][:16, :16, :16], cube.image[0])
        ]  # fmt: skip
        assert len(places) == 1


_TWO = """
import json, sys
import torch
import torch.distributed as dist
sys.path[:0] = [{app!r}, {repo!r}]
from pathlib import Path
from dataclasses import replace
from tests.sam.test_finetune import QUICK, TINY, fresh, PatchSet
from lib.sam.training.finetune import Finetuning
torch.set_num_threads(1)
dist.init_process_group("gloo")
folder = Path({folder!r})
found = [tuple(sorted(folder.glob(f"patches/{{kind}}-*"))) for kind in ("train", "validation")]
run = Finetuning(replace(QUICK, batch=2), folder / "two", fresh(), PatchSet(*found, found[0][:1]))
run.run()
if dist.get_rank() == 0:
    (folder / "two.json").write_text(json.dumps(run.rows))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_with_the_doubled_batch_does(tmp_path, patches):
    one = Finetuning(replace(QUICK, batch=2), tmp_path / "one", fresh(), patches)
    one.run()
    script = tmp_path / "two.py"
    script.write_text(_TWO.format(app=str(REPO / "apps" / "fastsam3d"), repo=str(REPO), folder=str(tmp_path)))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two.json").read_text())
    assert len(two) == len(one.rows) == QUICK.epochs
    for a, b in zip(one.rows, two):
        assert abs(a["loss"] - b["loss"]) < 1e-3
        assert abs(a["dice"] - b["dice"]) < 1e-3

"""Training of the 2D models: images, prompts, stages, resuming, several processes."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam.anatomy.fields import Draw
from lib.sam.anatomy.pictures import SCENES, picture
from lib.sam.build import build_sam2d
from lib.sam.losses import embedding_divergence
from lib.sam.training.ablation2d import ablation, table
from lib.sam.training.data import LabelledScan
from lib.sam.training.data2d import ImageBatches, LabelledSlice, Mix, mosaic, pick_masks, random_plane, sample, vary
from lib.sam.training.folders2d import OwnSlices
from lib.sam.training.pretrain2d import Training2d, shrink
from lib.sam.training.prompting2d import Prompting, jittered_boxes, prompt_rounds
from lib.sam.training.recipe2d import PUBLISHED, Recipe2d, Stage
from lib.sam.zoo import get_spec2d

RECIPES = Path(__file__).resolve().parents[2] / "apps" / "fastsam3d" / "lib" / "recipes"
PICTURES = Mix(cases=0, scans=0, pictures=3, visits=2)


def _scan(size=48):
    """Two boxes of other brightness in a scan of voxels of 1 x 1 x 2 mm."""
    label = torch.zeros(size, size, size // 2)
    label[8:24, 10:30, 4:18] = 1
    label[30:44, 20:40, 6:20] = 2
    return LabelledScan("boxes", 100.0 * label + 20.0, label, torch.tensor([1.0, 1.0, 2.0]))


def _recipe(**changes):
    stage = Stage(
        epochs=1, epoch_images=4, images=1, objects=2, sizes=((2.0, 64),), half=False, learning_rate=1e-3, mix=PICTURES
    )
    stages = {name: replace(stage, **changes) for name in PUBLISHED}
    return Recipe2d("repmedsam_compact", "litemedsam_compact", 3, stages)


@pytest.mark.parametrize("scene", SCENES)
def test_pictures_follow_from_their_seed_and_hold_objects(scene):
    shown, again = picture(5, scene=scene), picture(5, scene=scene)
    assert torch.equal(shown.image, again.image) and torch.equal(shown.label, again.label)
    assert shown.image.shape == (256, 256, 3) and shown.image.dtype == torch.uint8
    assert int(shown.label.max()) >= 1 and not torch.equal(shown.image, picture(6, scene=scene).image)


def test_planes_keep_image_and_label_together():
    for seed in range(12):
        for make in (random_plane, mosaic):
            item = make(Draw(seed), _scan(), 64)
            if item is None or len(torch.unique(item.label)) < 2:
                continue
            assert item.image.shape == item.label.shape and max(item.label.shape) == 64
            inside, around = item.image[item.label > 0].float(), item.image[item.label == 0].float()
            assert inside.mean() > around.mean() + 30  # the objects are the bright parts
            break
        else:
            continue
        break
    else:
        pytest.fail("no plane of twelve met an object")


def test_variation_moves_image_and_label_alike():
    label = torch.zeros(40, 60, dtype=torch.long)
    label[5:15, 30:55] = 1
    item = LabelledSlice((label * 200).to(torch.uint8), label)
    for seed in range(8):
        varied = vary(Draw(seed), item)
        ends = [varied.image[varied.label == v].float().mean() for v in (0, 1)]
        assert abs(float(ends[1] - ends[0])) > 100 and int(varied.label.sum()) == 250


def test_targets_are_single_objects_of_the_models_size():
    label = torch.zeros(100, 200, dtype=torch.long)
    label[10:40, 20:60] = 3
    label[50:55, 100:104] = 4  # below the smallest size
    found = sample(Draw(0), LabelledSlice(torch.zeros(100, 200, dtype=torch.uint8), label), 256, 2)
    assert found["image"].shape == (3, 256, 256) and found["target"].shape == (2, 256, 256)
    assert found["target"].dtype == torch.bool and not found["target"][:, 128:].any()  # padding below
    assert abs(int(found["target"][0].sum()) - 1200 * 1.28**2) < 120
    assert len(pick_masks(Draw(0), torch.zeros(9, 9, dtype=torch.long), 2)) == 0


def test_batches_follow_from_seed_and_index():
    def batches(start, count, seed=1):
        data = ImageBatches(seed, 256, 2, 2, PICTURES, [], start=start)
        return [batch for _, batch in zip(range(count), iter(data))]

    whole, later = batches(0, 5), batches(4, 1)  # a block has 3 * 2 // 2 batches: the fifth is in the second block
    assert whole[0]["image"].shape == (2, 3, 256, 256) and whole[0]["target"].shape == (2, 2, 256, 256)
    assert 0.0 <= float(whole[0]["image"].min()) and float(whole[0]["image"].max()) <= 1.0
    assert all(torch.equal(whole[4][key], later[0][key]) for key in ("image", "target"))
    assert not torch.equal(whole[0]["image"], batches(0, 1, seed=2)[0]["image"])


def test_generated_anatomy_and_scans_are_in_the_mix():
    block = ImageBatches(1, 256, 2, 2, Mix(1, 3, 2, 1, 0, 1), [_scan()]).block(0)
    assert len(block) >= 5 and sum(item.image.ndim == 3 for item in block) == 1


def test_slices_without_objects_end_the_stream_with_a_reason():
    class Empty:
        def slice(self, draw):
            return LabelledSlice(torch.zeros(20, 20, dtype=torch.uint8), torch.zeros(20, 20, dtype=torch.long))

    with pytest.raises(ValueError, match="none of 4 slices holds an object"):
        next(iter(ImageBatches(1, 256, 2, 2, Mix(0, 0, 0, 0, 4, 1), [], Empty())))
    with pytest.raises(ValueError, match="--data"):
        ImageBatches(1, 256, 2, 2, Mix(own=4), [])


def test_boxes_are_tight_or_move_by_the_jitter():
    target = torch.zeros(64, 1, 256, 256, dtype=torch.bool)
    target[:, :, 100:150, 60:160] = True  # rows, columns
    assert jittered_boxes(target, Prompting(tight_share=1.0)).unique(dim=0).tolist() == [[60, 100, 159, 149]]
    moved = jittered_boxes(target, Prompting()) - torch.tensor([60, 100, 159, 149])
    assert moved[:, :2].min() == -5 and moved[:, :2].max() == 0 and moved[:, 2:].max() == 5 and moved[:, 2:].min() == 0
    moved = jittered_boxes(target, Prompting(box_jitter=0, box_inward=9)) - torch.tensor([60, 100, 159, 149])
    assert moved[:, 0].max() == 9 and moved[:, 1].max() == 5  # at most a tenth of the edge


def test_rounds_click_in_the_error_as_x_and_y():
    class Asked:
        spec = get_spec2d("repmedsam_compact")

        def __init__(self):
            self.calls = []

        def decode(self, embedding, points, boxes, mask):
            self.calls.append((points, boxes, mask))
            return torch.full((1, 1, 128, 128), -5.0), torch.zeros(1, 1)

    truth = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    truth[:, :, 20:60, 180:240] = True
    model = Asked()
    prompt_rounds(model, torch.zeros(1, 1, 1, 1), truth, Prompting(mask_share=1.0), 3)
    assert model.calls[0][0] is None and model.calls[0][1] is not None and model.calls[0][2] is None
    places, labels = model.calls[2][0]
    assert labels.tolist() == [[1, 1]] and model.calls[2][2] is not None
    assert all(180 <= x < 240 and 20 <= y < 60 for x, y in places[0].tolist())
    prompt_rounds(model, torch.zeros(1, 1, 1, 1), truth, Prompting(click_share=1.0), 1)
    assert model.calls[-1][1] is None and model.calls[-1][0][1].tolist() == [[1]]


def test_shrunk_objects_never_vanish():
    target = torch.zeros(1, 2, 256, 256, dtype=torch.bool)
    target[0, 0, 10:50, 10:50] = True
    target[0, 1, 7, 7] = True
    image, small = shrink(torch.rand(1, 3, 256, 256), target, 128)
    assert image.shape == (1, 3, 128, 128) and small.sum((2, 3)).tolist() == [[400, 1]]


def test_divergence_is_zero_for_equal_embeddings_only():
    x = torch.randn(2, 8, 4, 4)
    assert abs(embedding_divergence(x, x).item()) < 1e-6 < 0.1 < embedding_divergence(x, x.flip(1)).item()
    assert abs(embedding_divergence(x, x + 3.0).item()) < 1e-5  # a common offset of all channels carries nothing


def test_published_values_are_the_defaults():
    distill, finetune = PUBLISHED["distill"], PUBLISHED["finetune"]
    assert (distill.learning_rate, distill.epochs, distill.images) == (1e-4, 10, 4)
    assert (finetune.learning_rate, finetune.epochs, finetune.images) == (2e-5, 30, 4)
    assert finetune.prompting.box_jitter == 5 and finetune.loss_weights == (1.0, 1.0, 1.0) and finetune.balance == 1.0
    assert (Recipe2d().student, Recipe2d().teacher) == ("repmedsam", "litemedsam")
    published = Recipe2d.read(RECIPES / "repmedsam_published.json")
    assert published.stages["finetune"].mix == Mix(0, 0, 0, 0, 40, 1)  # the user's own images and nothing else
    assert replace(published.stages["finetune"], mix=Mix()) == finetune


def test_recipes_with_typing_errors_are_refused(tmp_path):
    for content, word in (
        ({"stages": {"distil": {}}}, "distil"),
        ({"stages": {"distill": {"learning_rat": 1}}}, "learning_rat"),
        ({"stages": {"finetune": {"mix": {"case": 1}}}}, "case"),
        ({"sed": 1}, "sed"),
    ):
        (tmp_path / "r.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=word):
            Recipe2d.read(tmp_path / "r.json")


def test_steps_on_one_batch_lower_its_loss(tmp_path):
    run = Training2d(_recipe(images=2, epoch_images=400), "teacher", tmp_path)
    batch = next(iter(run.stream(0)))
    losses = [run.train_step(None, (batch,))["total"] for _ in range(16)]
    assert losses[-1] < 0.75 * losses[0], losses


def test_stages_follow_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(Training2d, "validate", lambda self: {"score": 0.0})
    recipe = _recipe()
    with pytest.raises(FileNotFoundError, match="teacher"):
        Training2d(recipe, "distill", tmp_path)
    Training2d(recipe, "teacher", tmp_path).run()
    distill = Training2d(recipe, "distill", tmp_path)
    heads = {k: v.clone() for k, v in distill.model.state_dict().items() if not k.startswith("image_encoder.")}
    distill.run()
    assert all(torch.equal(v, distill.model.state_dict()[k]) for k, v in heads.items())  # the decoder is not touched
    wanted = torch.load(tmp_path / "distill" / "checkpoint.pt", weights_only=True)["average"]
    state = Training2d(recipe, "finetune", tmp_path).model.state_dict()
    assert all(torch.equal(state[k], wanted[k]) for k in wanted)
    scratch = Training2d(recipe, "finetune", tmp_path, from_scratch=True).model.state_dict()
    assert torch.equal(scratch["mask_decoder.iou_token.weight"], wanted["mask_decoder.iou_token.weight"])
    key = "image_encoder.neck.0.weight"
    assert not torch.equal(scratch[key], wanted[key])


def test_a_killed_run_goes_on_with_equal_results(tmp_path, monkeypatch):
    monkeypatch.setattr(Training2d, "validate", lambda self: {"score": 0.0})
    whole = Training2d(_recipe(), "teacher", tmp_path / "whole")
    whole.run()
    step = Training2d.train_step

    def killed(self, engine, batches):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, engine, batches)

    monkeypatch.setattr(Training2d, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        Training2d(_recipe(), "teacher", tmp_path / "cut").run(save_minutes=0.0)
    monkeypatch.setattr(Training2d, "train_step", step)
    cut = Training2d(_recipe(), "teacher", tmp_path / "cut")
    cut.run()
    assert cut.step == whole.step == 4
    for key, value in whole.average.state_dict().items():
        assert torch.allclose(value.float(), cut.average.state_dict()[key].float(), atol=1e-6), key


def test_the_ablation_gives_both_arms_the_same_time_and_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(Training2d, "validate", lambda self, batches=0: {"score": self.seconds + 0.5})
    recipe = _recipe()
    Training2d(recipe, "teacher", tmp_path).run()
    plans = []
    run = Training2d.run
    monkeypatch.setattr(Training2d, "run", lambda self: plans.append((self.stage, self.config.minutes)) or run(self))
    found = ablation(recipe, tmp_path / "teacher" / "checkpoint.pt", tmp_path / "both", 0.004, [5])
    assert plans == [("finetune", 0.004), ("distill", 0.001), ("finetune", 0.003)]
    assert found == {"scratch": [0.5], "distilled": [0.5]} and "| distilled | 0.500 | 0.500 |" in table(found, [5])
    assert json.loads((tmp_path / "both" / "ablation.json").read_text())["seeds"] == [5]


def _gradients(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    run = Training2d(_recipe(), "teacher", Path(folder) / "two")
    batch = next(iter(run.stream(rank)))
    total = torch.tensor(run.gradients((batch,))["total"])
    torch.distributed.all_reduce(total)
    if rank == 0:
        torch.save({"total": total / 2, "grads": [p.grad for p in run.trained]}, Path(folder) / "two.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_step_like_one_with_two_passes(tmp_path):
    torch.multiprocessing.start_processes(_gradients, (str(tmp_path),), nprocs=2, start_method="fork")
    shared = torch.load(tmp_path / "two.pt", weights_only=True)
    run = Training2d(_recipe(passes=2), "teacher", tmp_path / "one")
    total = run.gradients(tuple(next(iter(run.stream(n))) for n in range(2)))["total"]
    assert total == pytest.approx(float(shared["total"]), abs=1e-3)
    grads = [p.grad for p in run.trained]  # None where a parameter has no part in this network
    scale = max(float(g.abs().max()) for g in grads if g is not None)
    for mine, theirs in zip(grads, shared["grads"], strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-4 * scale)


def test_small_images_use_the_same_weights():
    model = build_sam2d(get_spec2d("repmedsam_compact")).eval()
    model.set_image_size(128)
    with torch.no_grad():
        logits, iou = model.decode(model.encode(torch.rand(1, 3, 128, 128)), boxes=torch.tensor([[8.0, 8, 60, 50]]))
    assert logits.shape == (1, 1, 64, 64) and iou.shape == (1, 1)


def _npz_folder(folder):
    for number in range(5):
        label = np.zeros((6, 40, 50), np.uint8)
        label[2:5, 10:30, 15:35] = 7
        np.savez(folder / f"stack{number}.npz", imgs=(label * 20 + 30), gts=label, spacing=np.ones(3))


def test_own_npz_files_are_split_and_visited(tmp_path):
    _npz_folder(tmp_path)
    own = OwnSlices(tmp_path)
    assert own.count == 4 and len(own.held_out.files) == 1
    assert not {f for f, _ in own.training.files} & {f for f, _ in own.held_out.files}
    item = own.training.slice(Draw(1))
    assert item.image.shape == (40, 50) and item.label.unique().tolist() == [0, 1]
    batch = next(iter(ImageBatches(1, 256, 2, 1, Mix(0, 0, 0, 0, 4, 2), [], own.training)))
    assert batch["target"].flatten(2).any(2).all()


def test_own_nifti_pairs_and_colour_pictures(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    label = np.zeros((40, 44, 8), np.uint8)
    label[10:30, 12:28, 2:6] = 2
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image((label * 50.0 - 7).astype(np.float32), affine), tmp_path / "imagesTr" / "a_0000.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "labelsTr" / "a.nii.gz")
    np.savez(tmp_path / "photo.npz", imgs=np.full((30, 20, 3), 9, np.uint8), gts=np.ones((30, 20), np.uint8))
    own = OwnSlices(tmp_path)
    shapes = {tuple(s.slice(Draw(0)).image.shape) for s in (own.training, own.held_out)}
    assert shapes == {(44, 40), (30, 20, 3)}  # thick slices are shown as serving shows them: columns are the first axis
    with pytest.raises(ValueError, match="at least two labelled images"):
        OwnSlices(tmp_path / "labelsTr")

"""Fine-tuning for slices: what it trains on, that it learns and goes on, and what the gate asks and decides."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam import weights
from lib.sam.anatomy.fields import Draw
from lib.sam.build import build_sam2d
from lib.sam.geometry import Grid
from lib.sam.intensity import CT_WINDOWS, to_8bit
from lib.sam.slice_segmenter import SliceSegmenter
from lib.sam.training.annotated2d import build, cut_case, read_slice, write_slice
from lib.sam.training.cases import LabelledCase
from lib.sam.training.data2d import pick_masks
from lib.sam.training.finetune2d import Finetuning2d
from lib.sam.training.finetune_config import Finetune2dConfig, FinetuneConfig
from lib.sam.training.gate import Resident, judge
from lib.sam.training.gate2d import ask_image, ask_scan, compare, drawn_box, generated, middles
from lib.sam.training.learners import config_type, learner_of
from lib.sam.training.report import SLICES, write_report
from lib.sam.training.tuning import Stopped
from lib.sam.versions import write_candidate
from lib.sam.volume_io import Volume
from lib.sam.weights import ResolvedWeights, load_sam
from lib.sam.zoo import get_spec, get_spec2d

COMPACT = get_spec2d("repmedsam_compact")
TINY = replace(
    COMPACT,
    encoder=replace(COMPACT.encoder, image_size=64, widths=(8, 16, 24, 32), depths=(1, 1, 1, 1), out=32, detail=4),
    decoder=replace(COMPACT.decoder, width=32, heads=4, mlp_width=32, iou_width=32, refine=4, grow=4),
)
QUICK = Finetune2dConfig(
    minutes=0,
    epochs=2,
    steps_per_epoch=2,
    warmup_steps=1,
    learning_rate=1e-3,
    rehearsal=0.3,
    patience=50,
    half=False,
    images=1,
    objects=1,
)


def fresh():
    torch.manual_seed(0)
    return build_sam2d(TINY)


def segmenter(state, name):
    model = build_sam2d(TINY)
    model.load_state_dict(state)
    return SliceSegmenter(model, name, name, fused=False, half=False)


def write_case(folder, name, image, label, names, spacing=(1.5, 1.5, 1.5)):
    paths = folder / f"{name}.nii.gz", folder / f"{name}-label.nii.gz"
    for path, array in zip(paths, (image.astype(np.int16), label.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return LabelledCase(name, *paths, names)


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Two scans with a bright bar each, that lies across its box: to fill the box is wrong."""
    folder, cases = tmp_path_factory.mktemp("bars"), []
    axes = np.meshgrid(*(np.arange(40),) * 3, indexing="ij")
    for n, centre in enumerate([(18, 20, 22), (22, 18, 19)]):
        i, j, k = (g - c for g, c in zip(axes, centre))
        bar = (abs(i - j) <= 4) & (abs(i + j) <= 20) & (abs(k) <= 10)
        image = np.where(bar, 700, 0) + np.random.default_rng(n).normal(0, 60, bar.shape)
        cases.append(write_case(folder, str(n), image, bar, {1: "bar"}))
    return cases


@pytest.fixture(scope="module")
def slices(bars, tmp_path_factory):
    return build(bars, ["bar"], tmp_path_factory.mktemp("slices") / "data", 64, 6, 0.0, 0, 1)


def test_each_structure_is_shown_in_the_window_that_serving_chooses_for_its_box(tmp_path):
    label = np.zeros((40, 36, 12), np.uint8)
    label[4:16, 4:30, 2:10], label[22:34, 6:28, 2:10] = 1, 2
    image = np.select([label == 1, label == 2], [-850, 60], 0)
    image[0, 0] = -1000
    case = write_case(tmp_path, "chest", image, label, {1: "lung", 2: "liver"}, (1.0, 1.0, 5.0))
    found = list(cut_case(case, ["liver", "lung"], 64, 8, 0.0, np.random.default_rng(0)))
    assert found and all(item.image.shape == item.label.shape == (36, 40) for item in found)  # columns first: as shown
    shown = {}
    for item in found:
        (value,) = set(item.label.unique().tolist()) - {0}  # the other one would be seen in another window
        shown[value] = item
    lung, liver = (
        (level - width / 2, level + width / 2) for level, width in (CT_WINDOWS["lung"], CT_WINDOWS["soft tissue"])
    )
    for value, (hu, limits) in {1: (60, liver), 2: (-850, lung)}.items():
        inside = shown[value].image[shown[value].label == value]
        assert set(inside.tolist()) == {int(to_8bit(np.array([hu]), *limits)[0])}


def test_slices_lie_on_disk_by_case_and_come_back(bars, slices, tmp_path):
    assert {path.name.split("-")[1] for path in slices.train} == {"0000", "0001"}
    assert slices.validation and not slices.rehearsal
    assert {p.name.split("-")[1] for p in slices.of_cases({1}).train} == {"0001"}
    item = read_slice(slices.train[0])
    write_slice(item, tmp_path / "again.npz")
    again = read_slice(tmp_path / "again.npz")
    assert torch.equal(item.image, again.image) and torch.equal(item.label, again.label)
    assert item.image.dtype == torch.uint8
    with pytest.raises(ValueError, match="enough voxels of liver"):
        build(bars, ["liver"], tmp_path / "none", 64, 6, 0.0, 0, 1)


def test_what_was_annotated_keeps_its_holes_and_small_structures_count():
    label = torch.zeros(40, 40, dtype=torch.long)
    label[5:25, 5:25], label[10:20, 10:20], label[30:35, 30:33] = 1, 0, 2
    sizes = {int(mask.sum()) for seed in range(8) for mask in pick_masks(Draw(seed), label, 2, annotated=True)}
    assert sizes == {300, 15}


def test_a_stopped_training_goes_on_to_the_same_weights_and_norms_stay(slices, tmp_path):
    start = {k: v.clone() for k, v in fresh().state_dict().items()}
    whole = Finetuning2d(QUICK, tmp_path / "whole", fresh(), slices).run()
    calls = iter(range(100))
    with pytest.raises(Stopped):
        Finetuning2d(QUICK, tmp_path / "parts", fresh(), slices, should_stop=lambda: next(calls) >= 3).run()
    again = Finetuning2d(QUICK, tmp_path / "parts", fresh(), slices).run()
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, start[name])
    still = Finetuning2d(replace(QUICK, learning_rate=0.0, epochs=1), tmp_path / "still", fresh(), slices).run()
    assert all(torch.equal(still[name], value) for name, value in start.items())


def test_a_candidate_is_written_as_weights_that_load(tmp_path):
    torch.manual_seed(1)
    network, path = build_sam2d(COMPACT), tmp_path / "candidate.safetensors"
    write_candidate(network, path, {"licence": "test"})
    found = load_sam(ResolvedWeights("c", (path,), COMPACT, weights.version_of((path,)), "candidate")).state_dict()
    for name, value in network.state_dict().items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_boxes_of_the_gate_are_a_little_wide_and_always_the_same():
    target = np.zeros((100, 120), bool)
    target[40:80, 20:60] = True
    shifts = []
    for n in range(30):
        box = drawn_box(target, "case", f"structure {n}")
        assert np.array_equal(box, drawn_box(target, "case", f"structure {n}"))
        shifts.append(np.abs(box - [20, 40, 59, 79]))
        assert box[0] <= 20 and box[1] <= 40 and box[2] >= 59 and box[3] >= 79
    assert np.max(shifts) == 2 and np.min(shifts) == 0
    line = np.zeros((5, 9), bool)
    line[4, 2:9] = True
    x0, y0, x1, y1 = drawn_box(line, "a", "b")
    assert x1 > x0 and y1 > y0 and 0 <= x0 and x1 < 9 and y1 < 5
    assert middles(np.arange(10, 40), 3) == [15, 25, 35] and middles(np.array([7]), 3) == [7]


def test_a_scan_and_an_image_are_asked_alike():
    made = segmenter(fresh().state_dict(), "x")
    image = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    volume = np.zeros((40, 4, 30), np.uint8)
    volume[:, 2] = image.T
    box, clicks = np.array([5, 6, 30, 25]), ((10, 12, True),)
    in_scan = ask_scan(made, Resident(Volume(volume, Grid(volume.shape, np.eye(4)))), 1, 2)(box, clicks)
    assert in_scan.shape == image.shape
    assert np.array_equal(in_scan, ask_image(made, image)(box, clicks))


def test_the_generated_set_holds_slices_and_pictures_with_objects():
    found = list(generated(1, 64))
    assert len({name for _, name, _, _ in found}) == len(found) >= 3
    assert {image.ndim for _, _, image, _ in found} == {2, 3}
    assert all(i.dtype == np.uint8 and i.shape[:2] == t.shape and t.any() for _, _, i, t in found)


def shuffled(slices, folder):
    """The same images with the blocks of their labels in random order."""
    folder.mkdir()
    made = {"train": [], "validation": []}
    for kind in made:
        for n, path in enumerate(getattr(slices, kind)):
            item = read_slice(path)
            blocks = item.label.reshape(10, 4, 10, 4).permute(0, 2, 1, 3).reshape(100, 4, 4)
            mixed = blocks[torch.randperm(100, generator=torch.Generator().manual_seed(n))]
            item.label = mixed.reshape(10, 10, 4, 4).permute(0, 2, 1, 3).reshape(40, 40)
            made[kind].append(folder / path.name)
            write_slice(item, made[kind][-1])
    return replace(slices, train=tuple(made["train"]), validation=tuple(made["validation"]))


@pytest.mark.slow
def test_a_candidate_of_shuffled_labels_is_refused_and_one_that_learned_is_published(bars, slices, tmp_path):
    learn = replace(
        QUICK, epochs=2, steps_per_epoch=30, learning_rate=1e-2, ema=0.8, rehearsal=0, small_share=0, objects=1,
        rounds=((1.0, 1),), images=2,
    )  # fmt: skip
    start = {k: v.clone() for k, v in fresh().state_dict().items()}
    rows = []
    learned = Finetuning2d(learn, tmp_path / "true", fresh(), slices, on_epoch=rows.append).run()
    assert rows[-1]["loss"] < rows[0]["loss"]
    model = fresh()
    model.load_state_dict(learned)
    less = replace(learn, epochs=1, steps_per_epoch=20)
    spoiled = Finetuning2d(less, tmp_path / "shuffled", model, shuffled(slices, tmp_path / "mixed")).run()
    untaught, good, bad = (segmenter(w, n) for w, n in ((start, "start"), (learned, "good"), (spoiled, "bad")))
    better = judge(compare(untaught, good, bars, ["bar"], 2), [], SLICES)
    assert better.accepted and len(better.held_out) == 4, better.reason
    assert np.mean([pair.candidate for pair in better.held_out]) > 0.8
    worse = judge(compare(good, bad, bars, ["bar"], 2), better.held_out, SLICES)
    assert not worse.accepted
    assert "worse" in worse.reason and "held-out slices" in worse.reason
    page = write_report(tmp_path, "t", {}, {"candidate": rows}, worse.as_dict(), words=SLICES).read_text()
    assert page.count("<svg") == 4 and "with a click after it" in page and "bar, slice" in page


def test_settings_and_network_must_be_of_one_kind():
    assert config_type(COMPACT) is Finetune2dConfig
    with pytest.raises(TypeError, match="Finetune2dConfig"):
        learner_of(COMPACT, FinetuneConfig())
    assert learner_of(get_spec("fastsam3d_compact"), FinetuneConfig()).words.clicks == (1, 3, 5)
    with pytest.raises(ValueError, match="slices"):
        Finetune2dConfig.of({"slices": 0})

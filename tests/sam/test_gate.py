"""The gate with real trainings of a tiny model: what learned from true labels against what learned from shuffled ones."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from lib.sam.build import build_sam
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.training.cases import LabelledCase
from lib.sam.training.finetune import Finetuning
from lib.sam.training.gate import compare, judge
from lib.sam.training.patches import Patch, PatchSet

from tests.sam.test_finetune import QUICK, TINY, fresh, write_patches

SPEC = replace(TINY, zoom=False)
LEARN = replace(QUICK, epochs=3, steps_per_epoch=15, learning_rate=3e-3, ema=0.8, rehearsal=0.0, keep=0, box_share=0.0)


def scans(folder):
    """Two scans with a ball each, and their label maps."""
    cases, axes = [], np.meshgrid(*(np.arange(40),) * 3, indexing="ij")
    for n, centre in enumerate([(18, 20, 22), (22, 18, 19)]):
        ball = sum((g - c) ** 2 for g, c in zip(axes, centre)) <= 49
        image = np.where(ball, 800, -500) + np.random.default_rng(n).normal(0, 50, ball.shape)
        paths = folder / f"{n}.nii.gz", folder / f"{n}-label.nii.gz"
        for path, array in zip(paths, (image.astype(np.int16), ball.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1.0])), path)
        cases.append(LabelledCase(str(n), *paths, {1: "ball"}))
    return cases


def shuffled(patches, folder):
    """The same images with the voxels of their labels in random order, in blocks of the mask grid's cells."""
    folder.mkdir()
    made = {"train": [], "validation": []}
    for kind in made:
        for n, path in enumerate(getattr(patches, kind)):
            patch = Patch.read(path)
            cells = patch.label.reshape(8, 4, 8, 4, 8, 4).transpose(0, 2, 4, 1, 3, 5).reshape(512, 4, 4, 4)
            mixed = np.random.default_rng(n).permutation(cells).reshape(8, 8, 8, 4, 4, 4).transpose(0, 3, 1, 4, 2, 5)
            made[kind].append(folder / f"{kind}-{n}.npz")
            Patch(patch.image, np.ascontiguousarray(mixed.reshape(32, 32, 32)), patch.kept).write(made[kind][-1])
    return PatchSet(tuple(made["train"]), tuple(made["validation"]), ())


def segmenter(weights, name):
    model = build_sam(SPEC)
    model.load_state_dict(weights)
    return VolumeSegmenter(model, SPEC, name, name)


@pytest.mark.slow
def test_a_candidate_of_shuffled_labels_is_refused_and_one_that_learned_is_published(tmp_path):
    patches = write_patches(tmp_path / "patches", 6)
    start = {k: v.clone() for k, v in fresh().state_dict().items()}
    learned = Finetuning(LEARN, tmp_path / "true", fresh(), patches).run()
    model = fresh()
    model.load_state_dict(learned)
    spoiled = Finetuning(LEARN, tmp_path / "shuffled", model, shuffled(patches, tmp_path / "mixed")).run()
    cases = scans(tmp_path)
    untaught, good, bad = (segmenter(w, n) for w, n in ((start, "start"), (learned, "good"), (spoiled, "bad")))
    better = judge(compare(untaught, good, cases, ["ball"], 3), [])
    assert better.accepted, better.reason
    assert np.mean([p.candidate for p in better.held_out]) > 0.6
    worse = judge(compare(good, bad, cases, ["ball"], 3), [])
    assert not worse.accepted
    assert "worse" in worse.reason

"""The gate with real trainings of a tiny model: what learned from true labels against what learned from shuffled ones, and
what a run does with a candidate that forgets."""

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam import weights
from lib.sam.build import build_sam
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.training.cases import LabelledCase
from lib.sam.training.finetune import Finetuning
from lib.sam.training.gate import MAX_FORGETTING, Pair, compare, judge
from lib.sam.training.patches import Patch, PatchSet
from lib.sam.training.report import VOLUMES
from lib.sam.training.runs import Run
from lib.sam.versions import current, history, write_candidate
from lib.sam.weights import ResolvedWeights

from tests.sam.test_finetune import QUICK, TINY, fresh, write_patches

SPEC = replace(TINY, zoom=False, half=False)  # the served weights are then those of the file, to the last digit
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


class ByDistance:
    """A learner whose candidates forget with the square of their distance from the served weights."""

    tuning, words = Finetuning, VOLUMES

    def __init__(self, patches, loss, gain=0.1):
        self.patches, self.loss, self.gain, self.whole, self.asked = patches, loss, gain, None, []

    def prepare(self, *_):
        return self.patches

    def router(self, *_):
        return None

    def compare(self, served, candidate, cases, *_):
        return [Pair(case.name, "ball", (0.5,) * 3, (0.5 + self.gain,) * 3) for case in cases]

    def compare_generated(self, served, candidate):
        pairs = zip(served.model.parameters(), candidate.model.parameters())
        away = sum(float((b.float() - a.float()).square().sum()) for a, b in pairs) ** 0.5
        self.whole = self.whole or away
        self.asked.append(away / self.whole)
        return [Pair("generated 1", "object 1", (0.8,) * 3, (0.8 - self.loss * self.asked[-1] ** 2,) * 3)]


def patches_of_both(folder):
    """The same patches for either case, which their names number."""
    made = write_patches(folder)
    for path in (*made.train, *made.validation):
        shutil.copy(path, folder / path.name.replace("-0000-", "-0001-"))
    return PatchSet(tuple(sorted(folder.glob("train-*"))), tuple(sorted(folder.glob("validation-*"))), ())


def run_of(tmp_path, learner):
    base, models = tmp_path / "base.safetensors", tmp_path / "model"
    # Of some random weights a few steps make nothing better, and the candidate is what it began with.
    torch.manual_seed(0)
    write_candidate(build_sam(SPEC), base, {})
    served = ResolvedWeights("base", (base,), SPEC, weights.version_of((base,)), "shipped")
    run = Run(scans(tmp_path), served, models, replace(LEARN, epochs=1, steps_per_epoch=4, half=True))
    run.learner = learner
    return run(), served, models


@pytest.mark.parametrize(("loss", "tried", "part"), [(3.5, [1, 0.9, 0.75, 0.5], 0.5), (0.9, [1], 1)])
def test_of_a_candidate_that_forgets_the_part_is_published_that_does_not(tmp_path, loss, tried, part):
    learner = ByDistance(patches_of_both(tmp_path / "patches"), loss * MAX_FORGETTING)
    outcome, served, models = run_of(tmp_path, learner)
    assert outcome.published == current(models, "fastsam3d")
    assert learner.asked == pytest.approx(tried, abs=0.05)
    file = next(models.glob(f"**/{outcome.published}.safetensors"))
    published = weights.load_sam(replace(served, paths=(file,), version=weights.version_of((file,))), "cpu")
    start = weights.load_sam(served, "cpu")
    away = [b.detach() - a.detach() for a, b in zip(start.parameters(), published.parameters())]
    assert torch.cat([x.flatten() for x in away]).norm() == pytest.approx(part * learner.whole, rel=0.01)
    assert ("% of the way" in outcome.verdict.reason) is (part < 1)
    assert not list(models.glob("runs/**/candidate*.safetensors"))


@pytest.mark.parametrize(("loss", "gain"), [(100.0, 0.1), (1.5, -0.1)])
def test_a_candidate_that_forgets_or_is_worse_at_any_share_is_refused_for_what_all_of_it_does(tmp_path, loss, gain):
    learner = ByDistance(patches_of_both(tmp_path / "patches"), loss * MAX_FORGETTING, gain)
    outcome, _, models = run_of(tmp_path, learner)
    assert outcome.published is None
    assert current(models, "fastsam3d") is None
    assert len(learner.asked) == (5 if gain > 0 else 1)
    assert "% of the way" not in outcome.verdict.reason
    assert [record.event for record in history(models, "fastsam3d")] == ["refused"]

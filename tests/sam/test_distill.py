"""Layer-wise distillation: its phases, what each of them changes, that it learns, that it goes on."""

from dataclasses import replace

import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.training.data import TrainingPatches
from lib.sam.training.distill import MODES, Distillation, DistillConfig, compare, factor, inherit, phases
from lib.sam.zoo import get_spec

from tests.sam.test_finetune import TINY

TEACHER = replace(TINY, encoder=replace(TINY.encoder, depth=4, feedforward_layers=()))
STUDENT = replace(TINY, encoder=replace(TINY.encoder, depth=2, feedforward_layers=(0,)))


class Noise(TrainingPatches):
    """Smooth noise instead of anatomy, which costs nothing."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            coarse = torch.randn(1, 2, 4, 4, 4, generator=generator)
            image = torch.nn.functional.interpolate(coarse, size=32, mode="trilinear")
            ball = torch.zeros(1, 4, 16, 16, 16, dtype=torch.uint8)
            ball[:, :, 4:12, 4:12, 4:12] = 64
            yield {"image": image.half(), "target": ball}


def distillation(folder, **changes):
    torch.manual_seed(0)
    teacher = build_sam(TEACHER)
    torch.manual_seed(1)
    config = DistillConfig(
        **({"steps": 20, "mask_share": 0.2, "warmup_steps": 1, "save_every": 5, "learning_rate": 2e-3} | changes)
    )
    made = Distillation(config, folder, teacher, build_sam(STUDENT), data=Noise(1, 32, 1.5, "percentile_rank", 4, []))
    made.half = False
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [2, 4, 6, 12])
def test_phases_fill_the_steps_without_gaps(mode, depth):
    found = phases(DistillConfig(mode=mode, steps=1000), depth)
    assert [p.begin for p in found] == [0, *[p.end for p in found[:-1]]]
    assert found[-1].end == 1000
    assert found[-1].masks
    layers = [p.layers for p in found if p.layers]
    everything = tuple(range(1, depth + 1))
    assert layers == {"progressive": [(n,) for n in everything], "fitnets": [everything], "output": []}[mode]
    assert sum(p.neck for p in found) == 1


@pytest.mark.parametrize(
    ("spec", "m"), [("fastsam3d_compact_m1", 1), ("fastsam3d_compact", 2), ("fastsam3d_compact_m3", 3)]
)
def test_every_student_of_the_zoo_fits_the_teacher(spec, m):
    class Sized:
        def __init__(self, name):
            self.spec = get_spec(name)

    assert factor(Sized("fastsam3d_compact_teacher"), Sized(spec)) == m
    with pytest.raises(ValueError, match="agree in width"):
        factor(Sized("sam_med3d"), Sized(spec))


def test_a_student_layer_is_compared_with_the_mth_teacher_layer():
    torch.manual_seed(0)
    teacher = build_sam(TEACHER).eval()
    student = build_sam(STUDENT).eval()
    inherit(student, teacher)
    image = torch.randn(1, 2, 32, 32, 32)
    everything = phases(DistillConfig(mode="fitnets"), 2)[0]
    terms = compare(student, teacher, image, everything)
    assert set(terms) == {"layer 1", "layer 2", "neck", "total"}
    wanted, found = teacher.image_encoder.stages(image), student.image_encoder.stages(image)
    expected = (found[1] - wanted[2]).square().mean() / wanted[2].var()
    torch.testing.assert_close(terms["layer 1"], expected)
    same = compare(teacher, teacher, image, phases(DistillConfig(mode="fitnets"), 4)[0])
    assert float(same["total"]) == 0


def test_a_layer_learns_alone_with_those_before_it(tmp_path):
    run = distillation(tmp_path)
    before = {k: v.clone() for k, v in run.student.state_dict().items()}
    batch = next(iter(run.data))
    run._train_step(None, batch)
    changed = {k for k, v in run.student.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("image_encoder.blocks.0") for k in changed)
    assert not any(k.startswith(("image_encoder.blocks.1", "image_encoder.neck", "mask_", "prompt_")) for k in changed)
    run.step = next(p.begin for p in run.phases if p.neck)
    run._train_step(None, batch)
    changed = {k for k, v in run.student.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("image_encoder.neck") for k in changed)
    assert not any(k.startswith(("mask_", "prompt_")) for k in changed)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_brings_the_embedding_nearer_to_the_teachers(tmp_path, mode):
    run = distillation(tmp_path, mode=mode, steps=40, mask_share=0.0)
    batch = {"image": next(iter(run.data))["image"].float()}
    neck = replace(phases(DistillConfig(mode="output"), 2)[0])
    before = float(compare(run.student, run.teacher, batch["image"], neck)["neck"])
    rows = run.run()
    after = float(compare(run.student, run.teacher, batch["image"], neck)["neck"])
    assert after < 0.7 * before
    assert [row["step"] for row in rows] == list(range(5, 41, 5))


def test_it_goes_on_where_it_was_stopped(tmp_path):
    run = distillation(tmp_path)
    whole = run.phases
    run.config = replace(run.config, steps=10)
    run.run()
    again = distillation(tmp_path)
    assert again.phases == whole
    rows = again.run()
    assert again.step == 20
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[-1]["phase"] == "masks"


def test_a_mode_or_a_depth_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="progressive, fitnets, output"):
        DistillConfig(mode="magic")
    with pytest.raises(ValueError, match="multiple"):
        factor(build_sam(STUDENT), build_sam(TEACHER))

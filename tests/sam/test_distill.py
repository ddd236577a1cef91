"""Layer-wise distillation: its phases, what each of them changes, that it learns, that it goes on."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.training import ablation
from lib.sam.training.data import TrainingPatches
from lib.sam.training.distill import MODES, Distillation, DistillConfig, compare, factor, inherit, phases
from lib.sam.training.pool import PatchPool
from lib.sam.zoo import get_spec
from PIL import Image

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
    ("spec", "m"), [("fastsam3d_small_m1", 1), ("fastsam3d_small_m2", 2), ("fastsam3d_small_m3", 3)]
)
def test_every_student_of_the_zoo_fits_the_teacher(spec, m):
    class Sized:
        def __init__(self, name):
            self.spec = get_spec(name)

    assert factor(Sized("fastsam3d_small_teacher"), Sized(spec)) == m
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
    expected = (found[1] - wanted[2]).square().mean() / wanted[2].reshape(-1, wanted[2].shape[-1]).var(0).mean()
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


def noise(seed=1):
    return Noise(seed, 32, 1.5, "percentile_rank", 4, [])


def teacher_of_four():
    torch.manual_seed(0)
    return build_sam(TEACHER).eval()


def test_a_pool_keeps_patches_and_what_the_teacher_gives_for_them(tmp_path):
    teacher = teacher_of_four()
    pool = PatchPool.fill(tmp_path, 3, noise(), teacher, "a", "cpu")
    written = {path: path.stat().st_mtime_ns for path in pool.files}
    assert len(written) == 3
    seen = [sample for sample, _ in zip(pool, range(6))]
    wanted = list(islice(noise(), 3))
    for epoch in (seen[:3], seen[3:]):
        found = sorted(float(sample["image"].float().sum()) for sample in epoch)
        assert found == pytest.approx(sorted(float(w["image"].float().sum()) for w in wanted))
    stages = teacher.image_encoder.stages(seen[0]["image"].float())
    for kept, stage in zip(seen[0]["stages"], stages, strict=True):
        assert float((kept.float() - stage[0]).abs().max()) <= 0.05 * float(stage.abs().max())  # half precision
    PatchPool.fill(tmp_path, 3, noise(), teacher, "a", "cpu")
    assert {path: path.stat().st_mtime_ns for path in pool.files} == written
    with pytest.raises(ValueError, match="another teacher or seed"):
        PatchPool.fill(tmp_path, 3, noise(2), teacher, "b", "cpu")
    with pytest.raises(ValueError, match="no patches"):
        PatchPool(tmp_path / "empty")


def test_kept_stages_teach_what_the_teacher_teaches():
    teacher, student, image = teacher_of_four(), build_sam(STUDENT).eval(), torch.randn(1, 2, 32, 32, 32)
    phase = phases(DistillConfig(mode="fitnets"), 2)[0]
    stages = teacher.image_encoder.stages(image)
    for name, term in compare(student, teacher, image, phase).items():
        torch.testing.assert_close(compare(student, teacher, image, phase, stages)[name], term)
    stages[2] = stages[2] + 1
    assert (
        compare(student, teacher, image, phase, stages)["layer 1"] > compare(student, teacher, image, phase)["layer 1"]
    )


def test_the_ablation_gives_every_arm_the_same_steps_and_reports_what_came_out(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "get_spec", lambda name: replace(STUDENT, name=name))
    patches = PatchPool.fill(tmp_path / "patches", 2, noise(), teacher_of_four(), "a", "cpu")
    ball = torch.zeros(1, 1, 8, 8, 8)
    ball[..., 2:6, 2:6, 2:6] = 1
    cases = [(next(iter(patches))["image"].float(), ball)]
    arms = ablation.ARMS[:3]
    for arm in arms:
        for seed in (1, 2):
            config = ablation.config_of(arm, seed, steps=6, marks=3)
            rows = ablation.run_arm(config, tmp_path / f"{arm.name}_{seed}", teacher_of_four(), patches, cases)
            assert [row["step"] for row in rows] == [0, 2, 4, 6]
            assert ablation.run_arm(config, tmp_path / f"{arm.name}_{seed}", teacher_of_four(), patches, cases) == rows
    found = ablation.finished(tmp_path, ablation.ARMS, (1, 2, 3))
    assert {name: list(runs) for name, runs in found.items()} == {arm.name: [1, 2] for arm in arms}
    ends = [rows[-1]["dice_5"] for rows in found["progressive"].values()]
    assert ablation.curve(found["progressive"], 5)[-1] == (6, pytest.approx(sum(ends) / 2))
    teacher, blind = ({f"dice_{n}": n / 10 + more for n in (1, 3, 5)} for more in (0.4, 0.1))
    text = ablation.table(found, 2, teacher, blind).splitlines()
    assert len(text) == 5 + len(arms)
    assert "0.500 | 0.700 | 0.900" in text[2]
    assert "another case's image | 12 | 0.200 | 0.400 | 0.600" in text[3]
    begins = [rows[0]["dice_1"] for rows in found["progressive"].values()]
    assert f"{sum(begins) / 2:.3f} +-" in text[4]
    assert f"{sum(ends) / 2:.3f} +-" in text[5]
    ablation.draw_curves(found, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] > image.size[1] > 100

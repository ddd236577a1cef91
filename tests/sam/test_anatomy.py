"""The anatomy generator."""

import pytest
import torch
from lib.sam.anatomy.fields import Draw, blur, smooth_field
from lib.sam.anatomy.generator import generate
from lib.sam.anatomy.scenes import SCENES


def test_a_seed_fixes_a_case():
    a, b, c = generate(5, 32), generate(5, 32), generate(6, 32)
    assert torch.equal(a.image, b.image) and torch.equal(a.label, b.label) and torch.equal(a.inside, b.inside)
    assert not torch.equal(a.image, c.image)


@pytest.mark.parametrize("name", SCENES)
def test_scenes_number_their_objects(name):
    found = 0
    for seed in range(4):
        scene = SCENES[name](Draw(seed), 48)
        assert scene.label.shape == scene.tissue.shape == (48, 48, 48)
        assert int(scene.label.max()) <= scene.objects
        assert int(scene.tissue.max()) < len(scene.kinds)
        found += len(torch.unique(scene.label)) - 1
    assert found >= 4


def test_cases_are_finite_and_labelled_only_inside():
    for seed in range(6):
        case = generate(seed, 40)
        assert torch.isfinite(case.image).all()
        assert not bool((case.label[~case.inside] != 0).any())


def test_blur_keeps_the_mean_and_smooth_fields_have_unit_variance():
    x = torch.rand(24, 24, 24)
    assert abs(float(blur(x, (1.0, 1.0, 1.0)).mean() - x.mean())) < 0.01
    assert abs(float(smooth_field(Draw(0), 24, 4).std()) - 1) < 1e-4

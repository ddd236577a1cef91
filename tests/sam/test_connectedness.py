"""Connectedness to prompts: against an exact computation, and what boxes and clicks mean to it."""

import pytest
import torch
from lib.sam.build import build_sam, build_sam2d
from lib.sam.networks.connectedness import (
    SOFTNESS,
    box_evidence,
    clicked_cells,
    connectedness,
    far_from_clicks,
    most_telling,
    passable,
    prompted_maps,
)
from lib.sam.zoo import get_spec, get_spec2d
from torch.nn import functional as F


def exact(intensity, distance, seeds):
    """The strongest path by relaxing every link until nothing changes."""
    alike = torch.exp(distance / -SOFTNESS)
    found = torch.cat([seeds.float().expand_as(alike)] * 2, dim=1)
    while True:
        before = found.clone()
        for axis in range(2, intensity.ndim):
            n = intensity.shape[axis]
            steps = torch.exp(intensity.diff(dim=axis).abs() / -SOFTNESS)
            for come, into in ((0, 1), (1, 0)):
                link = torch.cat([alike.narrow(axis, into, n - 1), steps], dim=1)
                through = torch.minimum(found.narrow(axis, come, n - 1), link)
                found.narrow(axis, into, n - 1).copy_(torch.maximum(found.narrow(axis, into, n - 1), through))
        if torch.equal(found, before):
            return found


@pytest.mark.parametrize("dims", [2, 3])
def test_the_best_path_is_found_with_enough_sweeps(dims, monkeypatch):
    torch.manual_seed(dims)
    middle = (slice(None), slice(None), *(slice(6, 7),) * dims)
    for _ in range(5):
        coarse = torch.rand(1, 2, *(5,) * dims) * 2 - 1
        intensity = F.interpolate(coarse, size=12, mode="bilinear" if dims == 2 else "trilinear")
        seeds = torch.zeros(1, 1, *(12,) * dims, dtype=torch.bool)
        seeds[middle] = True
        distance = (intensity - intensity[middle]).abs()
        wanted = exact(intensity, distance, seeds)
        for sweeps in (2, 40):
            monkeypatch.setattr("lib.sam.networks.connectedness.SWEEPS", sweeps)
            found = connectedness(intensity, distance, seeds)
            assert bool((found <= wanted + 1e-6).all())
        torch.testing.assert_close(found, wanted)


def test_like_tissue_behind_a_wall_is_not_connected():
    intensity = torch.zeros(1, 1, 9, 9, 9)
    intensity[..., 4] = 1.0
    seeds = clicked_cells(torch.tensor([[[4, 4, 1]]]), torch.tensor([[True]]), intensity.shape[2:])
    distance = far_from_clicks(intensity, torch.tensor([[[4, 4, 1]]]), torch.tensor([[True]]))
    found = connectedness(intensity, distance, seeds)
    assert float(found[..., :4].min()) == 1.0
    assert float(found[..., 5:].max()) < 0.01 < float(torch.exp(-distance[..., 5:]).min())
    intensity[0, 0, 0, 0, 4] = 0.0  # a hole in the wall
    assert float(connectedness(intensity, intensity.abs(), seeds)[..., 5:].min()) == 1.0


def test_a_box_says_what_its_middle_and_its_outside_say():
    image = torch.full((1, 1, 16, 16), -0.5)
    image[..., 4:10, 5:12] = 0.7
    inside = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    inside[0, :, 3:11, 4:13] = True
    nothing = torch.zeros_like(inside)
    far = torch.full((2, 1, 16, 16), 9.0)
    maps = prompted_maps(image, nothing, nothing, (far, far), inside)
    assert maps.shape == (2, 5, 16, 16)
    assert float(maps[1].abs().max()) == 0.0  # no prompt, no word
    object_cells = image[0, 0] > 0
    for n in (0, 1):
        assert bool((maps[0, n][object_cells] > 0.99).all()) and float(maps[0, n][~object_cells].max()) < 0.01
    assert float(maps[0, 3][object_cells].max()) < 0.01 and bool((maps[0, 3][~object_cells] > 0.99).all())
    assert float(maps[0, 4][object_cells].min()) > 0.3 > 0 > float(maps[0, 4][~object_cells & inside[0, 0]].max())


def test_a_click_counts_more_than_the_middle_of_the_box():
    image = torch.rand(1, 2, 12, 12)
    inside = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    cells, chosen = torch.tensor([[[2, 3]]]), torch.tensor([[True]])
    clicked, far = clicked_cells(cells, chosen, inside.shape[2:]), far_from_clicks(image, cells, chosen)
    maps = prompted_maps(image, clicked, torch.zeros_like(inside), (far, torch.full_like(far, 9.0)), inside)
    torch.testing.assert_close(maps[:, :4], connectedness(image, far, clicked))


def test_the_seed_of_a_box_lies_on_the_object_even_where_its_middle_does_not():
    torch.manual_seed(0)
    image = torch.full((1, 1, 12, 12, 12), -0.5) + 0.02 * torch.randn(1, 1, 12, 12, 12)
    image[0, 0, 2:10, 2:10, 3:9] = 0.6  # a tube with a wide hole
    image[0, 0, 4:8, 4:8, 3:9] = -0.5
    inside = torch.zeros(2, 1, 12, 12, 12, dtype=torch.bool)
    inside[0, 0, 2:10, 2:10, 3:9] = True
    seed = most_telling(box_evidence(image, inside), inside)
    assert int(seed[0].sum()) == 1 and int(seed[1].sum()) == 0  # no box, no seed
    assert float(image[0, 0][seed[0, 0]]) > 0.5


def test_the_seed_of_a_box_of_one_tissue_is_its_middle():
    inside = torch.zeros(1, 1, 9, 9, 9, dtype=torch.bool)
    inside[0, 0, 1:4, 2:7, 0:1] = True
    assert most_telling(torch.zeros(1, 2, 9, 9, 9), inside).nonzero().tolist() == [[0, 0, 2, 4, 0]]


def test_a_plate_thinner_than_a_cell_stops_what_crosses_it():
    parts = torch.zeros(1, 1, 12, 12, 12)
    parts[..., 5, :, :] = 1.0  # a plate of half a cell
    cells = F.avg_pool3d(parts, 2)
    seeds = clicked_cells(torch.tensor([[[0, 2, 2]]]), torch.tensor([[True]]), cells.shape[2:])
    found = connectedness(cells, parts, seeds)[:, 0]
    assert float(found[:, :2].min()) == 1.0 and float(found[:, 3:].max()) < 0.01
    coarse = connectedness(cells, cells, seeds)[:, 0]
    assert float(coarse[:, 3:].max()) > 0.03
    torch.testing.assert_close(passable(cells, 2, 1), cells)
    assert float(passable(torch.exp(-parts), 3, 2).min()) == 1.0  # along the plate one gets past it


def test_evidence_of_a_box_does_not_depend_on_other_boxes():
    torch.manual_seed(0)
    image, inside = torch.rand(1, 2, 10, 10, 10) * 2 - 1, torch.rand(3, 1, 10, 10, 10) > 0.7
    together = box_evidence(image, inside)
    for n in range(3):
        torch.testing.assert_close(together[n : n + 1], box_evidence(image, inside[n : n + 1]))


def test_clicks_outside_count_for_the_nearest_cell():
    cells = torch.tensor([[[-3, 2], [9, 9], [1, 1]]])
    mask = clicked_cells(cells, torch.tensor([[True, True, False]]), torch.Size([4, 4]))
    assert mask.nonzero().tolist() == [[0, 0, 0, 2], [0, 0, 3, 3]]


def test_growing_begins_without_effect_and_passes_gradients():
    torch.manual_seed(0)
    model = build_sam(get_spec("fastsam3d_compact"))
    image = model.encode(torch.randn(1, 2, 32, 32, 32), torch.zeros(1, 3, dtype=torch.long))
    asked = (torch.tensor([[[9.0, 8, 7]]]), torch.ones(1, 1, dtype=torch.long)), torch.zeros(1, 1, 8, 8, 8)
    with_growth = model.decode(image, *asked, torch.zeros(1, 3, dtype=torch.long))[0]
    with_growth.mean().backward()
    assert float(model.mask_decoder.grow.out.weight.grad.abs().sum()) > 0
    del model.mask_decoder.grow
    without = model.decode(image, *asked, torch.zeros(1, 3, dtype=torch.long))[0]
    torch.testing.assert_close(with_growth, without)


def test_growing_in_images_takes_boxes_and_clicks_of_a_batch():
    torch.manual_seed(0)
    model = build_sam2d(get_spec2d("repmedsam_compact")).eval()
    torch.nn.init.normal_(model.mask_decoder.grow.out.weight)
    with torch.inference_mode():
        embedding = model.encode(torch.rand(1, 3, 256, 256))
        boxes = torch.tensor([[20.0, 30, 100, 120], [5, 5, 200, 200]])
        points = torch.tensor([[[50.0, 60]], [[150, 20]]]), torch.ones(2, 1, dtype=torch.long)
        together = model.decode(embedding, points, boxes)[0]
        for n in range(2):
            alone = model.decode(embedding, (points[0][n : n + 1], points[1][n : n + 1]), boxes[n : n + 1])[0]
            torch.testing.assert_close(together[n : n + 1], alone, atol=1e-3, rtol=1e-3)


def test_growing_in_images_works_in_half_precision():
    torch.manual_seed(0)
    model = build_sam2d(get_spec2d("repmedsam_compact")).eval()
    torch.nn.init.normal_(model.mask_decoder.grow.out.weight, std=0.1)
    image, box = torch.rand(1, 3, 256, 256), torch.tensor([[20.0, 30, 100, 120]])
    with torch.inference_mode():
        wanted = model.decode(model.encode(image), boxes=box)[0]
        half = model.bfloat16()
        found = half.decode(half.encode(image.bfloat16()), boxes=box.bfloat16())[0]
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().mean()) < 0.1 * float(wanted.abs().mean()) + 0.1

"""Likeness to clicks: its maps, what boxes and padding add, and that the layers are asked."""

from dataclasses import replace

import torch
from lib.sam.build import build_sam
from lib.sam.networks.likeness import Likeness
from lib.sam.zoo import get_spec

SPEC = get_spec("fastsam3d_small_m3")
PATCH, GRID, OUT = SPEC.encoder.patch, SPEC.encoder.grid, SPEC.encoder.out


def two_halves():
    """An embedding (1, out, g, g, g) of two kinds of tokens: one up to the middle of axis 0, another beyond."""
    torch.manual_seed(0)
    kinds = torch.randn(2, OUT)
    halves = (torch.arange(GRID) >= GRID // 2).long()
    return kinds[halves].T.reshape(1, OUT, GRID, 1, 1).expand(-1, -1, -1, GRID, GRID).contiguous()


def at(*tokens):
    return torch.tensor([[[t * PATCH + 3.0, 5.0, 60.0] for t in tokens]])


def test_a_clicks_own_half_is_like_it_and_the_other_is_not():
    likeness = Likeness(SPEC).eval()
    maps = likeness.maps((at(1), torch.tensor([[1]])), two_halves())
    assert maps.shape == (1, 2, GRID, GRID, GRID)
    torch.testing.assert_close(maps[0, 0, : GRID // 2], torch.ones(GRID // 2, GRID, GRID))
    assert (maps[0, 0, GRID // 2 :] < 0.9).all()
    assert (maps[0, 1] == 0).all()  # no click on the background


def test_the_most_similar_click_of_each_sign_counts():
    likeness = Likeness(SPEC).eval()
    maps = likeness.maps((at(1, GRID - 1, 0), torch.tensor([[1, 1, 0]])), two_halves())
    torch.testing.assert_close(maps[0, 0], torch.ones(GRID, GRID, GRID))
    torch.testing.assert_close(maps[0, 1, : GRID // 2], torch.ones(GRID // 2, GRID, GRID))
    assert (maps[0, 1, GRID // 2 :] < 0.9).all()


def test_box_corners_and_padding_are_no_clicks():
    likeness = Likeness(SPEC).eval()
    points = (at(0, 7, 2), torch.tensor([[2, 3, -1]]))
    assert (likeness.maps(points, two_halves()) == 0).all()
    assert (likeness.tokens(points, two_halves()) == 0).all()
    none = (torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long))
    assert (likeness.maps(none, two_halves()) == 0).all()


def test_a_mask_asks_every_layer_of_the_encoder():
    torch.manual_seed(0)
    model = build_sam(replace(SPEC, half=False))
    embedding = model.encode(torch.randn(1, SPEC.encoder.channels, *(SPEC.patch_size,) * 3))
    logits, _ = model.decode(embedding, (at(1), torch.tensor([[1]])), None)
    logits.square().mean().backward()
    assert all(block.mlp.lin1.weight.grad.abs().sum() > 0 for block in model.image_encoder.blocks)


def test_a_normed_embedding_keeps_no_constant():
    torch.manual_seed(0)
    model = build_sam(SPEC).eval()
    tokens = torch.randn(2, GRID, GRID, GRID, SPEC.encoder.width) + 100 * torch.randn(SPEC.encoder.width)
    embedding = model.image_encoder.embedding(tokens)
    assert embedding.mean((2, 3, 4)).abs().max() < 1e-4
    torch.testing.assert_close(embedding.std((2, 3, 4)), torch.ones(2, OUT), atol=1e-2, rtol=0)

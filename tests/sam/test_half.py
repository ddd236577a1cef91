"""Networks served in bfloat16, and the products of matrices that stand for layers: the values of the plain forms."""

import copy

import pytest
import torch
from lib.benchmarks.table import resized
from lib.sam import half
from lib.sam.build import build_sam
from lib.sam.half import HalfLinear, halved, packed
from lib.sam.networks.decoder3d import MaskDecoder3D
from lib.sam.networks.layers import trilinear
from lib.sam.networks.prompt_maps import POSITIVE
from lib.sam.networks.upscaling import upscaled_masks
from lib.sam.zoo import get_spec
from torch.nn import functional as F

PUBLISHED = get_spec("fastsam3d_published_h6")


@pytest.mark.parametrize("name", ["fastsam3d_published_h6", "fastsam3d_compact"])
def test_stored_halves_are_what_autocast_makes(name):
    spec = resized(get_spec(name), 32)
    torch.manual_seed(0)
    plain = build_sam(spec).eval().requires_grad_(False)
    stored = halved(copy.deepcopy(plain))
    assert any(isinstance(module, HalfLinear) for module in stored.modules())
    kinds = {p.dtype for p in stored.image_encoder.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    patch = torch.randn(1, spec.encoder.channels, 32, 32, 32)
    points = torch.tensor([[[3.0, 9.0, 20.0]]]), torch.tensor([[POSITIVE]])
    zeros = torch.zeros(1, 1, 8, 8, 8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain.decode(plain.encode(patch), points, zeros)[0].float()
        found = stored.decode(stored.encode(patch), points, zeros)[0].float()
    assert (found - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("masks", [1, 3])
def test_upscaling_is_that_of_the_layers(masks):
    torch.manual_seed(0)
    layers = MaskDecoder3D(PUBLISHED).eval().output_upscaling
    rows, kernels = torch.randn(2, 27, 384), torch.randn(2, masks, 48)
    with torch.inference_mode():
        cells = layers(rows.transpose(1, 2).unflatten(2, (3, 3, 3)))
        expected = torch.einsum("bmc,bcxyz->bmxyz", kernels, cells)
        torch.testing.assert_close(upscaled_masks(layers, rows, kernels, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "size"), [((8, 8, 8), 32), ((2, 3, 6, 6, 6), 12), ((4, 4, 4), 10), ((1, 5, 5, 5), 5)]
)
@pytest.mark.parametrize("gradients", [False, True])
def test_both_ways_to_interpolate(shape, size, gradients):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=gradients)
    flat = x.reshape(1, -1, *shape[-3:])
    expected = F.interpolate(flat, size=(size,) * 3, mode="trilinear", align_corners=False)
    found = trilinear(x, size)
    torch.testing.assert_close(found, expected.reshape(*shape[:-3], size, size, size), rtol=0, atol=1e-5)
    if gradients:
        found.square().sum().backward()
        assert x.grad.abs().sum() > 0


def test_a_kept_position_is_the_computed_one():
    encoder = build_sam(PUBLISHED).prompt_encoder
    computed = encoder.dense_position()
    encoder.keep_position()
    assert encoder.dense_position() is encoder.dense_position()
    torch.testing.assert_close(encoder.dense_position(), computed, rtol=0, atol=0)
    window = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(encoder.dense_position(window, 4)[0], computed[0, :, 0:4, 1:5, 2:6], rtol=0, atol=0)
    assert "kept_position" not in encoder.state_dict()


@pytest.mark.parametrize(("then", "right"), [("none", lambda x: x), ("relu", F.relu), ("gelu", F.gelu)])
@pytest.mark.parametrize("rows", [1, 7, 600])
def test_products_are_linear_layers_with_what_follows(then, right, rows):
    torch.manual_seed(rows)
    weight, x, bias = torch.randn(48, 96).bfloat16(), torch.randn(2, rows, 96), torch.randn(48).bfloat16()
    product = packed(weight, bias)
    if product is None:
        pytest.skip("this processor, or this torch, has no products of oneDNN")
    with torch.inference_mode():
        found = product(x, then)
    expected = right(F.linear(x.bfloat16().float(), weight.float(), bias.float()))
    assert found.dtype == torch.bfloat16 and found.shape == (2, rows, 48)
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


def test_without_products_everything_runs_as_torch_has_it(monkeypatch):
    """On a processor or a torch without oneDNN's calls."""
    spec = resized(get_spec("fastsam3d_compact"), 32)
    torch.manual_seed(0)
    plain = build_sam(spec).eval().requires_grad_(False)
    with_products = halved(copy.deepcopy(plain))
    monkeypatch.setattr(half, "_products_work", lambda: False)
    without = halved(plain)
    assert all(layer.product is None for layer in without.modules() if isinstance(layer, HalfLinear))
    patch = torch.randn(1, spec.encoder.channels, 32, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = (model.encode(patch)[0].float() for model in (without, with_products))
    assert (found - expected).abs().mean() < 0.02 * expected.std()


def test_products_that_are_wrong_are_not_used(monkeypatch):
    monkeypatch.setattr(half.Product, "__call__", lambda self, x, then="none": torch.zeros(24, 24).bfloat16())
    half._products_work.cache_clear()
    assert not half._products_work()
    half._products_work.cache_clear()

"""The 3D networks: forms that must agree with their definitions."""

from dataclasses import replace

import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.networks.attention import DenseAttention, SegmentDilatedAttention, StridedAttention, relative_table
from lib.sam.networks.transformer import CrossAttention
from lib.sam.zoo import SPECS, get_spec


def _randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return module


def _naive_window_attention(layer, x, window):
    """The published computation word by word: pad with zeros, attend with every row, crop."""
    b, g, _, _, width = x.shape
    padded = torch.zeros(b, window, window, window, width)
    padded[:, :g, :g, :g] = x
    heads, c = layer.heads, width // layer.heads
    qkv = layer.qkv(padded).reshape(b, window, window, window, 3, heads, c)
    q, k, v = (t.permute(0, 4, 1, 2, 3, 5) for t in qkv.unbind(4))
    logits = torch.einsum("bedhwc,bexyzc->bedhwxyz", q * c**-0.5, k)
    r_d, r_h, r_w = (relative_table(t, window) for t in (layer.rel_pos_d, layer.rel_pos_h, layer.rel_pos_w))
    for d in range(window):
        for h in range(window):
            for w in range(window):
                for kd in range(window):
                    for kh in range(window):
                        for kw in range(window):
                            logits[:, :, d, h, w, kd, kh, kw] += (
                                (q[:, :, d, h, w] * r_d[d, kw]).sum(-1)
                                + (q[:, :, d, h, kd] * r_h[h, kw]).sum(-1)
                                + (q[:, :, d, h, kh] * r_w[kh, kw]).sum(-1)
                            )
    weights = logits.flatten(5).softmax(-1).unflatten(5, (window,) * 3)
    out = torch.einsum("bedhwxyz,bexyzc->bdhwec", weights, v).reshape(b, window, window, window, width)
    return layer.proj(out)[:, :g, :g, :g]


@pytest.mark.parametrize("window", [2, 3])
def test_padding_shortcut_equals_attention_with_every_row(window):
    layer = _randomise(DenseAttention(8, 2, window, relative=True))
    x = torch.randn(2, 2, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), _naive_window_attention(layer, x, window), atol=1e-5, rtol=1e-5)


def test_strided_attention_leaves_its_groups_in_a_row():
    layer = _randomise(StridedAttention(8, 2, 4, relative=False))
    x = torch.randn(1, 4, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = layer(x).reshape(64, 8)
        alone = layer(x[:, :, :1, :1].expand(-1, -1, 4, 4, -1)).reshape(64, 8)
    # group 0 is the column (h, w) = (0, 0); its four results stand at the first four places
    torch.testing.assert_close(out[:4], alone[:4])


def test_segment_dilated_attention_puts_results_back_in_place():
    layer = _randomise(SegmentDilatedAttention(12, 3, ((4, 1), (16, 4), (64, 8))))
    x = torch.randn(1, 4, 4, 4, 12, generator=torch.Generator().manual_seed(1))
    flat = x.reshape(64, 12)
    with torch.no_grad():
        qkv = layer.qkv(flat).reshape(64, 3, 3, 4)
        expected = torch.zeros(64, 3, 4)
        for head, (segment, dilation) in enumerate(layer.configurations):
            for t in range(64):
                group = [u for u in range(64) if u // segment == t // segment and (u - t) % dilation == 0]
                q, k, v = qkv[t, 0, head], qkv[group, 1, head], qkv[group, 2, head]
                expected[t, head] = ((k @ q) / 2).softmax(0) @ v
        torch.testing.assert_close(layer(x).reshape(64, 12), layer.proj(expected.reshape(64, 12)), atol=1e-5, rtol=1e-5)


def test_the_two_residual_rules_are_different_functions_of_the_same_keys():
    small = replace(get_spec("fastsam3d_published_h6").encoder, image_size=32, width=24, heads=2, depth=2, out=24)
    spec = replace(get_spec("fastsam3d_published_h6"), encoder=small)
    normed = build_sam(replace(spec, decoder=replace(spec.decoder, width=24)))
    plain = build_sam(replace(spec, encoder=replace(small, residual="plain"), decoder=replace(spec.decoder, width=24)))
    plain.load_state_dict(normed.state_dict(), strict=True)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(normed.image_encoder(x), plain.image_encoder(x))


@pytest.mark.parametrize("name", ["fastsam3d_compact", "fastsam3d_compact_sparse"])
def test_compact_models_take_clicks_boxes_and_masks(name):
    model = build_sam(get_spec(name)).eval()
    patch = torch.randn(1, 2, 128, 128, 128)
    points = torch.tensor([[[10.0, 20, 30], [100, 90, 80], [64, 64, 64]]])
    labels = torch.tensor([[2, 3, 1]])
    with torch.no_grad():
        embedding = model.encode(patch)
        logits, iou = model.decode(embedding, (points, labels), torch.zeros(1, 1, 32, 32, 32))
        other, _ = model.decode(embedding, (points[:, 2:], labels[:, 2:]), logits)
    assert logits.shape == (1, 1, 32, 32, 32) and iou.shape == (1, 1)
    assert torch.isfinite(logits).all() and not torch.equal(logits, other)


def test_published_models_refuse_boxes():
    model = build_sam(get_spec("fastsam3d_published_h6"))
    with pytest.raises(ValueError, match="box"):
        model.prompt_encoder((torch.zeros(1, 2, 3), torch.tensor([[2, 3]])), None)


def test_parameter_counts_of_the_published_models():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    student, teacher = build_sam(SPECS["fastsam3d_published_h6"]), build_sam(SPECS["sam_med3d"])
    assert count(student.image_encoder) == 45_639_936
    assert count(student) == 53_224_240
    assert count(teacher.image_encoder) == 92_924_928
    assert len(teacher.state_dict()) == 324 and len(student.state_dict()) == 216


@pytest.mark.parametrize("batch", [1, 3])
def test_prompts_multiplied_with_projections_give_the_same_attention(batch):
    """Few prompts and a whole image, either looking at the other: with the image projected, and without."""
    torch.manual_seed(0)
    layer = CrossAttention(96, 4, 2).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image, placed, prompts = torch.randn(1, 200, 96), torch.randn(1, 200, 96), torch.randn(batch, 5, 96)
    with torch.inference_mode():
        few, many = layer(prompts, placed, image), layer(placed, prompts, prompts)
        torch.testing.assert_close(layer._few_look(prompts, placed, image), few, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer._many_look(placed, prompts, prompts), many, rtol=1e-4, atol=1e-4)
        layer, image, placed, prompts = (x.bfloat16() for x in (layer, image, placed, prompts))
        assert torch.equal(layer(prompts, placed, image), layer._few_look(prompts, placed, image))
        assert torch.equal(layer(placed, prompts, prompts), layer._many_look(placed, prompts, prompts))
        assert (layer(prompts, placed, image) - few).abs().max() < 0.03 * few.abs().max()

"""The TinyViT encoder: published size, the quirks that its weights need, and any image size."""

from dataclasses import replace

import pytest
import torch
from lib.sam.networks.fuse import fused_encoder
from lib.sam.networks.tinyvit import AttentionBlock, TinyVitEncoder, WindowAttention
from lib.sam.spec import TinyVitSpec

from tests.sam.counting import multiply_adds, parameters

PUBLISHED = TinyVitSpec()
SMALL = TinyVitSpec(
    image_size=32, widths=(16, 16, 24, 32), depths=(1, 1, 2, 1), heads=(1, 2, 3, 4), windows=(3, 3, 5, 3), out=8
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    encoder = TinyVitEncoder(SMALL).eval()
    for module in encoder.modules():
        if isinstance(module, WindowAttention):
            torch.nn.init.normal_(module.attention_biases)
            torch.nn.init.normal_(module.norm.bias)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.2)
    return encoder


def test_published_size():
    with torch.device("meta"):
        encoder, image = TinyVitEncoder(PUBLISHED).eval(), torch.zeros(1, 3, 256, 256)
    assert parameters(encoder) == 5_726_740 and len(encoder.state_dict()) == 298
    assert [tuple(stage.shape) for stage in encoder.stages(image)] == [
        (1, 64, 256, 256),
        (1, 128, 128, 128),
        (1, 160, 64, 64),
        (1, 320, 64, 64),
        (1, 320, 64, 64),
    ]
    assert encoder(image).shape == (1, 256, 64, 64) and PUBLISHED.grid == 64
    assert round(multiply_adds(encoder, image), 1) == 35.4


def test_bias_depends_on_the_distance_of_two_tokens():
    attention = WindowAttention(8, 2, 3)
    with torch.no_grad():
        attention.attention_biases.copy_(torch.arange(18.0).reshape(2, 9))
    bias = attention.bias()
    assert bias.shape == (1, 2, 9, 9)
    for query in range(9):
        for key in range(9):
            away_y, away_x = abs(query // 3 - key // 3), abs(query % 3 - key % 3)
            assert bias[0, :, query, key].tolist() == [3 * away_y + away_x, 9 + 3 * away_y + away_x]


def test_bias_follows_the_weights_in_evaluation_mode():
    attention = WindowAttention(8, 2, 3).eval()
    before = attention.bias()
    state = {key: value + 1 for key, value in attention.state_dict().items()}
    attention.load_state_dict(state)
    assert torch.equal(attention.bias(), before + 1)


def test_windows_are_padded_before_the_norm():
    """A padded token is a row of zeros before the norm, so it enters attention as the norm's bias."""
    torch.manual_seed(1)
    attention = WindowAttention(8, 2, 4).eval()
    torch.nn.init.normal_(attention.norm.bias)
    x = torch.randn(1, 3, 4, 8)
    padded = torch.cat([x, torch.zeros(1, 1, 4, 8)], dim=1)
    assert torch.allclose(attention(x), attention(padded)[:, :3], atol=1e-6)
    assert torch.allclose(attention.norm(torch.zeros(8)), attention.norm.bias)


def test_windows_do_not_see_each_other():
    torch.manual_seed(2)
    attention = WindowAttention(8, 2, 4).eval()
    x = torch.randn(2, 8, 4, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(attention(x)[:, :4], attention(changed)[:, :4])


def test_the_convolution_of_a_block_has_no_identity_path():
    block = AttentionBlock(8, 2, 3, 4).eval()
    torch.nn.init.zeros_(block.local_conv.bn.weight)
    for layer in (block.mlp.fc1, block.mlp.fc2):
        torch.nn.init.zeros_(layer.bias)
    assert not block(torch.randn(1, 8, 3, 3)).any()


def test_any_image_size_and_batch(small):
    x = torch.rand(2, 3, 24, 40)
    together = small(x)
    assert together.shape == (2, 8, 6, 10)
    assert torch.allclose(together[1:], small(x[1:]), atol=1e-5)


def test_fused_form_agrees(small):
    fused = fused_encoder(small)
    assert not any("bn" in key for key in fused.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.allclose(fused(x), small(x), atol=1e-5)


def test_every_weight_learns(small):
    small.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    dead = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_strides_are_data():
    coarse = replace(SMALL, stem_strides=(2, 2), merge_strides=(2, 2, 2))
    with torch.device("meta"):
        assert TinyVitEncoder(coarse)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 2, 2)
    assert replace(coarse, image_size=64).grid == 2

"""The RepViT encoder: published sizes, and the fused form against the trained form."""

from dataclasses import replace

import pytest
import torch
from lib.sam.networks import fuse as fusing
from lib.sam.networks.repvit import BranchedDepthwise, RepVitEncoder, SqueezeExcite
from lib.sam.spec import RepVitSpec
from lib.sam.zoo import get_spec2d
from torch import nn

from tests.sam.counting import multiply_adds, parameters

SMALL = RepVitSpec(image_size=64, widths=(16, 24, 32, 40), depths=(3, 1, 2, 2), out=8)


def trained(encoder: RepVitEncoder, seed: int = 0) -> RepVitEncoder:
    """With statistics and weights such as training leaves them."""
    draw = torch.Generator().manual_seed(seed)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.3, generator=draw)
            nn.init.normal_(module.bias, 0, 0.2, generator=draw)
            nn.init.normal_(module.running_mean, 0, 0.3, generator=draw)
            nn.init.uniform_(module.running_var, 0.2, 2, generator=draw)
    return encoder.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return trained(RepVitEncoder(SMALL))


def on_meta(spec):
    with torch.device("meta"):
        encoder = RepVitEncoder(spec).eval()
        return encoder, fusing.fuse(encoder), torch.zeros(1, 3, 256, 256)


def test_published_size():
    encoder, fused, image = on_meta(get_spec2d("repmedsam").encoder)
    assert parameters(encoder) == 23_158_920 and len(encoder.state_dict()) == 1461
    assert parameters(fused) == 23_040_480 and len(fused.state_dict()) == 436
    assert round(multiply_adds(encoder, image), 3) == 7.227
    assert round(multiply_adds(fused, image), 3) == 7.076
    stages = encoder.stages(image)
    assert len(stages) == 55
    assert [tuple(stages[i].shape[1:]) for i in (0, 7, 8, 16, 51, 52, 54)] == [
        (80, 64, 64),
        (80, 64, 64),
        (160, 32, 32),
        (320, 16, 16),
        (320, 16, 16),
        (640, 16, 16),
        (640, 16, 16),
    ]
    assert encoder(image).shape == (1, 256, 16, 16)


@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds_fused"),
    [("m0_9", 5.4, 1.6), ("m1_0", 7.1, 2.1), ("m1_1", 8.5, 2.6), ("m1_5", 14.3, 4.2)],
)
def test_sizes_of_the_smaller_rows(name, millions, multiply_adds_fused):
    _, fused, image = on_meta(get_spec2d(f"repmedsam_{name}").encoder)
    assert round(parameters(fused) / 1e6, 1) == millions
    assert round(multiply_adds(fused, image), 1) == multiply_adds_fused
    assert fused(image).shape == (1, 256, 16, 16)


def test_gates_are_at_every_other_block_but_not_at_the_last():
    _, fused, _ = on_meta(get_spec2d("repmedsam_m1_5").encoder)
    gated = "".join("g" if isinstance(f.token_mixer[1], SqueezeExcite) else "." for f in list(fused.features)[1:])
    assert gated == "g.g.." + ".g.g.." + "." + "g." * 12 + "." + "." + "g.g."


def test_fused_form_agrees_and_leaves_the_trained_form_alone(small):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    fused = fusing.fused_encoder(small)
    assert fusing.disagreement(small, fused, torch.rand(2, 3, 64, 96)) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    kinds = {type(module) for module in fused.modules()}
    assert BranchedDepthwise not in kinds and nn.BatchNorm2d not in kinds
    names = set(fused.state_dict())
    assert {"features.0.0.weight", "features.1.token_mixer.0.bias", "features.1.channel_mixer.m.2.weight"} <= names
    for trained_stage, fused_stage in zip(
        small.stages(torch.rand(1, 3, 64, 64)), fused.stages(torch.rand(1, 3, 64, 64))
    ):
        assert trained_stage.shape == fused_stage.shape


def test_fusing_keeps_the_mode_and_uses_the_running_statistics(small):
    fused = fusing.fused_encoder(small.train())
    assert small.training and not fused.training
    assert fusing.disagreement(small, fused) < 1e-5 and small.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fusing_keeps_the_dtype(small, dtype):
    fused = fusing.fuse(small.to(dtype))
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    if dtype == torch.float64:
        assert fusing.disagreement(small, fused) < 1e-13


def test_a_fused_form_that_disagrees_is_refused(small, monkeypatch):
    with torch.no_grad():
        small.features[1].token_mixer[0].bn.running_var.fill_(float("nan"))
    with pytest.raises(ValueError, match="must agree"):
        fusing.fused_encoder(small)
    small = trained(RepVitEncoder(SMALL))
    forgets_the_identity = BranchedDepthwise.fused
    monkeypatch.setattr(BranchedDepthwise, "fused", lambda self: _without_bias(forgets_the_identity(self)))
    with pytest.raises(ValueError, match="must agree"):
        fusing.fused_encoder(small)


def _without_bias(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.bias)
    return conv


def test_branches_add_up():
    torch.manual_seed(3)
    mixer = trained(BranchedDepthwise(5))
    x = torch.randn(1, 5, 7, 6)
    assert torch.allclose(mixer(x), mixer.fused()(x), atol=1e-5)


def test_fresh_channel_mixers_start_as_the_identity():
    mixer = RepVitEncoder(SMALL).features[1].channel_mixer
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(mixer(x), x)


def test_every_weight_learns(small):
    small.train()(torch.rand(2, 3, 64, 64)).square().mean().backward()
    dead = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.any()]
    # A shift of all pixels before a batch norm is removed by it, so these biases have no gradient but rounding.
    assert [name for name in dead if not name.endswith("conv1.bias")] == []


def test_strides_are_data():
    whole = replace(SMALL, strides=(2, 2, 2))
    with torch.device("meta"):
        assert RepVitEncoder(whole)(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 2, 2)
    assert whole.grid == 2 and SMALL.grid == 4

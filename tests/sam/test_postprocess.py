"""Parts of a mask without a click; the interpolation of logits."""

import numpy as np
import pytest
import torch
from lib.sam.networks.layers import trilinear
from lib.sam.postprocess import connected_to_clicks, steadied
from lib.sam.zoo import get_spec


def _two_parts():
    logits = np.full((8, 8, 8), -3.0, np.float32)
    logits[1:3, 1:3, 1:3] = 2.0
    logits[5:7, 5:7, 5:7] = 1.0
    return logits


def test_only_parts_with_a_click_stay():
    out = connected_to_clicks(_two_parts(), np.array([[1, 1, 1]]))
    assert (out[1:3, 1:3, 1:3] == 2).all() and not (out[5:7, 5:7, 5:7] > 0).any()
    assert not ((out > 0) & ~(_two_parts() > 0)).any()


def test_a_click_beside_a_part_and_clicks_on_both_keep_them():
    assert (connected_to_clicks(_two_parts(), np.array([[3, 3, 3], [6, 6, 6]])) > 0).sum() == 16


def test_nothing_is_dropped_without_a_click_near_any_part():
    logits = _two_parts()
    assert np.array_equal(connected_to_clicks(logits, np.array([[0, 7, 0]])), logits)
    assert np.array_equal(connected_to_clicks(logits, np.zeros((0, 3), int)), logits)


@pytest.mark.parametrize(("cells", "size"), [(32, 128), (8, 32), (5, 13)])
def test_upsampling_is_the_published_interpolation(cells, size):
    logits = torch.randn(cells, cells, cells, generator=torch.Generator().manual_seed(cells))
    expected = torch.nn.functional.interpolate(
        logits[None, None], size=(size,) * 3, mode="trilinear", align_corners=False
    )
    torch.testing.assert_close(trilinear(logits, size), expected[0, 0], rtol=0, atol=1e-5)


def test_a_click_takes_away_where_it_is_and_little_far_away_and_adds_anywhere():
    spec = get_spec("fastsam3d_compact")
    clicks = torch.tensor([[66.0, 66.0, 66.0], [5.0, 120.0, 5.0]])
    before, after = torch.ones(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32)
    out = steadied(before, after, clicks, False, spec)
    assert out[0, 0, 16, 16, 16] < 0.01 and out[0, 0, 1, 30, 1] < 0.02
    assert float(out[0, 0, 31, 0, 31]) == pytest.approx(spec.steady)
    assert torch.equal(steadied(after, before, clicks, False, spec), before)


def test_a_background_click_only_takes_away():
    spec, click = get_spec("fastsam3d_compact"), torch.tensor([[66.0, 66.0, 66.0]])
    before = torch.randn(1, 1, 32, 32, 32)
    after = before + torch.randn_like(before)
    out = steadied(before, after, click, True, spec)
    assert bool((out <= before).all())
    assert float(out[0, 0, 16, 16, 16]) == pytest.approx(
        float(min(before[0, 0, 16, 16, 16], after[0, 0, 16, 16, 16])), abs=0.05
    )

"""Parts of a mask without a click; the interpolation of logits."""

import numpy as np
import pytest
import torch
from lib.sam.networks.layers import trilinear
from lib.sam.postprocess import SMALL_PIECE, connected_to_clicks, near_clicks, small_pieces, steadied
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


def half_space():
    """Logits (1, 1, 32, 32, 32) of a mask that fills the lower half along axis 0; cells of 4 voxels."""
    return torch.where(torch.arange(32) < 16, 1.0, -1.0)[None, None, :, None, None].expand(1, 1, 32, 32, 32).clone()


def test_a_click_counts_where_it_is_and_little_far_away():
    spec = get_spec("fastsam3d_compact")
    clicks = torch.tensor([[66.0, 66.0, 66.0], [5.0, 120.0, 5.0]])
    before = half_space()
    for change in (4.0, -4.0):
        after = before + change
        out = steadied(before, after, clicks, False, spec)
        assert abs(out - after)[0, 0, 16, 16, 16] < 0.2 and abs(out - after)[0, 0, 1, 30, 1] < 0.2
        assert abs(out - before)[0, 0, 31, 0, 31] < 4 * (1 - spec.steady) + 0.3


def test_a_click_deep_inside_counts_farther_than_one_at_the_border():
    mask = half_space()[0, 0] > 0
    at = {voxel: near_clicks(mask, torch.tensor([[voxel, 65.5, 65.5]]), 4) for voxel in (5.5, 53.5, 61.5)}
    cell = {voxel: int(voxel // 4) for voxel in at}
    beside = {voxel: float(near[cell[voxel], 16, 20]) for voxel, near in at.items()}  # 16 voxels away along axis 2
    assert beside[5.5] > beside[53.5] > beside[61.5] > 0
    assert beside[61.5] == pytest.approx(
        np.exp(-(16**2) / (2 * 6**2)), rel=1e-3
    )  # the border's next cell is 4 voxels away
    assert beside[53.5] == pytest.approx(np.exp(-(16**2) / (2 * 18**2)), rel=1e-3)


def test_what_a_click_on_the_object_adds_counts_farther_than_what_it_takes_away():
    spec, click, before = get_spec("fastsam3d_compact"), torch.tensor([[61.5, 65.5, 65.5]]), half_space()
    added = steadied(before, before + 1, click, False, spec) - before
    taken = before - steadied(before, before - 1, click, False, spec)
    torch.testing.assert_close(added[0, 0, 15, 16, 16], taken[0, 0, 15, 16, 16])
    assert added[0, 0, 15, 16, 20] > taken[0, 0, 15, 16, 20] + 0.1
    expected = 1 - spec.steady * (1 - np.exp(-(16**2) / (2 * 12**2)))
    assert float(added[0, 0, 15, 16, 20]) == pytest.approx(expected, rel=1e-3)


def test_without_a_border_a_click_counts_as_far_as_any():
    full = near_clicks(torch.ones(32, 32, 32, dtype=torch.bool), torch.tensor([[65.5, 65.5, 65.5]]), 4)
    assert float(full[16, 16, 20]) == pytest.approx(np.exp(-(16**2) / (2 * 24**2)), rel=1e-3)
    assert bool((near_clicks(full > 2, torch.tensor([[65.5, 65.5, 65.5]]), 4) == full).all())


def test_a_background_click_only_takes_away():
    spec, click = get_spec("fastsam3d_compact"), torch.tensor([[66.0, 66.0, 66.0]])
    before = torch.randn(1, 1, 32, 32, 32)
    after = before + torch.randn_like(before)
    out = steadied(before, after, click, True, spec)
    assert bool((out <= before).all())
    assert float(out[0, 0, 16, 16, 16]) == pytest.approx(
        float(min(before[0, 0, 16, 16, 16], after[0, 0, 16, 16, 16])), abs=0.05
    )


def with_a_tail(length):
    """Masks (32, 32, 32) bool before and after a click on a tail of so many cells along axis 1, and the click's cell on it."""
    before = np.zeros((32, 32, 32), dtype=bool)
    before[8:16, 0:8, 8:16] = True
    after = before.copy()
    before[10:12, 8 : 8 + length, 10:12] = True
    return before, after, np.array([[10, 9, 10]])


def test_a_small_piece_that_the_network_takes_away_at_a_click_goes_whole():
    spec = get_spec("fastsam3d_compact")
    before, after, cells = with_a_tail(20)
    logits = [torch.from_numpy(np.where(m, 4.0, -4.0).astype(np.float32))[None, None] for m in (before, after)]
    logits[1][0, 0, 8:16, 0:2, 8:16] = -4  # far away the network changes its mind: not at the click
    shown = steadied(*logits, torch.from_numpy(4 * cells + 1).float(), True, spec)[0, 0].numpy() > 0
    assert not shown[10:12, 8:28, 10:12].any()
    assert shown[8:16, 0:8, 8:16].all()


def test_a_large_piece_or_one_without_a_click_does_not():
    before, after, cells = with_a_tail(20)
    assert 80 <= SMALL_PIECE * before.sum()
    assert np.array_equal(small_pieces(before, after, cells), before & ~after)
    assert not small_pieces(before, after, np.array([[20, 20, 20]])).any()
    assert not small_pieces(
        before, after & (np.arange(32) < 12), cells
    ).any()  # with a third of the body it is one large piece
    assert not small_pieces(before, before, cells).any()
    assert not small_pieces(after & False, after & False, cells).any()

"""Normalisation of patches."""

import numpy as np
import pytest
import torch
from lib.sam.intensity import grey_range, is_ct, looks_like_lung, normalise, percentile_rank, to_8bit, znorm_positive


def _patch(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 50.0, (16, 16, 16)).astype(np.float32) - 30


def test_znorm_uses_positive_voxels_and_unbiased_deviation():
    x = torch.from_numpy(_patch())
    positive = x[x > 0]
    expected = (x - positive.mean()) / positive.std(unbiased=True)
    torch.testing.assert_close(torch.from_numpy(znorm_positive(x.numpy())), expected)


@pytest.mark.parametrize("mode", ["znorm_positive", "percentile_rank"])
@pytest.mark.parametrize("value", [0.0, -5.0, 7.0])
def test_constant_patches_stay_finite(mode, value):
    out = normalise(np.full((8, 8, 8), value, np.float32), None, mode)
    assert np.isfinite(out).all()


def test_rank_channel_ignores_monotone_changes():
    x = _patch()
    a = percentile_rank(x)[1]
    b = percentile_rank(np.sign(x) * np.abs(x) ** 1.7 * 3 + 1000)[1]
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_nodes_outside_the_volume_do_not_count():
    x, inside = _patch(), np.ones((16, 16, 16), bool)
    inside[:8] = False
    poisoned = x.copy()
    poisoned[:8] = 1e6
    np.testing.assert_array_equal(percentile_rank(poisoned, inside), percentile_rank(x, inside))
    assert (percentile_rank(poisoned, inside)[:, :8] == -1).all()


def test_range_and_shape():
    out = percentile_rank(_patch())
    assert out.shape == (2, 16, 16, 16) and out.dtype == np.float32
    assert out.min() >= -1 and out.max() <= 1


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="zscore"):
        normalise(_patch(), None, "zscore")


# ------------------------------------------------------------------ to 8 bits, for the models for images


def ct(shape=(20, 20, 20)) -> np.ndarray:
    values = np.random.default_rng(0).normal(40, 30, shape).astype(np.int16)
    values[:5] = -1000
    return values


def test_a_ct_is_cut_to_the_soft_tissue_window():
    assert grey_range(ct()) == (-160, 240)
    padded = ct()
    padded[:, :2] = -3024
    assert grey_range(padded) == (-160, 240)
    assert grey_range(ct(), "lung") == (-910, 590)


def test_lung_is_told_from_soft_tissue_and_outer_air_in_ct_alone():
    lung, air = np.full((6, 6, 1), -820, np.int16), np.full((6, 6, 1), -1000, np.int16)
    assert looks_like_lung(lung, 0.5)
    assert not looks_like_lung(air, 0.2)
    assert not looks_like_lung(ct()[8:], 0.2)
    partly = np.concatenate([lung, np.full((18, 6, 1), 40, np.int16)])
    assert looks_like_lung(partly, 0.2) and not looks_like_lung(partly, 0.5)
    assert is_ct(grey_range(ct()))
    assert not is_ct(grey_range(ct() + 1000))
    assert not is_ct((-910, 590))  # a window that somebody chose


def test_other_scans_are_cut_to_percentiles_of_what_is_not_zero():
    values = np.random.default_rng(0).gamma(4, 100, (30, 30, 30)).astype(np.float32)
    values[:20] = 0
    low, high = grey_range(values)
    assert (low, high) == pytest.approx(tuple(np.percentile(values[20:], (0.5, 99.5))))
    assert grey_range(ct(), "percentiles")[0] == -1000


def test_eight_bits_stay_as_they_are():
    image = np.random.default_rng(0).integers(3, 90, (12, 14, 3), dtype=np.uint8)
    assert to_8bit(image, *grey_range(image)) is image
    assert grey_range(image, "percentiles")[0] > 0


def test_a_large_scan_is_sampled():
    values = np.random.default_rng(0).normal(500, 50, (160, 160, 160)).astype(np.float32)
    assert grey_range(values) == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))), abs=2)


@pytest.mark.parametrize("value", [0, 7, -30000])
def test_a_scan_of_one_value(value):
    values = np.full((4, 4, 4), value, np.int16)
    low, high = grey_range(values)
    assert high > low
    assert not to_8bit(values, low, high).any()


def test_scaling_truncates_and_never_overflows():
    assert to_8bit(np.array([-5.0, 0, 1, 2, 400, 1e30]), 0, 400).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_8bit(np.array([0, 30000, 65535], np.uint16), 0.0, 65535.0).tolist() == [0, 116, 255]


def test_an_unknown_window_is_named():
    with pytest.raises(ValueError, match="one of auto, soft tissue, lung.*got 'liver'"):
        grey_range(ct(), "liver")

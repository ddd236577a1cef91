"""Normalisation of patches."""

import numpy as np
import pytest
import torch
from lib.sam.intensity import normalise, percentile_rank, znorm_positive


def _patch(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 50.0, (16, 16, 16)).astype(np.float32) - 30


def test_znorm_uses_positive_voxels_and_unbiased_deviation():
    x = torch.from_numpy(_patch())
    positive = x[x > 0]
    torch.testing.assert_close(znorm_positive(x), (x - positive.mean()) / positive.std(unbiased=True))


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

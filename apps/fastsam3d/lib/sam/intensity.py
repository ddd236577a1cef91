"""Normalisation of patch intensities: the one copy for serving, training and evaluation.

The functions for patches take the cropped patch and say nothing about modality; `inside` marks the nodes that lie in the
source volume. The models for images work on 8 bits, to which `grey_range` and `to_8bit` bring a scan.
"""

from __future__ import annotations

import numpy as np

AUTO, PERCENTILES = "auto", "percentiles"
CT_WINDOWS = {"soft tissue": (40.0, 400.0), "lung": (-160.0, 1500.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0)}
"""Level and width in Hounsfield units, as published for MedSAM's CT images."""

WINDOWS = (AUTO, *CT_WINDOWS, PERCENTILES)
_AERATED = (-980.0, -400.0)  # Hounsfield units of lung tissue, between outer air and fat
_AIR = (-1500.0, -700.0)  # the smallest voxel of a CT, padding apart
BINS = 1024
"""Equal steps of intensity in which ranks are counted."""

INTENSITY_SAMPLE = 400_000
"""Of a patch at least so many voxels, at equal distances, tell its range and ranks."""


def znorm_positive(x: np.ndarray) -> np.ndarray:
    """Published rule: z-normalise with mean and unbiased standard deviation of all values > 0 of the whole array.

    A patch without two differing positive values is only shifted by its mean. Shape is kept; float32.
    """
    positive = x[x > 0]
    deviation = positive.std(dtype=np.float64, ddof=1) if positive.size > 1 else 0.0
    if deviation == 0.0:
        return np.subtract(x, x.mean(dtype=np.float64), dtype=np.float32)
    shifted = np.subtract(x, positive.mean(dtype=np.float64), dtype=np.float32)
    return np.divide(shifted, np.float32(deviation), out=shifted)


def percentile_rank(x: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Two channels: linear between the 0.5th and 99.5th percentile, and rank (histogram equalisation), both in [-1, 1].

    The rank channel hardly changes under monotone changes of intensity (it is computed over 1,024 equal bins), which
    makes CT, MR and PET look alike; the linear channel keeps the true contrast. Both statistics come from nodes inside
    the volume; the others become -1.

    Args:
        x: (S, S, S) finite float32.
        inside: (S, S, S) bool, or None for all.

    Returns:
        (2, S, S, S) float32.
    """
    if inside is not None and inside.all():
        inside = None
    sample = (x if inside is None else x[inside]).ravel()
    sample = sample[:: max(1, sample.size // INTENSITY_SAMPLE)]
    out = np.empty((2, *x.shape), dtype=np.float32)
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5))) if sample.size > 1 else (0.0, 0.0)
    if not high > low and sample.size:
        low, high = float(sample.min()), float(sample.max())
    if not high > low:
        out.fill(-1.0)
        return out
    unit = np.subtract(x, np.float32(low), out=out[0])
    unit *= np.float32(1.0 / (high - low))
    np.clip(unit, 0.0, 1.0, out=unit)
    counts = np.bincount((((sample - low) / (high - low)).clip(0, 1) * (BINS - 1)).astype(np.int64), minlength=BINS)
    rank = ((np.cumsum(counts) - 0.5 * counts) / counts.sum() * 2 - 1).astype(np.float32)
    index = np.multiply(unit, np.float32(BINS - 1), out=out[1]).astype(np.int16)
    unit *= 2.0
    unit -= 1.0
    np.take(rank, index, out=out[1], mode="clip")  # without its check of every index, which all lie in range
    if inside is not None:
        out[:, ~inside] = -1.0
    return out


def padding_floor(volume: np.ndarray) -> float | None:
    """The smallest true intensity of a scan that is padded with a value far below it, or None.

    CT reconstructions pad what lies outside their circle with -2000, -3024 or -32768. Such a value would take up most of
    any intensity range. It counts as padding when it is the minimum, below -1100 (so never air), held by at least 0.5 %
    of the voxels, and as far below the rest as a quarter of the rest's own range, with nearly nothing between. The
    patch is then raised to the value returned. Negative intensities in general need no care: nothing here assumes
    that values are positive, except the published normalisation, whose statistics are those of the positive ones.

    Args:
        volume: (I, J, K), any real dtype; about a million voxels of it are looked at.
    """
    step = max(1, round((volume.size / 1e6) ** (1 / 3)))
    sample = volume[::step, ::step, ::step]
    floor = sample.min()
    if not floor < -1100:
        return None
    rest = sample[sample > floor]
    if rest.size < 100 or sample.size - rest.size < 0.005 * sample.size:
        return None
    low, high = np.percentile(rest, (0.5, 99.5))
    gap = float(low) - float(floor)
    between = float((rest < floor + 0.5 * gap).mean())
    if gap < 0.25 * (float(high) - float(low)) or between > 0.001:
        return None
    return float(rest[rest >= floor + 0.5 * gap].min())


def grey_range(volume: np.ndarray, window: str = AUTO) -> tuple[float, float]:
    """The intensities that become 0 and 255 for the models for images, as published for LiteMedSAM.

    CT is cut to a window in Hounsfield units, other scans to the 0.5th and 99.5th percentile of their non-zero voxels
    (of the whole scan, so that all its slices are treated alike). Images of 8 bits are taken as they are.

    Args:
        volume: any shape and real dtype; of large ones about a million voxels are looked at.
        window: "auto" (8 bits as they are; a scan with air at about -1000 is CT and gets the soft-tissue window;
            others percentiles), "percentiles", or a name of CT_WINDOWS.

    Returns:
        low < high.

    Raises:
        ValueError: an unknown window.
    """
    if window in CT_WINDOWS:
        level, width = CT_WINDOWS[window]
        return level - width / 2, level + width / 2
    if window not in (AUTO, PERCENTILES):
        raise ValueError(f"a window must be one of {', '.join(WINDOWS)}, got {window!r}")
    if window == AUTO and volume.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, round((volume.size / 1e6) ** (1 / volume.ndim)))
    sample = volume[(slice(None, None, step),) * volume.ndim]
    floor = padding_floor(volume) if volume.ndim == 3 else None
    sample = sample if floor is None else sample[sample >= floor]
    if window == AUTO and _AIR[0] <= float(sample.min()) <= _AIR[1]:
        return grey_range(volume, "soft tissue")
    nonzero = sample[sample != 0]
    low, high = (float(v) for v in np.percentile(nonzero if nonzero.size else sample, (0.5, 99.5)))
    if not high > low:
        low, high = float(sample.min()), float(sample.max())
    return (low, high) if high > low else (low, low + 1.0)


def looks_like_lung(asked: np.ndarray, share: float) -> bool:
    """Whether prompts point at aerated lung, which is as black as air in the soft-tissue window.

    Args:
        asked: Hounsfield units in a box or around a click. share: of the voxels that must have the density of lung.
    """
    return asked.size > 0 and float(aerated(asked).mean()) >= share


def is_ct(limits: tuple[float, float]) -> bool:
    """Whether these are the limits that `grey_range` chooses by itself for a CT, and for nothing else."""
    level, width = CT_WINDOWS["soft tissue"]
    return limits == (level - width / 2, level + width / 2)


def aerated(values: np.ndarray) -> np.ndarray:
    """Which Hounsfield units are those of lung that holds air; bool, of the same shape."""
    low, high = _AERATED
    return (values > low) & (values < high)


def to_8bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Cuts to [low, high] and scales to 0..255 (uint8, truncated as published); `grey_range` gives both limits."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return values
    scaled = (np.clip(values.astype(np.float32), low, high) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.minimum(scaled, 255.0).astype(np.uint8)


def normalise(patch: np.ndarray, inside: np.ndarray | None, mode: str) -> np.ndarray:
    """Normalised network input (channels, S, S, S) float32 of a patch (S, S, S).

    Args:
        patch: raw intensities; nodes outside the volume hold 0.
        inside: (S, S, S) bool or None.
        mode: "znorm_positive" (published) or "percentile_rank" (the compact models).
    """
    if mode == "znorm_positive":
        return znorm_positive(patch)[None]
    if mode == "percentile_rank":
        return percentile_rank(patch, inside)
    raise ValueError(f"intensity must be znorm_positive or percentile_rank, got {mode!r}")

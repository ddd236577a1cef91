"""What the scanner adds to the true HU: the table, blur, noise with a CT's spectrum, streaks and cupping."""

from __future__ import annotations

import numpy as np
from phantom_shapes import coverage
from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq
from scipy.ndimage import gaussian_filter

BLUR_MM = 0.75  # standard deviation of the in-plane point spread
LOW_HU, HIGH_HU = -1024, 3071  # the range of a 12-bit scanner


def paint_table(canvas, body):
    """A curved couch under the back: thin shell, foam inside. It does not follow the patient's displacement.

    Args:
        canvas: the Canvas to paint on. body: (I, J, K) field of the body, to lay the couch against its lowest point.
    """
    x, y, _ = canvas.still_points()
    back = float(y[body < 0].min()) if np.any(body < 0) else -120.0
    top = back - 3 + (x / 34) ** 2
    couch = np.maximum(y - top, np.maximum(top - 0.6 * (x / 34) ** 2 - 26 - y, np.abs(x) - 205))
    outside = coverage(body, canvas.reach)
    for field, hu in ((couch, -180), (couch + 2.5, -930)):
        part = coverage(field.astype(np.float32), canvas.reach) * (1 - outside)
        canvas.hu += part * (hu - canvas.hu)


def scan(canvas, body, spacing, noise, rng):
    """Turn painted HU into a scanner's integers.

    Args:
        canvas: painted Canvas (its `hu` is used up). body: (I, J, K) field of the body. spacing: (3,) mm; axes I and J are in the slice.
        noise: standard deviation in HU at the middle of the body.

    Returns:
        (I, J, K) int16, LOW_HU to HIGH_HU.
    """
    sigma = BLUR_MM / np.asarray(spacing)
    hu = gaussian_filter(canvas.hu, (sigma[0], sigma[1], 0), truncate=3)
    depth = np.clip(-body / 90, 0, 1).astype(np.float32)
    grain = _slice_noise(hu.shape, spacing, rng)
    grain *= noise * (0.5 + 0.5 * depth)
    # Few photons cross the long lateral way: thin horizontal streaks where the body is thick.
    streak = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (45 / spacing[0], 0.5, 0.3), truncate=2)
    streak *= 0.3 * noise / max(float(streak.std()), 1e-6)
    hu += grain + depth * (streak - 4 * depth)
    return np.clip(np.rint(hu), LOW_HU, HIGH_HU).astype(np.int16)


def _slice_noise(shape, spacing, rng):
    """Unit-variance noise whose in-plane spectrum rises like a ramp and rolls off, as filtered back-projection leaves it."""
    fx, fy = fftfreq(shape[0], spacing[0])[:, None], rfftfreq(shape[1], spacing[1])[None]
    frequency = np.sqrt(fx**2 + fy**2)
    response = ((frequency + 0.02) * np.exp(-((frequency / 0.3) ** 2))).astype(np.float32)
    out = np.empty(shape, np.float32)
    for k in range(shape[2]):  # slice by slice: little memory, and slices are independent
        white = rng.standard_normal(shape[:2], dtype=np.float32)
        out[:, :, k] = irfft2(rfft2(white) * response, s=shape[:2])
    return out / max(float(out.std()), 1e-6)

"""A structure that no generic model knows: a ball of bright and dark layers, as some tumours are, put into phantoms.

One click lies on one layer, and what looks like the click is that layer. That the layers belong together can only be
learned from annotations. Written down before any training was tried on it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

NAME = "layered mass"
VALUE = 10
_LAYER_MM = 7.0
_BRIGHT_HU, _DARK_HU = 170.0, -60.0
_SOFT_TISSUE_HU = (-140, 220)


def add_layered_mass(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Puts one ellipsoid of 18 to 26 mm radius into soft tissue, away from air and from the body's surface.

    Args:
        image: (I, J, K) HU. labels: (I, J, K). affine: (4, 4) to mm.

    Returns:
        New image (int16) and labels (uint8); the mass has VALUE and replaces what was there.
    """
    rng = np.random.default_rng([seed, 4711])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    soft = ndimage.uniform_filter((image > _SOFT_TISSUE_HU[0]).astype(np.float32), 5) > 0.99
    depth = ndimage.distance_transform_edt(np.pad(soft, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    radii = rng.uniform(18, 26, 3)
    places = np.argwhere(depth > 0.8 * min(radii.max(), 0.9 * depth.max()))
    centre = places[rng.integers(len(places))]
    axes = np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij")
    offset = np.stack([(g - c) * s for g, c, s in zip(axes, centre, spacing)])
    ball = sum((o / r) ** 2 for o, r in zip(offset, radii)) <= 1
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    phase = np.tensordot(direction, offset, 1) / _LAYER_MM + rng.uniform(0, 2)
    layers = np.where(np.floor(phase) % 2 == 0, _BRIGHT_HU, _DARK_HU) + rng.normal(0, 12, image.shape)
    mixed = np.where(ball, layers, image)
    smooth = np.where(ndimage.binary_dilation(ball), ndimage.gaussian_filter(mixed.astype(np.float32), 0.5), image)
    return np.round(smooth).astype(np.int16), np.where(ball, VALUE, labels).astype(np.uint8)

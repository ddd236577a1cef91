"""Connected parts of masks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..sampling import bounding_box


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected part of a bool array (I, J, K)."""
    window = bounding_box(mask)
    if window is None:
        return mask
    parts, n = ndimage.label(mask[window], structure=np.ones((3, 3, 3)))
    out = np.zeros_like(mask)
    if n > 1:
        out[window] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    else:
        out[window] = mask[window]
    return out

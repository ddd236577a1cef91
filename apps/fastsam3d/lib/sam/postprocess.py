"""What is taken from the network's mask before it is shown. Nothing is ever added."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_CORNERS = np.ones((3, 3, 3))


def connected_to_clicks(logits: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Without the parts of the mask that hold no click on the object.

    Parts are 26-connected sets of cells above 0. A click counts for every part within one cell of it. Where no part is
    near a click the logits come back as they were. A second part of an object is kept by a click on it.

    Args:
        logits: (m, m, m) float32.
        cells: (N, 3) cells of the clicks on the object.

    Returns:
        (m, m, m); the cells of parts without a click are -1.
    """
    parts, count = ndimage.label(logits > 0, structure=_CORNERS)
    if count < 2 or not len(cells):
        return logits
    keep: set[int] = set()
    for cell in cells:
        near = parts[tuple(slice(max(0, c - 1), c + 2) for c in cell)]
        keep |= set(near[near > 0].tolist())
    if not keep:
        return logits
    return np.where((parts > 0) & ~np.isin(parts, list(keep)), np.float32(-1), logits)

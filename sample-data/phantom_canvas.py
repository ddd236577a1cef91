"""The voxels the phantom is painted on: body coordinates of every voxel, HU, labels and the space already taken."""

from __future__ import annotations

import numpy as np
from phantom_shapes import FAR, Ripple, blend_max, coverage
from scipy.ndimage import gaussian_filter

WARP_MM = 3.0  # standard deviation of the smooth random displacement of the whole body, along each axis


class Canvas:
    """HU and labels of a voxel lattice, with painters that blend by partial volume.

    Attributes:
        shape: (I, J, K).
        to_body: (4, 4) float64, voxel index ijk -> body mm, before the random displacement of the body.
        reach: mm, the sum of a voxel's edges: what lies farther from a surface does not touch it.
        hu: (I, J, K) float32. labels: (I, J, K) uint8.
        taken: (I, J, K) float32 field, mm: distance to the nearest solid structure painted with `take=True` (exact only nearby).
        fine, coarse: (I, J, K) float32 random textures of unit standard deviation, about 4 and 14 mm from blob to blob.
    """

    def __init__(self, shape, to_body, rng):
        self.shape, self.to_body = tuple(shape), np.asarray(to_body, float)
        self.reach = float(np.linalg.norm(self.to_body[:3, :3], axis=0) @ [1, 1, 1])
        self._to_index = np.linalg.inv(self.to_body)
        still = self.still_points()
        self._xyz = [a.copy() for a in np.broadcast_arrays(*still)]
        push = rng.normal(size=(5, 3)) * WARP_MM * np.sqrt(2 / 5)
        for wave, size in zip(Ripple.random(rng, 1.0, (140, 320), count=5).waves, push.astype(np.float32)):
            wave[4] = 1.0
            swing = Ripple(wave[None])(*still)
            for a, s in zip(self._xyz, size):
                a += s * swing
        self.hu = np.full(self.shape, -1000, np.float32)
        self.labels = np.zeros(self.shape, np.uint8)
        self.taken = np.full(self.shape, FAR, np.float32)
        self.fine, self.coarse = (self._texture(rng, size) for size in (1.8, 6.0))
        self.everything = tuple(slice(0, n) for n in self.shape)

    def _texture(self, rng, sigma_mm):
        """White noise blurred by `sigma_mm`."""
        spacing = np.linalg.norm(self.to_body[:3, :3], axis=0)
        white = rng.standard_normal(self.shape, dtype=np.float32)
        out = gaussian_filter(white, sigma_mm / spacing, truncate=3, mode="wrap")
        return (out / out.std()).astype(np.float32)

    def still_points(self):
        """Undisplaced body coordinates (mm) x, y, z of all voxels, (I, J, K) float32 each: what stands outside the patient."""
        i, j, k = np.ogrid[tuple(slice(0, n) for n in self.shape)]
        rows = self.to_body.astype(np.float32)
        return [(r[0] * i + r[1] * j + r[2] * k + r[3]).astype(np.float32) for r in rows[:3]]

    def points(self, block=None):
        """Body coordinates (mm) x, y, z of a block's voxels."""
        block = block or self.everything
        return tuple(a[block] for a in self._xyz)

    def block(self, low, high):
        """The slices that hold every voxel of the body box `low`..`high` (mm), or None if it misses the lattice."""
        corners = np.array(np.meshgrid(*zip(low, high), indexing="ij")).reshape(3, -1)
        ijk = self._to_index[:3, :3] @ corners + self._to_index[:3, 3:]
        grow = 3 * WARP_MM / np.linalg.norm(self.to_body[:3, :3], axis=0) + 1
        first = np.maximum(np.floor(ijk.min(1) - grow).astype(int), 0)
        last = np.minimum(np.ceil(ijk.max(1) + grow).astype(int) + 1, self.shape)
        return tuple(slice(a, b) for a, b in zip(first, last)) if np.all(last - first >= 2) else None

    @staticmethod
    def overlap(a, b):
        """The common part of two blocks, or None."""
        if a is None or b is None:
            return None
        both = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b))
        return both if all(s.stop > s.start for s in both) else None

    @staticmethod
    def block_shape(block):
        return tuple(s.stop - s.start for s in block)

    def place(self, shape, within=None, margin=0.0, gap=None, width=5.0, take=True):
        """Evaluate a shape, squeezed into the space that is left.

        Args:
            shape: a Shape. within: (I, J, K) field that it must stay inside of by `margin` mm, or None.
            gap: mm to keep from everything taken so far; None ignores it. width: mm over which the impressions are rounded.
            take: whether it takes its space in turn.

        Returns:
            (field, block), or (None, None) when the shape lies outside the lattice.
        """
        block = self.block(shape.low, shape.high)
        if block is None:
            return None, None
        field = shape.evaluate(self, block)
        if within is not None:
            field = blend_max(field, within[block] + np.float32(margin), width)
        if gap is not None:
            field = blend_max(field, np.float32(gap) - self.taken[block], width)
        if take:
            self.taken[block] = np.minimum(self.taken[block], field)
        return field, block

    def paint(self, field, hu, block=None, label=None, fine=0.0, coarse=0.0):
        """Blend HU where `field` is negative, by partial volume.

        Args:
            field: mm on the block's voxels, or None (then nothing happens). hu: number, or array of the block.
            block: slices; None is the whole lattice. label: value for voxels more than half covered; None leaves them.
            fine, coarse: HU of the two random textures to add.
        """
        if field is None:
            return
        block = block or self.everything
        part = coverage(field, self.reach)
        for texture, size in ((self.fine, fine), (self.coarse, coarse)):
            if size:
                hu = hu + np.float32(size) * texture[block]
        self.hu[block] += part * (hu - self.hu[block])
        if label is not None:
            self.labels[block][part > 0.5] = label

    def add(self, shape, hu, label=None, fine=0.0, coarse=0.0, **place):
        """`place` and `paint` in one; returns (field, block)."""
        field, block = self.place(shape, **place)
        self.paint(field, hu, block, label, fine, coarse)
        return field, block

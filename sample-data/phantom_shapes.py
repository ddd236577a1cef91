"""Smooth shapes as signed fields: the vocabulary the phantom's anatomy is written in.

A shape is a callable `shape(x, y, z)` on float32 arrays of body coordinates (`_body`: mm, axes to the patient's Right, Anterior,
Superior, origin in the body axis at the level of the vertebra L1). It returns about the distance to its surface in mm, negative
inside. Fields are exact near the surface to first order only; `coverage` divides by the gradient, so that is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import CubicSpline

FAR = np.float32(1e3)  # "outside, and not near": the value of a field where it was not computed


def blend_min(a, b, width):
    """Union of two fields whose seam is rounded over `width` mm (a quadratic bridge; exact where they differ by more)."""
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - h * h * (width / 4)


def blend_max(a, b, width):
    """Intersection of two fields with a seam rounded over `width` mm."""
    return -blend_min(-a, -b, width)


def norm_field(qx, qy, qz, radii, power):
    """First-order distance to the surface |x/rx|^n + |y/ry|^n + |z/rz|^n = 1.

    Args:
        qx, qy, qz: centred coordinates in mm; qz may be None for an infinite column along z.
        radii: semi-axes in mm, scalars or arrays that broadcast; two of them for a column.
        power: exponent n; 2 is an ellipsoid, larger is boxier.
    """
    axes = [(q, r) for q, r in zip((qx, qy, qz), radii) if q is not None]
    unit = [np.abs(q) / r + np.float32(1e-4) for q, r in axes]
    total = sum(u**power for u in unit)
    level = total ** (1.0 / power)
    slope = np.sqrt(sum((u ** (power - 1) / r) ** 2 for u, (_, r) in zip(unit, axes)))
    return (level - 1.0) * level ** (power - 1) / slope


def rotation(degrees_xyz):
    """3x3 rotation about the x, then y, then z axis (degrees)."""
    a, b, c = np.radians(degrees_xyz)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


@dataclass(frozen=True)
class Ripple:
    """A smooth random function of position: a few plane waves. Added to a field it dents and bulges the surface.

    Attributes:
        waves: (N, 5) rows of wave vector x, y, z (rad/mm), phase (rad), amplitude.
    """

    waves: np.ndarray

    @classmethod
    def random(cls, rng, amplitude, wavelengths, count=6):
        """Draw `count` waves of random direction; `amplitude` is the standard deviation of the sum, `wavelengths` = (low, high) mm."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        k = direction * (2 * np.pi / rng.uniform(*wavelengths, size=(count, 1)))
        size = np.full((count, 1), amplitude * np.sqrt(2.0 / count))
        return cls(np.hstack([k, rng.uniform(0, 2 * np.pi, (count, 1)), size]).astype(np.float32))

    def __call__(self, x, y, z):
        out = np.float32(0)
        for kx, ky, kz, phase, size in self.waves:
            out = out + size * np.sin(kx * x + ky * y + (kz * z + phase))
        return out


class Shape:
    """A field with the box (`low`, `high`, mm) outside of which it is surely positive."""

    low: np.ndarray
    high: np.ndarray

    def __call__(self, x, y, z):
        raise NotImplementedError

    def evaluate(self, canvas, block):
        """The field on one block of a canvas's voxels."""
        return self(*canvas.points(block))


@dataclass
class Blob(Shape):
    """A rotated, bent, rippled superellipsoid.

    Attributes:
        centre: (3,) mm; radii: (3,) mm along its own axes; turn: rotation in degrees about x, y, z.
        power: exponent of the superellipsoid; bend: mm by which its own x axis is displaced at the ends of its own z axis.
        ripple: added to the field, or None.
    """

    centre: tuple
    radii: tuple
    turn: tuple = (0, 0, 0)
    power: float = 2.0
    bend: float = 0.0
    ripple: Ripple | None = None

    def __post_init__(self):
        reach = float(np.max(self.radii)) * (1.0 if self.power <= 2 else 1.35) + abs(self.bend) + 6
        self.low, self.high = np.subtract(self.centre, reach), np.add(self.centre, reach)
        self._axes = rotation(self.turn).T.astype(np.float32)

    def __call__(self, x, y, z):
        dx, dy, dz = (a - np.float32(c) for a, c in zip((x, y, z), self.centre))
        qx, qy, qz = (r[0] * dx + r[1] * dy + r[2] * dz for r in self._axes)
        if self.bend:
            qx = qx + np.float32(self.bend) * ((qz / np.float32(self.radii[2])) ** 2 - np.float32(0.5))
        out = norm_field(qx, qy, qz, np.float32(self.radii), self.power)
        return out if self.ripple is None else out + self.ripple(x, y, z)


@dataclass
class Union(Shape):
    """Several shapes melted into one, with seams rounded over `width` mm; `ripple` as in Blob."""

    parts: list
    width: float = 10.0
    ripple: Ripple | None = None

    def __post_init__(self):
        self.low = np.min([p.low for p in self.parts], axis=0)
        self.high = np.max([p.high for p in self.parts], axis=0)

    def evaluate(self, canvas, block):
        out = self.parts[0].evaluate(canvas, block)
        for part in self.parts[1:]:
            out = blend_min(out, part.evaluate(canvas, block), self.width)
        return out if self.ripple is None else out + self.ripple(*canvas.points(block))


@dataclass
class Carved(Shape):
    """`solid` less `holes`; edges rounded over `width` mm."""

    solid: Shape
    holes: list = field(default_factory=list)
    width: float = 4.0

    def __post_init__(self):
        self.low, self.high = self.solid.low, self.solid.high

    def evaluate(self, canvas, block):
        out = self.solid.evaluate(canvas, block)
        for hole in self.holes:
            out = blend_max(out, -hole.evaluate(canvas, block), self.width)
        return out


@dataclass
class Tube(Shape):
    """A smooth tube of varying radius through control points.

    Attributes:
        points: (N, 3) mm; radii: scalar or (N,) mm; step: length in mm of the straight pieces that approximate the curve.
        margin: the field is computed up to this distance (mm; at least a voxel) from the surface and is FAR beyond.
        flat: (3,) factors that squeeze the cross-section (1 = round).
    """

    points: np.ndarray
    radii: object
    step: float = 6.0
    margin: float = 8.0
    flat: tuple = (1.0, 1.0, 1.0)

    def __post_init__(self):
        control = np.asarray(self.points, float)
        radii = np.broadcast_to(np.asarray(self.radii, float), len(control))
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(control, axis=0), axis=1) + 1e-6)])
        count = max(2, int(np.ceil(along[-1] / self.step)) + 1)
        fine = np.linspace(0, along[-1], count)
        self.path = CubicSpline(along, control, bc_type="natural")(fine) if len(control) > 2 else control
        self.radius = np.interp(fine, along, radii) if len(control) > 2 else radii
        reach = self.radius.max() / min(self.flat) + self.margin
        self.low, self.high = self.path.min(0) - reach, self.path.max(0) + reach

    def evaluate(self, canvas, block):
        out = np.full(canvas.block_shape(block), FAR, np.float32)
        flat = np.float32(self.flat)
        for a, b, ra, rb in zip(self.path[:-1], self.path[1:], self.radius[:-1], self.radius[1:]):
            reach = max(ra, rb) / min(self.flat) + max(self.margin, canvas.reach)
            piece = canvas.overlap(canvas.block(np.minimum(a, b) - reach, np.maximum(a, b) + reach), block)
            if piece is None:
                continue
            local = tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(piece, block))
            out[local] = np.minimum(out[local], capsule(canvas.points(piece), a, b, ra, rb, flat))
        return out


def capsule(xyz, a, b, ra, rb, flat):
    """Distance to a straight piece from `a` to `b` (mm) whose radius runs from `ra` to `rb`."""
    a, axis = np.float32(a), np.float32(b) - np.float32(a)
    d = [p - c for p, c in zip(xyz, a)]
    t = np.clip(sum(p * c for p, c in zip(d, axis)) / np.float32(axis @ axis + 1e-6), 0, 1)
    gap = sum(((p - t * c) * f) ** 2 for p, c, f in zip(d, axis, flat))
    return np.sqrt(gap) - (np.float32(ra) + np.float32(rb - ra) * t)


def coverage(field_mm, reach_mm):
    """Fraction of each voxel inside, from a field on the voxel lattice: (I, J, K) float32 in [0, 1].

    The field divided by the length of its gradient per voxel is the distance to the surface in voxels; a linear ramp one voxel
    wide around zero is the partial volume of a locally flat surface.

    Args:
        field_mm: (I, J, K) field. reach_mm: size of a voxel: beyond it a voxel is wholly in or out, whatever the gradient says.
    """
    slope = np.float32(1e-6)
    for axis, size in enumerate(field_mm.shape):
        if size > 1:
            slope = slope + np.gradient(field_mm, axis=axis) ** 2
    part = np.clip(0.5 - field_mm / np.sqrt(slope), 0, 1)
    return np.where(np.abs(field_mm) > reach_mm, np.float32(field_mm < 0), part).astype(np.float32)

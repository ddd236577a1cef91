"""An anatomical CT phantom of the upper abdomen and lower thorax, with labels: `make_phantom(PhantomSpec(seed=0))`.

For demonstration and tests only: nothing that trains the shipped model may import it. The patient is a set of smooth shapes whose
size, place, pose and surface vary with the seed; they are laid on the voxel lattice by partial volume, then blurred and made noisy
as a scanner would. The same spec gives the same voxels.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from phantom_body import Build, paint_chest, paint_ribs, paint_spine, paint_trunk
from phantom_canvas import Canvas
from phantom_organs import paint_organs
from phantom_scanner import paint_table, scan
from phantom_shapes import rotation
from scipy.ndimage import label as components

LABELS = {
    "liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "aorta": 5, "left lung": 6, "right lung": 7, "vertebra": 8, "lesion": 9,
}  # fmt: skip
LABELLED_VERTEBRA = "L1"


@dataclass(frozen=True)
class PhantomSpec:
    """Which patient, and how it was scanned.

    Attributes:
        seed: of patient and noise (any non-negative int). patient: number of the patient within the seed.
        shape: (I, J, K). spacing: (3,) mm. I and J lie in the slice.
        orientation: where the axes I, J, K point, e.g. "RAS" (I to the patient's Right) or "LPS" (as DICOM stores it).
        tilt: (3,) degrees by which the lattice is turned about the body's x, y, z axes; zeros for an upright one.
    """

    seed: int = 0
    patient: int = 1
    shape: tuple = (240, 200, 120)
    spacing: tuple = (1.5, 1.5, 2.0)
    orientation: str = "RAS"
    tilt: tuple = (0.0, 0.0, 0.0)

    def __post_init__(self):
        if len(self.shape) != 3 or min(self.shape) < 16:
            raise ValueError(
                f"shape must be three sizes of at least 16 voxels, got {self.shape}; the defaults are a good start"
            )
        if len(self.spacing) != 3 or not all(0.3 <= s <= 12 for s in self.spacing):
            raise ValueError(f"spacing must be three lengths of 0.3 to 12 mm, got {self.spacing}")
        if sorted(self.orientation) not in [sorted(a + b + c) for a in "LR" for b in "AP" for c in "IS"]:
            raise ValueError(
                f"orientation must name each of R/L, A/P, S/I once, got {self.orientation!r}; for example RAS or LPS"
            )


@dataclass
class Phantom:
    """A finished case.

    Attributes:
        image: (I, J, K) int16, HU. labels: (I, J, K) uint8, values of LABELS, one connected component each.
        affine: (4, 4) float64, voxel index ijk -> RAS mm.
        spec: what it was made from.
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    spec: PhantomSpec


def make_phantom(spec):
    """Make one case; about 8 s and 0.8 GB at the default size on one core."""
    rng = np.random.default_rng([spec.seed, spec.patient])
    to_body, affine = _lattice(spec, rng)
    canvas = Canvas(spec.shape, to_body, rng)
    build = Build.random(rng)
    spaces = paint_trunk(canvas, build, rng)
    paint_chest(canvas, build, spaces, rng, LABELS)
    paint_ribs(canvas, build, spaces, rng)
    paint_spine(canvas, build, rng, {LABELLED_VERTEBRA: LABELS["vertebra"]})
    paint_organs(canvas, build, spaces, rng, LABELS)
    paint_table(canvas, spaces.body)
    image = scan(canvas, spaces.body, spec.spacing, noise=rng.uniform(9, 14), rng=rng)
    return Phantom(image, keep_largest_components(canvas.labels), affine, spec)


def _lattice(spec, rng):
    """Affines of the lattice: (to body mm, to RAS mm), both (4, 4); they differ by the patient's size and place on the couch."""
    ahead = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    axes = (
        rotation(spec.tilt) @ np.array([ahead[letter] for letter in spec.orientation], float).T
    )  # a column for each of I, J, K
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spec.spacing)
    middle = np.array([0.0, 6.0, 8.0]) + rng.uniform(-1, 1, 3) * (
        5,
        4,
        10,
    )  # of the field of view, from the body's origin
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(spec.shape) - 1) / 2)
    to_body = np.diag([*(1 / rng.uniform(0.93, 1.05, 3)), 1.0]) @ affine
    affine[:3, 3] += rng.uniform((-8, -160, -480), (8, -110, -300))  # the scanner's own origin
    return to_body, affine


def keep_largest_components(labels):
    """Clear all but the largest 6-connected component of each value: (I, J, K) uint8 in and out."""
    out = np.zeros_like(labels)
    for value in np.unique(labels[labels > 0]):
        parts, count = components(labels == value)
        if count:
            out[parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1] = value
    return out


def fingerprint(spec, extra=()):
    """Hash of a spec, of `extra` values and of the generator's own sources: equal fingerprints mean equal outputs."""
    digest = hashlib.sha256(repr((sorted(asdict(spec).items()), tuple(extra))).encode())
    for source in sorted(Path(__file__).resolve().parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()

"""Generated scans to time with: the size, type and noise of a CT, and one structure that is worth a click."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

SPACING_MM = (0.75, 0.75, 1.0)
_AIR, _SOFT_TISSUE, _NOISE = -1000.0, 30.0, 18.0
_BLOBS = 12
_REACH_MM = 60.0
"""Clicks stay this near to the first one along each axis, so that one patch of the model holds them all."""


@dataclass(frozen=True)
class Scan:
    """A written scan and clicks for it.

    Attributes:
        path: the .nii.gz file.
        clicks: ((i, j, k), positive) in the order in which they are made; the first lies in the structure's middle.
    """

    path: Path
    clicks: tuple[tuple[tuple[int, int, int], bool], ...]

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self.path.name.removesuffix(".nii.gz")


def size_text(shape: tuple[int, int, int]) -> str:
    """Such as 512x512x300."""
    return "x".join(map(str, shape))


def write_scan(path: Path, shape: tuple[int, int, int], clicks: int, seed: int) -> Scan:
    """Writes an int16 scan: a body in air, smooth blobs in it, noise on everything.

    Args:
        path: ends in .nii.gz.
        shape: (I, J, K) voxels; the voxel size is that of an abdominal CT.
        clicks: how many clicks to place, all different, inside and outside the structure in turn.
        seed: decides everything.
    """
    rng = np.random.default_rng(seed)
    size_mm = np.array(shape) * SPACING_MM
    centres = size_mm * rng.uniform(0.25, 0.75, (_BLOBS, 3))
    radii = size_mm.min() * rng.uniform(0.05, 0.15, (_BLOBS, 3))
    heights = rng.uniform(-120, 200, _BLOBS)
    centres[0], heights[0] = size_mm * rng.uniform(0.45, 0.55, 3), 150.0
    radii[0] = np.minimum(0.3 * size_mm, rng.uniform(25, 45, 3))
    i, j, k = (np.arange(n, dtype=np.float32) * s for n, s in zip(shape, SPACING_MM))
    body = ((i / size_mm[0] - 0.5) / 0.45)[:, None] ** 2 + ((j / size_mm[1] - 0.5) / 0.38)[None] ** 2
    voxels = np.empty(shape, dtype=np.int16, order="F")
    for n, z in enumerate(k):
        plane = np.where(body < 1, np.float32(_SOFT_TISSUE), np.float32(_AIR))
        for centre, radius, height in zip(centres, radii, heights):
            along = ((z - centre[2]) / radius[2]) ** 2
            if along < 4:
                x, y = ((i - centre[0]) / radius[0]) ** 2, ((j - centre[1]) / radius[1]) ** 2
                distance = (x[:, None] + y[None] + np.float32(along)).clip(0, 8)
                plane += np.float32(height) / (1 + np.exp(8 * (distance - 1)))
        plane += rng.standard_normal(plane.shape, dtype=np.float32) * np.float32(_NOISE)
        voxels[:, :, n] = plane.round()
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return Scan(path, _clicks(rng, shape, centres[0], radii[0], clicks))


def same_scan(scan: Scan, path: Path) -> Scan:
    """The same scan under another name, as a hard link where the file system has them: a server reads it anew."""
    try:
        os.link(scan.path, path)
    except OSError:
        shutil.copy(scan.path, path)
    return Scan(path, scan.clicks)


def _clicks(
    rng: np.random.Generator, shape: tuple[int, int, int], centre_mm: np.ndarray, radius_mm: np.ndarray, count: int
) -> tuple[tuple[tuple[int, int, int], bool], ...]:
    spacing, last = np.array(SPACING_MM), np.array(shape) - 1
    placed = {tuple((centre_mm / spacing).round().astype(int).clip(0, last).tolist()): True}
    while len(placed) < count:
        positive = len(placed) % 2 == 0
        way = rng.standard_normal(3)
        way *= (rng.uniform(0.1, 0.7) if positive else rng.uniform(1.2, 1.5)) / np.linalg.norm(way)
        offset_mm = (way * radius_mm).clip(-_REACH_MM, _REACH_MM)
        ijk = tuple(((centre_mm + offset_mm) / spacing).round().astype(int).clip(0, last).tolist())
        placed.setdefault(ijk, positive)
    return tuple(placed.items())

"""Annotated scans: which voxels of a label map are which structure, by name and on the scan's own grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..geometry import Grid
from ..prompts import name_key as key
from ..volume_io import Volume, VolumeError, read_volume

BACKGROUND = "background"
MAX_STRUCTURES = 255


@dataclass(frozen=True)
class LabelledCase:
    """One annotated scan.

    Attributes:
        name: the image's id. image, label: files.
        names: value in this label map -> name of the structure. Values mean something in their own file only: OHIF
            numbers its segments alphabetically, Slicer in the order of its list. A value without a name is called
            "label N".
    """

    name: str
    image: Path
    label: Path
    names: Mapping[int, str] = field(default_factory=dict)

    def structure(self, value: int) -> str:
        """The structure's name: stripped, inner blanks single, compared without regard to case by `key`."""
        return " ".join(str(self.names.get(value) or f"label {value}").split())


def read_label(case: LabelledCase, grid: Grid) -> np.ndarray:
    """The case's label map on the scan's grid: (I, J, K) of an unsigned type.

    Raises:
        VolumeError: it cannot be read, holds negative or fractional values, or lies elsewhere than the scan.
    """
    label = read_volume(case.label)
    values = label.array
    if values.size and (values.min() < 0 or values.max() > 65535 or values.dtype.kind == "f" and (values % 1).any()):
        raise VolumeError(f"a label map must hold whole numbers from 0 to 65535, {case.label.name} does not")
    kind = np.uint8 if values.max(initial=0) < 256 else np.uint16
    return on_grid(Volume(values.astype(kind, copy=False), label.grid), grid, case.label.name)


def on_grid(label: Volume, grid: Grid, name: str = "the label map") -> np.ndarray:
    """A label map brought to a scan's grid, nearest voxel; voxels that it does not cover are 0.

    Raises:
        VolumeError: labelled voxels are there and none lies within the scan.
    """
    if label.grid.shape == grid.shape and np.allclose(label.grid.affine, grid.affine, atol=1e-2):
        return label.array
    to_label = np.linalg.inv(label.grid.affine) @ grid.affine
    axes = [np.arange(n, dtype=np.float64) for n in grid.shape]
    result = np.zeros(grid.shape, dtype=label.array.dtype)
    for k in range(grid.shape[2]):  # slice by slice, so that the coordinates stay small
        points = [
            to_label[r, 0] * axes[0][:, None] + to_label[r, 1] * axes[1][None] + to_label[r, 2] * k + to_label[r, 3]
            for r in range(3)
        ]
        index = [np.floor(p + 0.5).astype(np.int64) for p in points]
        inside = np.ones(result.shape[:2], dtype=bool)
        for i, n in zip(index, label.grid.shape):
            inside &= (i >= 0) & (i < n)
        result[:, :, k][inside] = label.array[tuple(i[inside] for i in index)]
    if label.array.any() and not result.any():
        raise VolumeError(f"{name} and its scan must lie at one place in space; no labelled voxel is within the scan")
    return result


def structures_in(case: LabelledCase, label: np.ndarray) -> dict[int, str]:
    """value -> structure of the values that occur in a label map, background left out."""
    values = np.flatnonzero(np.bincount(label.ravel(order="K")))
    named = {int(v): case.structure(int(v)) for v in values if v > 0}
    return {v: name for v, name in named.items() if key(name) != BACKGROUND}


def remapped(case: LabelledCase, label: np.ndarray, structures: Sequence[str]) -> np.ndarray:
    """The label map with 1 + the structure's place in `structures` as value, uint8; what is not listed becomes 0.

    Raises:
        ValueError: more than MAX_STRUCTURES structures.
    """
    if len(structures) > MAX_STRUCTURES:
        raise ValueError(f"at most {MAX_STRUCTURES} structures can be trained at once, got {len(structures)}")
    numbers = {key(name): n for n, name in enumerate(structures, start=1)}
    table = np.zeros(int(label.max(initial=0)) + 1, dtype=np.uint8)
    for value, name in structures_in(case, label).items():
        table[value] = numbers.get(key(name), 0)
    return table[label]


def read_case(case: LabelledCase, structures: Sequence[str]) -> tuple[Volume, np.ndarray]:
    """Scan and remapped label map (I, J, K) uint8 of a case.

    Raises:
        VolumeError: a file cannot be read or used. ValueError: too many structures.
    """
    volume = read_volume(case.image)
    return volume, remapped(case, read_label(case, volume.grid), structures)


def structures_of(cases: Iterable[LabelledCase], wanted: Sequence[str] = ()) -> list[str]:
    """The structures that the cases' label maps hold, sorted; each in its first spelling.

    Args:
        wanted: only these, if any are given.

    Raises:
        VolumeError: a label map cannot be read.
    """
    found: dict[str, str] = {}
    for case in cases:
        label = read_volume(case.label).array
        for name in structures_in(case, label.astype(np.uint16, copy=False)).values():
            found.setdefault(key(name), name)
    chosen = {key(name) for name in wanted}
    return sorted((name for k, name in found.items() if not chosen or k in chosen), key=key)


def fingerprint(cases: Iterable[LabelledCase]) -> str:
    """Names the cases' contents without reading voxels: paths, sizes, times of change and names."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda c: c.name):
        digest.update(repr((case.name, sorted(case.names.items()))).encode())
        for path in (case.image, case.label):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]

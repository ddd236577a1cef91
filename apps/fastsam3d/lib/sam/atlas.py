"""Where the annotated structures lie, so that a scan without annotations can be prompted.

Of every annotated structure the atlas keeps what its surroundings look like: a coarse cube around its deepest voxel, in
directions close to RAS, so that the scans' storage does not matter. In a new scan each place is scored by the normalised
cross-correlation with these cubes; the mean over the annotated cases decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from .files import whole_file
from .geometry import Grid, Lattice
from .sampling import bounding_box
from .training.cases import LabelledCase, key, read_case

COARSE_MM = 8.0
_EDGE = 17
_CASES = 12
_LEAST_VISIBLE = 0.3
_SEARCH, _NEARER = 3, 0.05


@dataclass(frozen=True)
class Site:
    """One structure in one case.

    Attributes:
        structure, case: names. volume_ml: of the structure. value: standardised intensity at its deepest voxel.
        around: (17, 17, 17) float32, the standardised scan around its deepest voxel, nodes of 8 mm, axes close to RAS.
    """

    structure: str
    case: str
    volume_ml: float
    value: float
    around: np.ndarray


@dataclass(frozen=True)
class Place:
    """Where a structure is expected: voxel (3,) of the scan, the correlation there, and its usual volume."""

    structure: str
    centre_ijk: tuple[int, int, int]
    score: float
    volume_ml: float


@dataclass(frozen=True)
class Atlas:
    """The sites, and what to ask them."""

    sites: tuple[Site, ...]

    @property
    def structures(self) -> list[str]:
        """Names of the structures, sorted."""
        return sorted({site.structure for site in self.sites}, key=key)

    @classmethod
    def learn(cls, cases: Iterable[LabelledCase], structures: Sequence[str]) -> Atlas:
        """From annotated cases (at most 12 of them).

        Raises:
            VolumeError: a file cannot be read.
        """
        sites = []
        for case in list(cases)[:_CASES]:
            volume, label = read_case(case, structures)
            view = _View.of(volume.array, volume.grid)
            voxel_ml = float(abs(np.linalg.det(volume.grid.affine[:3, :3]))) / 1000
            for value in np.flatnonzero(np.bincount(label.ravel(order="K"))):
                if value > 0:
                    core = _deepest(label == value, volume.grid)
                    ml = float((label == value).sum()) * voxel_ml
                    around = _cube(view.coarse, _node(view.coarse_lattice, core))
                    sites.append(Site(structures[value - 1], case.name, ml, view.at(core), around))
        return cls(tuple(sites))

    def find(self, volume: np.ndarray, grid: Grid) -> list[Place]:
        """Where each structure is expected in a scan; structures of which nothing fits are left out."""
        view = _View.of(volume, grid)
        places = []
        for structure in self.structures:
            own = [site for site in self.sites if site.structure == structure]
            score = np.mean([_correlation(view.coarse, site.around) for site in own], axis=0)
            node = np.array(np.unravel_index(int(np.argmax(score)), score.shape))
            expected = view.coarse_lattice.to_source(node[None].astype(float))[0]
            found = view.alike(expected, float(np.median([site.value for site in own])))
            centre = np.clip(np.floor(found + 0.5).astype(int), 0, np.array(grid.shape) - 1)
            best, ml = float(score.max()), float(np.median([site.volume_ml for site in own]))
            if best > 0:
                places.append(Place(structure, tuple(int(v) for v in centre), best, ml))
        return places

    def save(self, path: Path) -> None:
        """Writes the atlas whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with whole_file(Path(path)) as file:
            np.savez(
                file,
                structure=np.array([s.structure for s in self.sites], dtype=str),
                case=np.array([s.case for s in self.sites], dtype=str),
                volume_ml=np.array([s.volume_ml for s in self.sites]),
                value=np.array([s.value for s in self.sites]),
                around=np.array([s.around for s in self.sites], dtype=np.float32).reshape(-1, _EDGE, _EDGE, _EDGE),
            )

    @classmethod
    def load(cls, path: Path) -> Atlas:
        """Reads what `save` wrote.

        Raises:
            OSError, ValueError, KeyError: it is not there or damaged.
        """
        with np.load(path, allow_pickle=False) as content:
            rows = zip(*(content[name] for name in ("structure", "case", "volume_ml", "value", "around")))
            return cls(tuple(Site(str(s), str(c), float(ml), float(v), a) for s, c, ml, v, a in rows))


@dataclass(frozen=True)
class _View:
    """A scan in axes close to RAS, clipped to its percentiles and standardised, at 4 mm and at 8 mm; and the lattices."""

    fine: np.ndarray
    fine_lattice: Lattice
    coarse: np.ndarray
    coarse_lattice: Lattice

    @classmethod
    def of(cls, volume: np.ndarray, grid: Grid) -> _View:
        lattice = Lattice.resampled(grid, COARSE_MM / 2).canonical()
        values = ndimage.uniform_filter(lattice.crop(volume), 2)
        low, high = np.percentile(values, (1, 99))
        values = np.clip(values, low, high)
        fine = ((values - values.mean()) / (float(values.std()) or 1.0)).astype(np.float32)
        coarse_lattice = Lattice.resampled(grid, COARSE_MM).canonical()
        ranges = [np.arange(n, dtype=np.float64) for n in coarse_lattice.shape]
        points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
        nodes = lattice.to_patch(coarse_lattice.to_source(points))
        coarse = ndimage.map_coordinates(fine, nodes.T, order=1, mode="nearest").reshape(coarse_lattice.shape)
        return cls(fine, lattice, coarse, coarse_lattice)

    def at(self, voxel: np.ndarray) -> float:
        """The standardised value at a voxel (3,)."""
        return float(self.fine[tuple(_node(self.fine_lattice, voxel))])

    def alike(self, voxel: np.ndarray, value: float) -> np.ndarray:
        """The voxel within 12 mm that looks most like `value`; nearer ones are preferred."""
        node = _node(self.fine_lattice, voxel)
        low = np.maximum(node - _SEARCH, 0)
        window = tuple(slice(a, b) for a, b in zip(low, node + _SEARCH + 1))
        ranges = [np.arange(s.start, s.start + n) for s, n in zip(window, self.fine[window].shape)]
        far = np.sqrt(sum((g - n) ** 2 for g, n in zip(np.meshgrid(*ranges, indexing="ij"), node)))
        best = np.unravel_index(int(np.argmin(np.abs(self.fine[window] - value) + _NEARER * far)), far.shape)
        return self.fine_lattice.to_source((low + np.array(best))[None].astype(float))[0]


def _node(lattice: Lattice, voxel: np.ndarray) -> np.ndarray:
    node = np.floor(lattice.to_patch(np.asarray(voxel, dtype=float)[None])[0] + 0.5).astype(int)
    return np.clip(node, 0, np.array(lattice.shape) - 1)


def _deepest(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(3,) voxel of the mask that is farthest from its border."""
    box = bounding_box(mask)
    inner = np.pad(mask[box], 1)
    depth = ndimage.distance_transform_edt(inner, sampling=tuple(grid.spacing_mm))[1:-1, 1:-1, 1:-1]
    return np.array(np.unravel_index(int(np.argmax(depth)), depth.shape)) + [s.start for s in box]


def _cube(coarse: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The cube around a node; 0 (the mean) outside of the scan."""
    half = _EDGE // 2
    padded = np.pad(coarse, half)
    window = tuple(slice(int(n), int(n) + _EDGE) for n in np.clip(node, 0, np.array(coarse.shape) - 1))
    return padded[window]


def _correlation(coarse: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation of the cube with the surroundings of every node, -1 where too little is visible."""
    half, known = _EDGE // 2, (around != 0).astype(np.float32)
    image, there = np.pad(coarse, half), np.pad(np.ones_like(coarse), half)

    def convolved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return fftconvolve(a, b[::-1, ::-1, ::-1], mode="valid")

    count = np.maximum(convolved(there, known), 1.0)
    own, other = convolved(there, around), convolved(image, known)
    shared = convolved(image, around) - own * other / count
    spread = convolved(image**2, known) - other**2 / count
    own_spread = convolved(there, around**2) - own**2 / count
    score = shared / np.sqrt(np.maximum(spread, 1e-3) * np.maximum(own_spread, 1e-3))
    return np.where(count >= _LEAST_VISIBLE * known.sum(), np.clip(score, -1.0, 1.0), -1.0)

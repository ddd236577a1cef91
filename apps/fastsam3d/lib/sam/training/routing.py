"""What a router learns from (router.py): clicks on annotated structures, around them, and anywhere else in the same scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..clicks import click_candidates
from ..files import whole_file
from ..intensity import padding_floor
from ..router import RoutedSegmenter, Router, described
from ..sampling import bounding_box
from ..segmenter import VolumeSegmenter
from .cases import LabelledCase, read_case
from .gate import Resident

_ON, _AROUND, _ANYWHERE = 30, 45, 15
"""Clicks a case; of many cases fewer each."""

_FULL = 10  # so many cases have that many
_KEPT = 400  # of what was taught before
_TRIES = 10
_RULES = ("random", "ritm")
_NEAREST_MM, _FARTHEST_MM = 5.0, 40.0
Place = tuple[int, ...]


@dataclass(frozen=True)
class Samples:
    """Descriptions (N, D) float32 of a case's clicks, and which of them (N,) bool are on what is annotated."""

    descriptions: np.ndarray
    taught: np.ndarray


def fit_router(
    cases: Sequence[LabelledCase],
    structures: Sequence[str],
    served: VolumeSegmenter,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> Router | None:
    """The router of a training on these cases; one that the served model has already goes on with what that one was taught.

    Args:
        folder: keeps what was described, for another run or another fold.

    Returns:
        None where every voxel is labelled: there is nothing else to click on.

    Raises:
        VolumeError: a file cannot be read. ValueError: no case holds a labelled voxel.
    """
    routed = isinstance(served, RoutedSegmenter)
    base, found = (served.base if routed else served), []
    for n, case in enumerate(cases, start=1):
        found.append(samples_of(case, structures, base, min(1.0, _FULL / len(cases)), seed, folder))
        say(f"clicks of {case.name} described ({n} of {len(cases)})")
    if all(s.taught.all() for s in found):
        return None
    if routed:
        before = served.router.samples[served.router.taught > 0].float().numpy()[-_KEPT:]
        found.append(Samples(before, np.ones(len(before), dtype=bool)))
    descriptions, taught = (np.concatenate([getattr(s, name) for s in found]) for name in ("descriptions", "taught"))
    return Router.fit(descriptions, taught, np.repeat(np.arange(len(found)), [len(s.taught) for s in found]))


def samples_of(
    case: LabelledCase, structures: Sequence[str], base: VolumeSegmenter, share: float, seed: int, folder: Path
) -> Samples:
    """Those of one case, a share of the full number; what the folder has of it, once they are made.

    Raises:
        VolumeError: a file cannot be read.
    """
    name = sha256(case.name.encode()).hexdigest()[:16]
    file = folder / f"{name}-{share:.4f}.npz"
    if not file.exists():
        rng = np.random.default_rng([seed, int(name[:8], 16)])
        descriptions, taught = _describe(case, structures, base, share, rng)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as opened:
            np.savez(opened, descriptions=descriptions, taught=taught)
    with np.load(file, allow_pickle=False) as content:
        return Samples(content["descriptions"], content["taught"])


def _describe(case, structures, base: VolumeSegmenter, share: float, rng) -> tuple[np.ndarray, np.ndarray]:
    volume, label = read_case(case, structures)
    on, around, anywhere = (max(1, round(share * n)) for n in (_ON, _AROUND, _ANYWHERE))
    places = clicks_on(label, tuple(float(s) for s in volume.grid.spacing_mm), on, rng)
    count = len(places)
    places += clicks_around(label, volume.grid.spacing_mm, around, rng) + clicks_anywhere(label, anywhere, rng)
    floor, found = (padding_floor(volume.array),), []
    for place in places:
        session = Resident(volume)  # a new one, so that no more than one embedding is kept
        session.put("padding_floor", floor)
        found.append(described(base, session, place, {}))
    return np.array(found), np.arange(len(places)) < count


def clicks_on(label: np.ndarray, spacing_mm: tuple[float, ...], count: int, rng: np.random.Generator) -> list[Place]:
    """`count` voxels where users would click on the structures of a label map (I, J, K), each in turn; none of an empty one."""
    present = np.flatnonzero(np.bincount(label.ravel(order="K"), minlength=2))
    present = rng.permutation(present[present > 0])[:count]
    found: list[Place] = []
    for n, value in enumerate(present):
        target = label == value
        box = bounding_box(target)
        inner, low = target[box], np.array([s.start for s in box])
        for rule, places in zip(_RULES, _parts(_parts(count, len(present))[n], len(_RULES))):
            candidates, _ = click_candidates(np.zeros_like(inner), inner, rule, spacing_mm)
            found += [_place(low + candidates[rng.integers(len(candidates))]) for _ in range(places)]
    return found


def clicks_around(label: np.ndarray, spacing_mm: np.ndarray, count: int, rng: np.random.Generator) -> list[Place]:
    """Up to `count` voxels without a label, 5 to 40 mm from where a straight line leaves a structure; more of them near."""
    inside, found = np.flatnonzero(label), []
    for _ in range(_TRIES * count if len(inside) else 0):
        place = np.array(np.unravel_index(inside[rng.integers(len(inside))], label.shape), dtype=np.float64)
        way = rng.normal(size=3)
        way /= np.linalg.norm(way) * spacing_mm  # voxels a millimetre
        while _at(label, place):
            place += way * spacing_mm.min()
        place += way * np.exp(rng.uniform(*np.log([_NEAREST_MM, _FARTHEST_MM])))
        if _at(label, place) == 0:
            found.append(_place(place))
        if len(found) == count:
            break
    return found


def clicks_anywhere(label: np.ndarray, count: int, rng: np.random.Generator) -> list[Place]:
    """Up to `count` voxels without a label."""
    places = rng.integers(label.shape, size=(_TRIES * count, 3))
    return [_place(p) for p in places[label[tuple(places.T)] == 0][:count]]


def _at(label: np.ndarray, place: np.ndarray) -> int | None:
    """The label at a place; None beyond the scan."""
    voxel = _place(place)
    return int(label[voxel]) if all(0 <= v < n for v, n in zip(voxel, label.shape)) else None


def _place(place: np.ndarray) -> Place:
    return tuple(int(v) for v in np.floor(place + 0.5))


def _parts(count: int, parts: int) -> list[int]:
    """A number in parts as equal as may be."""
    return [(count + n) // parts for n in range(parts)]

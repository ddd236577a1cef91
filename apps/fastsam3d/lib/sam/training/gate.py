"""Candidate against served model: the same structures, the same first clicks, Dice at 1, 3 and 5 clicks, pair by pair.

Two questions, through the segmenter that serves. Is the candidate at least as good on annotated cases that did not train
it? Does it still know what the served model knew, on generated anatomy that no training draws? Only two yeses publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..anatomy.generator import generate
from ..clicks import next_click
from ..evaluate import evaluate_case, largest_component
from ..geometry import Grid
from ..prompts import Prompts
from ..router import RoutedSegmenter
from ..segmenter import VolumeSegmenter
from ..volume_io import Volume
from .cases import LabelledCase, read_case
from .report import VOLUMES, Words

CLICKS = (1, 3, 5)
MAX_FORGETTING = 0.02
"""So much mean Dice may be lost on generated anatomy."""

GUARD_SEED = 2_100_000_000
"""Seeds of the gate's own cases; training and validation use others."""

_GUARD_OBJECTS = 3
STRUCTURES_PER_CASE = 12
_MIN_VOXELS = 60


@dataclass(frozen=True)
class Pair:
    """One structure under both models: Dice after CLICKS clicks (fewer if fewer were made); of slices see gate2d.py.

    `taught` says whether the candidate's trained network answered, where it has two (router.py).
    """

    case: str
    structure: str
    served: tuple[float, ...]
    candidate: tuple[float, ...]
    taught: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Attributes:
        accepted: publish. reason: one sentence with the figures that decided.
        held_out, generated: the pairs.
        forgets: refused for what it lost on generated anatomy, although it is as good on what was held out.
    """

    accepted: bool
    reason: str
    held_out: tuple[Pair, ...]
    generated: tuple[Pair, ...]
    forgets: bool = False

    def metrics(self) -> dict[str, Any]:
        """Mean Dice of both models on both sets, as the pairs have it, and the numbers of structures."""
        result: dict[str, Any] = {}
        for name, pairs in (("held_out", self.held_out), ("generated", self.generated)):
            result[name] = {
                "structures": len(pairs),
                "better": sum(bool(np.mean(p.candidate) > np.mean(p.served)) for p in pairs),
                "served": _means([p.served for p in pairs]),
                "candidate": _means([p.candidate for p in pairs]),
            }
        return result

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"metrics": self.metrics()}


class Resident:
    """A volume in memory with what a segmenter caches of it; stands in for a session of the store."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._values: dict = {}

    def get(self, key, default=None):
        """A cached value."""
        return self._values.get(key, default)

    def put(self, key, value, nbytes=None) -> None:
        """Caches a value."""
        self._values[key] = value


def compare(
    served: VolumeSegmenter,
    candidate: VolumeSegmenter,
    cases: Sequence[LabelledCase],
    structures: Sequence[str],
    clicks: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Pair]:
    """Both models on annotated cases; every structure's largest part, at most 12 structures a case.

    Raises:
        VolumeError: a file cannot be read.
    """
    pairs = []
    for case in cases:
        volume, label = read_case(case, structures)
        values = [v for v in np.flatnonzero(np.bincount(label.ravel(order="K"))) if v > 0]
        for value in values[:STRUCTURES_PER_CASE]:
            target = largest_component(label == value)
            pairs.append(_pair(served, candidate, volume, target, case.name, structures[value - 1], clicks))
        say(f"gate: {case.name} compared")
    return pairs


def compare_generated(served: VolumeSegmenter, candidate: VolumeSegmenter, cases: int, clicks: int) -> list[Pair]:
    """Both models on generated anatomy."""
    return [
        _pair(served, candidate, volume, target, name, structure, clicks)
        for name, structure, volume, target in generated(cases, served.spec.patch_size, served.spec.spacing_mm)
    ]


def generated(cases: int, size: int, spacing_mm: float) -> Iterator[tuple[str, str, Volume, np.ndarray]]:
    """Case, structure, volume and target (I, J, K) bool of the fixed generated set."""
    grid = Grid((size,) * 3, np.diag([spacing_mm] * 3 + [1.0]))
    for n in range(cases):
        case = generate(GUARD_SEED + n, size)
        volume, label = Volume(case.image.numpy(), grid), case.label.numpy()
        sizes = np.bincount(label.ravel())
        usable = [v for v in range(1, len(sizes)) if sizes[v] >= _MIN_VOXELS]
        for value in np.random.default_rng(n).permutation(usable)[:_GUARD_OBJECTS]:
            yield f"generated {n + 1}", f"object {value}", volume, largest_component(label == value)


def judge(held_out: Sequence[Pair], guard: Sequence[Pair], words: Words = VOLUMES, share: float = 1.0) -> Verdict:
    """Decides: at least as good on what was held out, and at most MAX_FORGETTING worse on what is generated.

    Args:
        share: how much of the way from the served weights the candidate has gone, for the reason.
    """
    before, after = _mean([p.served for p in held_out]), _mean([p.candidate for p in held_out])
    known, kept = _mean([p.served for p in guard]), _mean([p.candidate for p in guard])
    on_cases = f"{after:.3f} against {before:.3f} on {len(held_out)} {words.held_out}"
    on_guard = f"{kept:.3f} against {known:.3f} on {words.generated}" if guard else f"{words.generated}: not measured"
    if not held_out:
        return Verdict(False, "kept the served model: no structure was held out to compare on", (), tuple(guard))
    if all(pair.taught is False for pair in held_out):
        reason = (
            f"kept the served model: no click on what was held out goes to the trained network (Dice {on_cases}); "
            "annotate one more case"
        )
        return Verdict(False, reason, tuple(held_out), tuple(guard))
    if after < before:
        reason = f"kept the served model: the candidate is worse where annotations were held out (Dice {on_cases})"
        return Verdict(False, reason, tuple(held_out), tuple(guard))
    if guard and kept < known - MAX_FORGETTING:
        reason = (
            f"kept the served model: the candidate forgets too much (Dice {on_guard}; at most {MAX_FORGETTING} may be "
            f"lost), although it reaches {on_cases}"
        )
        return Verdict(False, reason, tuple(held_out), tuple(guard), forgets=True)
    part = "" if share == 1 else f" {share:.0%} of the way from the served weights, as all of it forgets too much"
    return Verdict(True, f"published{part}: Dice {on_cases}, {on_guard}", tuple(held_out), tuple(guard))


def _pair(served, candidate, volume: Volume, target: np.ndarray, case: str, structure: str, clicks: int) -> Pair:
    curves = []
    for segmenter in (served, candidate):
        session = Resident(volume)
        scores, _, _ = evaluate_case(segmenter, session, target, max_clicks=clicks, boxes=False)
        curves.append(tuple(round(scores[n - 1], 4) for n in CLICKS if n <= clicks))
    if not isinstance(candidate, RoutedSegmenter):
        return Pair(case, structure, *curves)
    spacing = tuple(float(s) for s in volume.grid.spacing_mm)
    first = next_click(np.zeros_like(target), target, rule="centre", spacing_mm=spacing)
    return Pair(case, structure, *curves, candidate.answering(session, Prompts((first,))) is candidate)


def _mean(curves: Sequence[tuple[float, ...]]) -> float:
    return float(np.mean([np.mean(curve) for curve in curves])) if curves else 0.0


def _means(curves: Sequence[tuple[float, ...]]) -> list[float]:
    return [round(float(v), 4) for v in np.mean(curves, axis=0)] if curves else []

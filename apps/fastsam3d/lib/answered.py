"""What was answered on an image, slice by slice: enough to tell whether a label that a viewer exported is upside down."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .sam.files import write_text

logger = logging.getLogger(__name__)

_KEPT = 32  # answers remembered of each image
_SAME, _CLEARLY = 0.75, 0.2
"""A label is that of an answer if so much of it agrees, and lies one way round if the other agrees less by so much."""


class Profile:
    """Size and middle of a mask in each slice along the last axis: `counts` (K,), `middles` (K, 2), for the slices from `first`."""

    def __init__(self, first: int, counts: Sequence[int], middles: Sequence[Sequence[float]]) -> None:
        self.first, self.counts = int(first), np.asarray(counts, float)
        self.middles = np.asarray(middles, float).reshape(-1, 2)

    @classmethod
    def of(cls, mask: np.ndarray, corner: Sequence[int] = (0, 0, 0)) -> Profile:
        """Of a mask (I, J, K) whose low corner is that voxel of the image."""
        mask = mask.astype(bool)
        counts = mask.sum(axis=(0, 1))
        sums = [np.arange(n) @ mask.sum(axis=other) for n, other in zip(mask.shape[:2], (1, 0))]
        middles = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None] + np.asarray(corner[:2])
        return cls(corner[2], counts, middles)

    def reversed(self, slices: int) -> Profile:
        """The same mask upside down in an image of so many slices."""
        return Profile(slices - self.first - len(self.counts), self.counts[::-1], self.middles[::-1])

    def agreement(self, other: Profile) -> float:
        """Like Dice, 1 for masks of one size and place in every slice."""
        low, high = max(self.first, other.first), min(self.first + len(self.counts), other.first + len(other.counts))
        total = self.counts.sum() + other.counts.sum()
        if high <= low or not total:
            return 0.0
        ours, theirs = (slice(low - p.first, high - p.first) for p in (self, other))
        common = np.minimum(self.counts[ours], other.counts[theirs])
        apart = np.linalg.norm(self.middles[ours] - other.middles[theirs], axis=1)
        return float(2 * common[apart <= 1 + np.sqrt(common / np.pi)].sum() / total)

    def as_lists(self) -> list:
        """For JSON."""
        return [self.first, self.counts.astype(int).tolist(), self.middles.round(1).tolist()]


class Answered:
    """Remembers the last answers on each image, in one small file an image."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()

    def note(self, image: str, mask: np.ndarray, corner: Sequence[int]) -> None:
        """Remembers an answer: the part of the mask (i, j, k) that is not empty, and its low corner. `image` is a file's name.

        What cannot be written is only a memory less.
        """
        if not mask.any():
            return
        with self._lock:
            kept = [*self._read(image), Profile.of(mask, corner)][-_KEPT:]
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_text(self._file(image), json.dumps([profile.as_lists() for profile in kept]))
            except OSError as error:
                logger.warning("The answer on %s is not remembered: %s", image, error)

    def is_reversed(self, image: str, array: np.ndarray) -> bool | None:
        """Whether a label map shows the slices of what was answered here in reverse.

        Args:
            array: (I, J, K) of values.

        Returns:
            True or False where answers that it holds lie clearly that way round, None where they do not tell.
        """
        with self._lock:
            known = self._read(image)
        ways = {True: 0.0, False: 0.0}
        for value in np.unique(array[array > 0]):
            profile = Profile.of(array == value)
            size = float(profile.counts.sum())
            for turned in ways:
                shown = profile.reversed(array.shape[2]) if turned else profile
                ways[turned] += size * max((shown.agreement(answer) for answer in known), default=0.0)
        total = np.count_nonzero(array)
        for turned, agreed in ways.items():
            if total and agreed >= _SAME * total and ways[not turned] <= agreed - _CLEARLY * total:
                return turned
        return None

    def _file(self, image: str) -> Path:
        return self._folder / f"{image}.json"

    def _read(self, image: str) -> list[Profile]:
        try:
            return [Profile(*kept) for kept in json.loads(self._file(image).read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            logger.warning("What was answered on %s is forgotten: %s", image, error)
            return []

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
        mask = (mask != 0).view(np.uint8)
        flat = [mask.sum(axis=other, dtype=np.uint32) for other in (1, 0)]  # (I, K) and (J, K)
        counts = flat[0].sum(axis=0)
        sums = [np.arange(n) @ plane for n, plane in zip(mask.shape[:2], flat)]
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
    """Remembers the last answers on each image, in one small file an image, a line an answer.

    A line is appended and not forced to the disk, as an annotator waits; one that a power cut tore is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._lines: dict[str, int] = {}

    def note(self, image: str, mask: np.ndarray, corner: Sequence[int]) -> None:
        """Remembers an answer: the part of the mask (i, j, k) that is not empty, and its low corner. `image` is a file's name.

        What cannot be written is only a memory less.
        """
        if not mask.any():
            return
        line = json.dumps(Profile.of(mask, corner).as_lists())
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if self._lines.get(image, 2 * _KEPT) >= 2 * _KEPT:
                    kept = self._read_lines(image)[-_KEPT:]
                    write_text(self._file(image), "".join(f"{line}\n" for line in kept))
                    self._lines[image] = len(kept)
                with open(self._file(image), "a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
                self._lines[image] += 1
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
        return self._folder / f"{image}.jsonl"

    def _read_lines(self, image: str) -> list[str]:
        try:
            return self._file(image).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _read(self, image: str) -> list[Profile]:
        try:
            lines = self._read_lines(image)[-_KEPT:]
        except OSError as error:
            logger.warning("What was answered on %s cannot be read: %s", image, error)
            return []
        found = []
        for line in lines:
            try:
                found.append(Profile(*json.loads(line)))
            except (ValueError, TypeError) as error:
                logger.warning("An answer on %s is forgotten: %s", image, error)
        return found

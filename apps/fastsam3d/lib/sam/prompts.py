"""What a user asks of the model: clicks and a box, in voxels of the scan."""

import math
import numbers
from dataclasses import dataclass, replace

import numpy as np

from .grid import Grid

MAX_CLICKS = 200
"""The most clicks that one request may carry; replaying them takes seconds on one thread."""

_LARGEST_INDEX = 2**31


class PromptError(ValueError):
    """A prompt that the model cannot be asked; the message names the rule, the received value and what to do."""


@dataclass(frozen=True)
class Click:
    """One voxel that belongs to the object, or does not.

    Attributes:
        ijk: voxel index in the scan's stored axis order.
        positive: True for the object, False for the background.

    Raises:
        PromptError: an index that is not three whole numbers, or a sign that is not a bool.
    """

    ijk: tuple[int, int, int]
    positive: bool = True

    def __post_init__(self):
        object.__setattr__(self, "ijk", _voxel(self.ijk, "a click"))
        if not isinstance(self.positive, (bool, np.bool_)):
            raise PromptError(f"a click's sign must be true (object) or false (background), got {self.positive!r}")
        object.__setattr__(self, "positive", bool(self.positive))


@dataclass(frozen=True)
class Box:
    """A box around the object.

    Attributes:
        low_ijk: voxel index of the low corner, which belongs to the box.
        high_ijk: voxel index of the high corner, which belongs to the box; equal to the low one along at most one axis.

    Raises:
        PromptError: corners that are not three whole numbers each.
    """

    low_ijk: tuple[int, int, int]
    high_ijk: tuple[int, int, int]

    def __post_init__(self):
        object.__setattr__(self, "low_ijk", _voxel(self.low_ijk, "a box's low corner"))
        object.__setattr__(self, "high_ijk", _voxel(self.high_ijk, "a box's high corner"))

    @property
    def centre_ijk(self) -> tuple[float, float, float]:
        """The middle of the box, in voxels, not rounded."""
        return tuple((a + b) / 2 for a, b in zip(self.low_ijk, self.high_ijk))


@dataclass(frozen=True)
class Prompts:
    """Everything that is asked at once: clicks in the order in which they were made, and at most one box.

    Attributes:
        structure: what the user says that it is, if anything; it chooses between networks (router.py) and is no prompt.
    """

    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    structure: str = ""

    def __post_init__(self):
        object.__setattr__(self, "clicks", tuple(self.clicks))

    def until(self, count: int) -> "Prompts":
        """The box, and the first `count` clicks."""
        return replace(self, clicks=self.clicks[:count])

    @property
    def clicks_ijk(self) -> np.ndarray:
        """(N, 3) int64, voxel indices of the clicks."""
        return np.array([click.ijk for click in self.clicks], dtype=np.int64).reshape(-1, 3)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, 1 for clicks on the object and 0 for clicks on the background."""
        return np.array([click.positive for click in self.clicks], dtype=np.int64)

    def validate(self, grid: Grid) -> None:
        """Checks that these prompts can be asked of a scan. The same click may come twice.

        Args:
            grid: the scan's grid.

        Raises:
            PromptError: nothing to go by, more than MAX_CLICKS clicks, a click or a corner outside the scan, or a box
                that is inverted or has no area.
        """
        if not self.clicks and self.box is None:
            raise PromptError("a segmentation needs at least one click or a box, got neither; click on the object")
        if len(self.clicks) > MAX_CLICKS:
            raise PromptError(f"at most {MAX_CLICKS} clicks are accepted (MAX_CLICKS), got {len(self.clicks)}")
        inside = grid.contains(self.clicks_ijk)
        if not inside.all():
            first = int(np.argmin(inside))
            raise PromptError(
                f"a click must lie in the image of {_size(grid)} voxels, counted from 0, "
                f"got click {first + 1} at {self.clicks[first].ijk}"
            )
        if self.box is not None:
            self._validate_box(self.box, grid)

    @staticmethod
    def _validate_box(box: Box, grid: Grid) -> None:
        if not grid.contains([box.low_ijk, box.high_ijk]).all():
            raise PromptError(
                f"a box must lie in the image of {_size(grid)} voxels, counted from 0, "
                f"got corners {box.low_ijk} and {box.high_ijk}"
            )
        if any(low > high for low, high in zip(box.low_ijk, box.high_ijk)):
            raise PromptError(
                f"a box's low corner must not exceed its high corner, got {box.low_ijk} and {box.high_ijk}; swap them"
            )
        if sum(low == high for low, high in zip(box.low_ijk, box.high_ijk)) > 1:
            raise PromptError(
                f"a box may be one voxel thin along one axis only, got corners {box.low_ijk} and {box.high_ijk}; "
                "use a click for a single voxel"
            )


def name_key(name: str) -> str:
    """Form in which two spellings of one structure are equal."""
    return " ".join(name.split()).casefold()


def _voxel(values, what: str) -> tuple[int, int, int]:
    try:
        values = tuple(values)
    except TypeError:
        values = (values,)
    if len(values) != 3 or not all(_is_whole(v) for v in values):
        shown = repr(values[:4])[:120]
        raise PromptError(f"{what} must be three whole voxel indices i, j, k, got {shown}; round positions to voxels")
    return tuple(int(v) for v in values)


def _is_whole(value) -> bool:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return False
    return abs(value) < _LARGEST_INDEX and value == math.floor(value)  # the comparison is False for NaN


def _size(grid: Grid) -> str:
    return " x ".join(str(n) for n in grid.shape)

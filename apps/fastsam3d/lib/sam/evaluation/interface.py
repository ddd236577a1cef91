"""What the evaluation asks of a model: open a scan, then prompts in, a mask out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..prompts import Prompts
from ..session import ImageSession


class ModelError(Exception):
    """A model that cannot be had or asked; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        mask: (I, J, K) bool, on the scan's own grid.
        seconds: from prompts to mask, everything included.
        warnings: what the model told the user.
    """

    mask: np.ndarray
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which structure is asked for: its value in the label maps and its name, never where it is.

    Models that take prompts need neither; a server may have the name among its labels.
    """

    label: int
    name: str


Ask = Callable[[Prompts], Answer]


class Model(Protocol):
    """A promptable model, or anything that behaves like one.

    Attributes:
        name: as the user wrote it; stands in every row.
        version: what it was made of; results of another version are not reused.
        clicks, boxes: which prompts it takes; a box that is one voxel thin along an axis asks for one slice.
        automatic: whether it answers without prompts, always the same.
    """

    name: str
    version: str
    clicks: bool
    boxes: bool
    automatic: bool

    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> AbstractContextManager[Ask]:
        """Makes a scan ready for prompts.

        Args:
            session: the open scan.
            path: the file it came from.
            wanted: what will be asked for.

        Raises:
            ModelError: the model cannot be asked about this scan.
        """

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> np.ndarray | None:
        """(I, J, K) float32 uncertainty of the answer to these prompts in [0, 1], or None where the model has none."""

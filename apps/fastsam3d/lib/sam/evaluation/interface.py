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


Ask = Callable[[Prompts], Answer]


class Model(Protocol):
    """A promptable model, or anything that behaves like one.

    Attributes:
        name: as the user wrote it; stands in every row.
        version: what it was made of; results of another version are not reused.
        clicks, boxes: which prompts it takes; a box that is one voxel thin along an axis asks for one slice.
    """

    name: str
    version: str
    clicks: bool
    boxes: bool

    def open(self, session: ImageSession, path: Path) -> AbstractContextManager[Ask]:
        """Makes a scan ready for prompts.

        Args:
            session: the open scan.
            path: the file it came from.

        Raises:
            ModelError: the model cannot be asked about this scan.
        """

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> np.ndarray | None:
        """(I, J, K) float32 uncertainty of the answer to these prompts in [0, 1], or None where the model has none."""

"""What every row of a benchmark is, whatever was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class BenchRow:
    """A row; kinds of rows add their figures, of one unit, and how they were taken.

    Attributes:
        part: what was run. case: on what.
    """

    part: str
    case: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For the terminal."""
        raise NotImplementedError

    def bars(self) -> dict[str, float]:
        """For the plot: name -> figure."""
        raise NotImplementedError

    @property
    def ran_with(self) -> str:
        """Threads, dtype and device, for `line`; of the kinds that have all three."""
        return f"{self.threads} threads, {self.dtype}, {self.device}"


def dtype_name(dtype: torch.dtype) -> str:
    """Such as bfloat16."""
    return str(dtype).removeprefix("torch.")

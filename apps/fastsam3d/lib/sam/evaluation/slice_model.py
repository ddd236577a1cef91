"""The app's models for images: one slice by its own box, or an object followed through a stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..prompts import Prompts
from ..session import ImageSession
from ..slice_segmenter import SliceOptions, SliceSegmenter
from .interface import Answer, Ask


class SliceModel:
    """A `SliceSegmenter` as the evaluation's `Model`."""

    clicks, boxes = True, True

    def __init__(self, name: str, segmenter: SliceSegmenter) -> None:
        self.name, self.version, self.segmenter = name, segmenter.weights_version, segmenter

    @contextmanager
    def open(self, session: ImageSession, path: Path) -> Iterator[Ask]:
        """See `Model.open`; nothing is done before the first prompt."""

        def ask(prompts: Prompts) -> Answer:
            begin = time.perf_counter()
            box = prompts.box
            thin = box is not None and any(low == high for low, high in zip(box.low_ijk, box.high_ijk))
            result = self.segmenter.segment(session, prompts, SliceOptions(single=thin))
            return Answer(result.full_mask().view(bool), time.perf_counter() - begin, result.warnings)

        yield ask

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """It has none to offer."""
        return None

"""The app's models for images: a photograph, one slice by its own box, or an object followed through a stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..prompts import Prompts
from ..session import ImageSession
from ..slice_segmenter import SliceOptions, SliceSegmenter
from .interface import Answer, Ask, ModelError, Wanted
from .scans import flat_image


class SliceModel:
    """A `SliceSegmenter` as the evaluation's `Model`."""

    clicks, boxes, automatic = True, True, False

    def __init__(self, name: str, segmenter: SliceSegmenter) -> None:
        self.name, self.version, self.segmenter = name, segmenter.weights_version, segmenter

    @contextmanager
    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> Iterator[Ask]:
        """See `Model.open`. Photographs are asked in their colours, by boxes."""
        pixels = flat_image(path)

        def ask_photo(prompts: Prompts) -> Answer:
            if prompts.box is None or prompts.clicks:
                raise ModelError(f"{self.name} takes one box at a time on a photograph; use --protocol box2d")
            begin = time.perf_counter()
            box = [*prompts.box.low_ijk[:2], *prompts.box.high_ijk[:2]]
            answer = self.segmenter.segment_image(pixels, np.array([box]))[0]
            mask = np.zeros(session.volume.grid.shape, dtype=bool)
            (y, x), (h, w) = answer.corner, answer.mask.shape
            mask[x : x + w, y : y + h, 0] = answer.mask.T
            return Answer(mask, time.perf_counter() - begin)

        def ask(prompts: Prompts) -> Answer:
            begin = time.perf_counter()
            box = prompts.box
            thin = box is not None and any(low == high for low, high in zip(box.low_ijk, box.high_ijk))
            result = self.segmenter.segment(session, prompts, SliceOptions(single=thin))
            return Answer(result.full_mask().view(bool), time.perf_counter() - begin, result.warnings)

        yield ask if pixels is None else ask_photo

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """It has none to offer."""
        return None

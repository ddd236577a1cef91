"""The app's own models for volumes, through the segmenter that serves clicks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..prompts import Prompts
from ..segmenter import VolumeSegmenter
from ..session import ImageSession
from ..uncertainty import uncertainty_map
from .interface import Answer, Ask, Wanted


class VolumeModel:
    """A `VolumeSegmenter` as the evaluation's `Model`."""

    clicks, automatic = True, False

    def __init__(self, name: str, segmenter: VolumeSegmenter) -> None:
        self.name, self.version, self.segmenter = name, segmenter.weights_version, segmenter
        self.boxes = segmenter.spec.decoder.boxes

    @contextmanager
    def open(self, session: ImageSession, path: Path | None = None, wanted: Wanted | None = None) -> Iterator[Ask]:
        """See `Model.open`; nothing is done before the first prompt."""

        def ask(prompts: Prompts) -> Answer:
            begin = time.perf_counter()
            result = self.segmenter.segment(session, prompts)
            mask = result.full_mask().view(bool)
            return Answer(mask, time.perf_counter() - begin, result.warnings)

        yield ask

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> np.ndarray:
        """See `Model.uncertainty`."""
        return uncertainty_map(self.segmenter, session, prompts).full()

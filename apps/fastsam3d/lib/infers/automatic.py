"""Pre-annotation: all structures that the annotated cases teach, in one label map, without a click."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from ..sam.atlas import Atlas, Place
from ..sam.prompts import Click, PromptError, Prompts
from ..sam.segmenter import Segmentation, VolumeSegmenter
from ..sam.segmenters import Segmenter
from ..sam.session import ImageSession
from .interactive import InteractiveInfer, Question
from .request import AnswerOptions

logger = logging.getLogger(__name__)

_PLAUSIBLE = 4.0
"""A mask so many times larger or smaller than the annotated ones is left out."""


class AutomaticInfer(InteractiveInfer):
    """The promptable model, prompted where the atlas of the annotated cases expects each structure.

    Offered once a case is annotated. The answer is a label map: value n is the n-th of `labels`.

    Args:
        clicks: the task of the promptable model; its segmenter answers.
        atlas: gives the atlas of the annotations as they are now, or None without any.
        names: gives the structures that the annotations are said to hold, cheaply.
    """

    def __init__(
        self, clicks: InteractiveInfer, atlas: Callable[[], Atlas | None], names: Callable[[], list[str]]
    ) -> None:
        super().__init__(
            f"{clicks.model}_auto", {}, clicks.model_dir, clicks.store, clicks.weights_choice, clicks.device,
            "What the annotated cases teach, without a click: for review, or to begin with", clicks.weights_model,
        )  # fmt: skip
        self.type = InferType.SEGMENTATION
        self._clicks, self._atlas, self._names = clicks, atlas, names
        self._lock = clicks._lock  # it is the same network

    def preload(self) -> None:
        """Loads nothing: the promptable model's task has the weights."""

    def _loaded(self) -> Segmenter:
        return self._clicks.loaded()

    def info(self) -> dict[str, Any]:
        return super().info() | {"labels": self._numbers(())}

    def is_valid(self) -> bool:
        return super().is_valid() and bool(self._names())

    def _numbers(self, more: Iterable[str]) -> dict[str, int]:
        """name -> value in the answer; names that only the voxels told come last."""
        names = self._names()
        return {name: n for n, name in enumerate([*names, *(m for m in more if m not in names)], start=1)}

    def _question(self, request: Mapping[str, Any], session: ImageSession) -> Question:
        atlas = self._atlas()
        if atlas is None:
            raise PromptError(
                "automatic segmentation learns from annotated cases and there are none; save a label first"
            )
        numbers = self._numbers(atlas.structures)
        places = atlas.find(session.volume.array, session.volume.grid)
        return lambda segmenter: combine(segmenter, session, places, numbers)

    def _params(self, segmentation: Segmentation, answer: AnswerOptions, latencies: dict[str, float]) -> dict[str, Any]:
        present = set(np.unique(segmentation.mask_box).tolist())
        found = {name: n for name, n in segmentation.values.items() if n in present}
        return super()._params(segmentation, answer, latencies) | {
            "label_names": found,
            "label_info": [{"name": name, "idx": n} for name, n in found.items()],
        }


def combine(
    segmenter: VolumeSegmenter, session: ImageSession, places: list[Place], numbers: Mapping[str, int]
) -> Segmentation:
    """One label map of all structures; where two meet, the smaller one is kept.

    Masks of an implausible size are left out, with a warning that says so.
    """
    grid, warnings = session.volume.grid, []
    voxel_ml = float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000
    result = np.zeros(grid.shape, dtype=np.uint8, order="F")
    answers: list[tuple[int, int, Segmentation]] = []
    last: Segmentation | None = None
    for place in places:
        last = segmenter.segment(session, Prompts((Click(place.centre_ijk),), structure=place.structure))
        count = int(np.count_nonzero(last.mask_box))
        if place.volume_ml / _PLAUSIBLE <= count * voxel_ml <= place.volume_ml * _PLAUSIBLE:
            answers.append((count, numbers[place.structure], last))
        else:
            warnings.append(f"{place.structure} was not found: {count * voxel_ml:.1f} ml seemed wrong")
    for _, number, answer in sorted(answers, key=lambda item: -item[0]):
        window = tuple(slice(c, c + n) for c, n in zip(answer.corner_ijk, answer.mask_box.shape))
        result[window][answer.mask_box > 0] = number
    if last is None:
        raise PromptError("none of the annotated structures was found in this image; click instead")
    iou = float(np.mean([answer.iou for _, _, answer in answers])) if answers else 0.0
    return replace(last, mask_box=result, corner_ijk=(0, 0, 0), iou=iou, warnings=tuple(warnings), values=dict(numbers))

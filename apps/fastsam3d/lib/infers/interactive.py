"""The click: prompts on a resident image become an answer file."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ..encode import write_answer
from ..sam import weights
from ..sam.device import choose_device
from ..sam.segmenter import Segmentation, VolumeSegmenter
from ..sam.segmenters import Segmenter, load_segmenter
from ..sam.session import ImageSession, SessionStore
from ..sam.uncertainty import uncertainty_map
from .request import AnswerOptions, RequestError, parse_answer, parse_prompts

logger = logging.getLogger(__name__)

Question = Callable[[Segmenter], Segmentation]
"""A request that was read and checked, to be asked of a segmenter."""


class InteractiveInfer(InferTask):
    """A promptable model: clicks of both signs and a box, answered by a mask of ones on the image's own grid.

    A refinement click reads no file, resamples no whole volume and runs no encoder: the store keeps the volume, its
    embedding and the last logits. Nothing is loaded until `preload` or the first click.

    Args:
        model: its name, as clients call it.
        labels: label name -> number, for the viewers' lists; a click's mask is 1 whatever its label.
        model_dir: the app's folder of weights.
        store: the resident images, shared by all models.
        weights_choice: a file, a folder or a registry name; None lets the registry choose.
        device: "auto", "cpu", "cuda" or "cuda:N".
        description: one line for the viewers.
        weights_model: the model in the weights' registry whose weights it uses; None for that of its own name.
        dimension: 3, or 2 for a model that answers in one slice.
        config: options that the viewers show, name -> value or list of values, the default first.

    Attributes:
        on_answer: told of every answer, with the image's id.
    """

    def __init__(
        self,
        model: str,
        labels: Mapping[str, int],
        model_dir: str,
        store: SessionStore,
        weights_choice: str | None = None,
        device: str = "auto",
        description: str = "",
        weights_model: str | None = None,
        dimension: int = 3,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(InferType.DEEPGROW, dict(labels), dimension, description, dict(config or {}))
        self.model = model
        self.weights_model = weights_model or model
        self.model_dir = model_dir
        self.store = store
        self.weights_choice = weights_choice
        self.device = device
        self.on_answer: Callable[[str, Segmentation], None] = lambda image, segmentation: None
        self._segmenter: Segmenter | None = None
        self._lock = threading.RLock()

    def is_valid(self) -> bool:
        """Whether the model's weights are there; a model without them is not shown to clients."""
        return self._segmenter is not None or self.get_path() is not None

    def get_path(self, validate: bool = True) -> str | None:
        """Path of the weights that would be used, or None."""
        try:
            return str(self.resolve().paths[0])
        except weights.WeightsError:
            return None

    def resolve(self) -> weights.ResolvedWeights:
        """Chooses the weights, without loading them.

        Raises:
            WeightsError: there are none, or they are damaged.
        """
        return weights.resolve(self.weights_model, self.model_dir, configured=self.weights_choice)

    def preload(self) -> None:
        """Loads the weights now, if they are not loaded.

        Raises:
            WeightsError: if they are missing, damaged or do not fit.
        """
        with self._lock:
            self._loaded()

    def loaded(self) -> Segmenter:
        """The segmenter that answers the next click.

        Raises:
            WeightsError: see `preload`.
        """
        with self._lock:
            return self._loaded()

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Segments.

        Args:
            request: `image` is the path to read and `image_id` what the client calls it; prompts and answer options
                are described in request.py.

        Returns:
            The answer file, which the caller removes (None if `result_write_to_file` is false), and the parameters:
            `label_names`, `predicted_iou`, `voxels`, `latencies`, `model`, `weights`, `warnings`, and
            `most_uncertain_ijk` where `uncertainty` was asked for. The latencies are
            seconds by stage; `read` is a part of `open` and there only if the image was read, `crop` and `encode` only
            if its embedding was computed.

        Raises:
            RequestError, PromptError: the request breaks a rule.
            VolumeError: the image cannot be read or used.
            WeightsError: the model cannot be loaded.
            torch.OutOfMemoryError: the GPU has not enough memory, even without cached embeddings.
        """
        latencies: dict[str, float] = {}
        with _timed(latencies, "total"):
            answer = parse_answer(request)
            segmentation = self._segment(request, latencies)
            self.on_answer(str(request.get("image_id") or request["image"]), segmentation)
            with _timed(latencies, "write"):
                file = _write(segmentation, answer) if answer.write else None
        logger.info("%s on %s: %s", self.model, request.get("image_id"), latencies)
        return file, self._params(segmentation, answer, latencies)

    def _segment(self, request: Mapping[str, Any], latencies: dict[str, float]) -> Segmentation:
        begin = time.perf_counter()
        with self.store.open(str(request.get("image_id") or request["image"]), request["image"]) as session:
            latencies["open"] = _seconds_since(begin)
            if session.read_seconds is not None:
                latencies["read"] = round(session.read_seconds, 4)
            ask = self._question(request, session)
            with _timed(latencies, "load_model"):
                segmenter = self.loaded()
            try:
                segmentation = ask(segmenter)  # other requests take turns with it, a step of the network at a time
            except torch.OutOfMemoryError:
                segmentation = None  # leave the handler first: the error holds what the failed attempt allocated
            if segmentation is None:
                segmentation = self._segment_with_room(segmenter, session, ask)
        latencies.update({stage: round(ms / 1000, 4) for stage, ms in segmentation.timings_ms.items()})
        return segmentation

    def _question(self, request: Mapping[str, Any], session: ImageSession) -> Question:
        """What the request asks of a segmenter.

        Raises:
            RequestError, PromptError: the request breaks a rule.
        """
        answer = parse_answer(request)
        prompts = replace(
            parse_prompts(request, session.volume.grid), structure=answer.label if request.get("label") else ""
        )
        if not answer.uncertainty:
            return lambda segmenter: segmenter.segment(session, prompts)
        return lambda segmenter: replace(
            segmenter.segment(session, prompts), unsure=uncertainty_map(segmenter, session, prompts)
        )

    def _segment_with_room(self, segmenter: Segmenter, session: ImageSession, ask: Question) -> Segmentation:
        """Segments again after the GPU's memory ran out, without the embeddings and logits that the store kept there.

        Raises:
            torch.OutOfMemoryError: the GPU has not enough memory even then.
        """
        logger.warning("%s: the GPU's memory is full; its cached embeddings are dropped", self.model)
        self.store.forget_values(session)
        return ask(segmenter)

    def _params(self, segmentation: Segmentation, answer: AnswerOptions, latencies: dict[str, float]) -> dict[str, Any]:
        iou = float(segmentation.iou)
        unsure = segmentation.unsure
        more = {} if unsure is None else {"most_uncertain_ijk": list(unsure.most_uncertain_ijk())}
        which = {} if segmentation.taught is None else {"network": "taught" if segmentation.taught else "base"}
        return more | {
            "label_names": {answer.label: 1},
            "predicted_iou": round(iou, 4) if math.isfinite(iou) else None,
            "voxels": int(np.count_nonzero(segmentation.mask_box)),
            "latencies": latencies,
            "model": self.model,
            "weights": {"name": segmentation.weights, "version": segmentation.version} | which,
            "warnings": list(segmentation.warnings),
        }

    def _loaded(self) -> Segmenter:
        """The segmenter of the chosen weights, built at the first call and when the choice changes (a training may have
        been accepted); what works is kept if the new choice does not load. The caller holds the lock."""
        try:
            resolved = self.resolve()
            if self._segmenter is None or self._segmenter.weights_version != resolved.version:
                device = choose_device(self.device)
                segmenter = load_segmenter(resolved, device)
                if isinstance(segmenter, VolumeSegmenter) and (graphs := segmenter.record_graphs()):
                    logger.info("%s: %d CUDA graphs", self.model, graphs)
                self._segmenter = segmenter
                logger.info(
                    "%s: %s weights %s (%s) on %s", self.model, resolved.origin, resolved.name, resolved.version, device
                )
        except weights.WeightsError as error:
            if self._segmenter is None:
                raise
            logger.warning("%s keeps the weights %s: %s", self.model, self._segmenter.weights_name, error)
        return self._segmenter


def _write(segmentation: Segmentation, answer: AnswerOptions) -> str:
    """Writes the mask, or how unsure it is where that was asked for.

    Raises:
        RequestError: the model has no such map.
    """
    if not answer.uncertainty:
        return write_answer(segmentation, answer.extension, answer.dtype)
    unsure = segmentation.unsure
    if unsure is None:
        raise RequestError("uncertainty is offered by the models for volumes that take clicks; leave it out.")
    shown = replace(segmentation, mask_box=unsure.values, corner_ijk=unsure.corner_ijk)
    return write_answer(shown, answer.extension, "float32")


def _seconds_since(begin: float) -> float:
    return round(time.perf_counter() - begin, 4)


@contextmanager
def _timed(latencies: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    latencies[stage] = _seconds_since(begin)

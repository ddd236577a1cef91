"""The models for images and slices: prompts in one slice, or through the stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.config import TaskConfig

from ..conf import weights_model
from ..sam.session import ImageSession
from .interactive import InteractiveInfer, Question
from .request import SLICE_CONFIG, parse_slice_prompts


class SliceInfer(InteractiveInfer):
    """A model that sees slices: of dimension 2 it answers in the slice of the prompts, of dimension 3 through the stack.

    Args: those of InteractiveInfer; the options that the viewers show are request.SLICE_CONFIG.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, config=SLICE_CONFIG)

    def _question(self, request: Mapping[str, Any], session: ImageSession) -> Question:
        prompts, options = parse_slice_prompts(request, session.volume.grid, single=self.dimension == 2)
        return lambda segmenter: segmenter.segment(session, prompts, options)


def slice_infer(config: TaskConfig, dimension: int, description: str) -> SliceInfer:
    """The inference task of a config, from what the app gave it."""
    app_conf = config.kwargs["app_conf"]
    return SliceInfer(
        model=config.name,
        labels=app_conf.labels,
        model_dir=config.model_dir,
        store=config.kwargs["store"],
        weights_choice=app_conf.weights_of(config.name),
        device=app_conf.device,
        description=description,
        weights_model=weights_model(config.name),
        dimension=dimension,
    )

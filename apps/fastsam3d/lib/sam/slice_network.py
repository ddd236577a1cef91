"""A 2D network as it is served: fused encoder, half precision, slices and prompts in batches."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from .build import Sam2D
from .compute import computed
from .device import has_bfloat16
from .half import halved
from .networks.fuse import fused_encoder

logger = logging.getLogger(__name__)

ENCODE_BATCH, DECODE_BATCH = 8, 4
"""Slices encoded, and prompts decoded, at once; with more of them a CPU was no faster (docs/benchmarks.md)."""

SINGLE_CLICKS = 16
"""So many clicks of a slice are replayed one at a time; the rest all at once."""


@dataclass(frozen=True)
class SlicePrompt:
    """What is asked of one slice, in pixels of the model's image.

    Attributes:
        box: x0, y0, x1, y1, or None.
        clicks: (x, y, sign) with 1 on the object and 0 on what is not it, in their order.
    """

    box: tuple[float, ...] | None = None
    clicks: tuple[tuple[float, float, int], ...] = ()


class InHalf(nn.Module):
    """A copy of a module that works in bfloat16 throughout, between callers in float32.

    Faster than autocast, which goes back to float32 for every normalisation and sum.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = halved(copy.deepcopy(module).bfloat16())

    def forward(self, *args, **kwargs):
        args, kwargs = tree_map(lambda x: x.bfloat16() if _is_real(x) else x, (args, kwargs))
        return tree_map(lambda x: x.float() if _is_real(x) else x, self.module(*args, **kwargs))


class SliceNetwork:
    """Encoder and decoder of a `Sam2D`.

    Args:
        model: in its trained form; it is moved to the device and not changed otherwise.
        device: where it runs.
        fused: whether the encoder is re-parameterised; where both forms disagree the trained one is used, with a warning
            in the log.
        half: bfloat16; None where the device computes so natively.
    """

    def __init__(
        self, model: Sam2D, device: torch.device | str = "cpu", fused: bool = True, half: bool | None = None
    ) -> None:
        self.spec, self.device = model.spec, torch.device(device)
        self.half = has_bfloat16(self.device) if half is None else half
        model = model.to(self.device).eval().requires_grad_(False)
        encoder = _fused(model) if fused else copy.deepcopy(model.image_encoder)
        encoder = encoder.to(memory_format=torch.channels_last)
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)  # parts are exchanged here and not in the model
        self.model.image_encoder = encoder.bfloat16() if self.half else encoder
        if self.half:
            self.model.mask_decoder = InHalf(model.mask_decoder)
        self.model.eval().requires_grad_(False)

    def encode(self, images: np.ndarray, batch: int = ENCODE_BATCH) -> list[Tensor]:
        """Images (B, 3, S, S) float32 in [0, 1] -> the encoder's embeddings (out, g, g), before any enlargement.

        Each has memory of its own, so that it can be kept without the others.
        """
        return [one for n in range(0, len(images), batch) for one in self._encode(images[n : n + batch])]

    @computed
    def _encode(self, images: np.ndarray) -> list[Tensor]:
        pixels = torch.from_numpy(images).to(self.device, torch.bfloat16 if self.half else torch.float32)
        found = self.model.image_encoder(pixels.contiguous(memory_format=torch.channels_last))
        return [one.clone(memory_format=torch.contiguous_format) for one in found]

    def decode(
        self, embeddings: Sequence[Tensor], prompts: Sequence[SlicePrompt], batch: int = DECODE_BATCH
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answers prompts, each on the embedding of its slice.

        Args:
            embeddings: (out, g, g) of `encode`, one a prompt; where neighbours are the same tensor it is worked on once.
            prompts: at least one. batch: how many at once.

        Returns:
            logits (B, S, S) over the model's image and predicted IoU (B,), float32.
        """
        logits = np.empty((len(prompts), self.spec.image_size, self.spec.image_size), dtype=np.float32)
        iou = np.empty(len(prompts), dtype=np.float32)

        def form(n: int) -> tuple[bool, int]:
            return prompts[n].box is not None, len(prompts[n].clicks)

        for _, group in groupby(sorted(range(len(prompts)), key=form), form):
            members = list(group)
            for chunk in (members[i : i + batch] for i in range(0, len(members), batch)):
                answer = self._decode_alike([embeddings[n] for n in chunk], [prompts[n] for n in chunk])
                logits[chunk], iou[chunk] = (x.cpu().numpy() for x in answer)
        return logits, iou

    @computed
    def _decode_alike(self, embeddings: list[Tensor], prompts: list[SlicePrompt]) -> tuple[Tensor, Tensor]:
        """Prompts with the same number of clicks, all of them with a box or none."""
        shared = all(embedding is embeddings[0] for embedding in embeddings)
        boxes = None if prompts[0].box is None else torch.tensor([p.box for p in prompts], dtype=torch.float32)
        boxes = None if boxes is None else boxes.to(self.device)
        clicks = torch.tensor([p.clicks for p in prompts], dtype=torch.float32, device=self.device)
        clicks = clicks.reshape(len(prompts), -1, 3)
        previous = None
        image = self.model.enlarge(torch.stack(embeddings[:1] if shared else embeddings))
        for count in self._rounds(clicks.shape[1], boxes is not None):
            points = (clicks[:, :count, :2], clicks[:, :count, 2].long()) if count else None
            previous, iou = self.model.decode(image, points, boxes, previous)
        mask = F.interpolate(previous, (self.spec.image_size,) * 2, mode="bilinear", align_corners=False)
        return mask[:, 0], iou[:, 0]

    def _rounds(self, clicks: int, box: bool) -> list[int]:
        """How many clicks each decoder pass sees. Models trained with rounds get them one by one, each pass with the
        logits of the one before; the published ones get all at once."""
        if not self.spec.decoder.dense_clicks:
            return [clicks]
        rounds = list(range(0 if box else 1, min(clicks, SINGLE_CLICKS) + 1))
        return rounds + ([clicks] if clicks > SINGLE_CLICKS else [])


def _fused(model: Sam2D) -> nn.Module:
    try:
        return fused_encoder(model.image_encoder)
    except ValueError as error:
        logger.warning("%s: %s", model.spec.name, error)
        return copy.deepcopy(model.image_encoder)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

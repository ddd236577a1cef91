"""Encoder and decoder with plain tensors as inputs and outputs: what is exported, with a name and a meaning for each.

Thin shells: all they do is name what `Sam3D` and `Sam2D` take and return. Batch 1, float32 throughout, so that a client
fills one kind of array only; the number of prompts is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .build import Sam2D, Sam3D
from .networks.fuse import fused_encoder
from .networks.layers import trilinear
from .spec import Sam2dSpec, SamSpec

PROMPTS = "prompts"
"""Name of the free axis."""


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: in the file. shape: numbers, and `PROMPTS` for the free axis. meaning: frame, unit, range.
    """

    name: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class Graph:
    """One network to export.

    Attributes:
        module: takes the inputs in their order, returns a tuple of the outputs.
        inputs, outputs: as the file names them.
    """

    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def sample(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, with three prompts."""
        return tuple(torch.zeros([3 if n == PROMPTS else n for n in port.shape]) for port in self.inputs)


class Encoder(nn.Module):
    """`encode` with all it returns in one tuple; a 2D encoder in its fused form, where that is the same."""

    def __init__(self, model: Sam3D | Sam2D) -> None:
        super().__init__()
        self.model = model
        if isinstance(model, Sam2D):
            try:
                self.fused = fused_encoder(model.image_encoder)
            except ValueError:  # both forms disagree: as in serving the trained one is used
                self.fused = model.image_encoder

    def forward(self, patch: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, Sam2D):
            return (self.model.enlarge(self.fused(patch)),)
        embedding, skips = self.model.encode(patch)
        return (embedding, *skips)


class Decoder3D(nn.Module):
    """One decoder pass, and the logits as they are shown."""

    def __init__(self, model: Sam3D) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, labels: Tensor, previous: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        embedding = (features[0], features[1:])
        logits, iou = self.model.decode(embedding, (points, labels.long()), previous)
        shown = trilinear(self.model.sharpen(embedding, logits).float(), self.model.spec.patch_size)
        return logits, iou, shown


class Decoder2D(nn.Module):
    """The same for images. A previous mask of zeros counts as none."""

    def __init__(self, model: Sam2D) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, labels: Tensor, previous: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        spec = self.model.spec
        given = None if spec.decoder.dense_clicks else (previous != 0).flatten(1).any(1)
        logits, iou = self.model.decode_list(features[0], points, labels.long(), previous, given)
        return logits, iou, F.interpolate(logits, spec.image_size, mode="bilinear", align_corners=False)


def encoder_graph(model: Sam3D | Sam2D) -> Graph:
    """The image encoder of a network in evaluation mode."""
    spec = model.spec
    if isinstance(spec, Sam2dSpec):
        s = spec.image_size
        source = Port(
            "image", (1, 3, s, s), "prepared image (see preprocessing), axes: channel, row, column; in [0, 1]"
        )
    else:
        s = spec.patch_size
        source = Port(
            "patch", (1, spec.encoder.channels, s, s, s), "prepared patch (see preprocessing), then its three axes"
        )
    return Graph(Encoder(model).eval(), (source,), _features(spec))


def decoder_graph(model: Sam3D | Sam2D) -> Graph:
    """Prompt encoder and mask decoder of a network in evaluation mode, one pass."""
    spec = model.spec
    flat = isinstance(spec, Sam2dSpec)
    dims, m = (2, spec.mask_size) if flat else (3, spec.mask_size)
    size = spec.image_size if flat else spec.patch_size
    frame = "(x, y) in pixels of the prepared image" if flat else "(axis 0, 1, 2) in voxels of the patch"
    inputs = (
        Port("points", (1, PROMPTS, dims), f"{frame}; integers are centres; at least one prompt"),
        Port("labels", (1, PROMPTS), "what each point is, see labels; whole numbers as float32"),
        Port("previous", (1, 1, *(m,) * dims), "`logits` of the pass before; zeros in the first pass"),
        *_features(spec),
    )
    outputs = (
        Port("logits", (1, 1, *(m,) * dims), "low resolution; goes into the next pass as `previous`"),
        Port("iou", (1, 1), "the network's own estimate of the mask's intersection over union"),
        Port(
            "mask_logits",
            (1, 1, *(size,) * dims),
            "of every pixel or voxel of the input; the mask is where they are > 0",
        ),
    )
    return Graph((Decoder2D if flat else Decoder3D)(model).eval(), inputs, outputs)


def _features(spec: SamSpec | Sam2dSpec) -> tuple[Port, ...]:
    """What the encoder gives to the decoder, in the order of `encode`."""
    if isinstance(spec, Sam2dSpec):
        e = spec.encoder
        channels = e.out + (16 * (3 + e.detail) if e.detail else 0)
        return (Port("embedding", (1, channels, spec.grid, spec.grid), "for the decoder only"),)
    e, s, d = spec.encoder, spec.patch_size, spec.decoder

    def cube(name: str, channels: int, edge: int) -> Port:
        return Port(name, (1, channels, edge, edge, edge), "for the decoder only")

    found = [cube("embedding", e.out, e.grid)]
    if e.stem_widths:
        finest, fine, coarse = e.stem_widths
        found += [cube("stem_8", coarse, s // 8), cube("stem_4", fine, s // 4)]
        if d.appearance:
            found.append(cube("intensity_4", e.channels, spec.mask_size))
        if d.sharpen:
            found += [cube("stem_2", finest, s // 2), cube("intensity_2", e.channels, 2 * spec.mask_size)]
    return tuple(found)

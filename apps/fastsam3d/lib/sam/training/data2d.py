"""Training images for the 2D models: slices of generated anatomy and of labelled scans, and generated pictures.

A sample is an image of the model's size with several target objects, prepared as serving prepares it
(`slices.preprocess_image`); what varies is varied before that. The stream is a function of its seed and of the index of
the batch, so a run that is resumed goes on with the images that it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info

from ..anatomy.fields import Draw
from ..anatomy.generator import MIX, generate
from ..anatomy.pictures import picture
from ..slices import preprocess_image
from .data import LabelledScan

MIN_PIXELS = 40
"""Smallest object that is a target, model pixels."""

MIN_ANNOTATED = 12
"""The same of what somebody annotated: a vessel counts."""

_AIR_HU = -900.0


@dataclass
class LabelledSlice:
    """image (h, w) or (h, w, 3) uint8; label (h, w) int, 0 = nothing."""

    image: Tensor
    label: Tensor


class Source(Protocol):
    """Where a user's own slices come from, see folders2d.py."""

    def slice(self, draw: Draw) -> LabelledSlice | None:
        """One slice, or None where a file has no objects."""
        ...


def plane(
    volume: Tensor, label: Tensor, centre: Tensor, axes: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples a volume and its label map on a plane.

    Args:
        volume: (I, J, K) float32. label: (I, J, K) float32 (whole numbers).
        centre: (3,) voxel coordinates of the plane's middle. axes: (2, 3) voxels a step along rows and columns.
        shape: (h, w) of the result.

    Returns:
        image (h, w) float32, 0 outside; label (h, w) int64; inside (h, w) bool.
    """
    rows, columns = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape)
    points = centre + rows[:, None, None] * axes[0] + columns[None, :, None] * axes[1]
    unit = (points + 0.5) / torch.tensor(volume.shape, dtype=torch.float32) * 2 - 1
    inside = (unit.abs() <= 1).all(dim=-1)
    grid = unit.flip(-1)[None, None]
    image = F.grid_sample(volume[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    names = F.grid_sample(label[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return image[0, 0, 0] * inside, names[0, 0, 0].round().long() * inside, inside


def random_plane(draw: Draw, scan: LabelledScan, size: int, oblique_share: float = 0.3) -> LabelledSlice | None:
    """A slice through a random voxel of a random object, in random orientation, scale and window; None if all is one value.

    Seven of ten lie along the volume's axes, as stored slices do; the field of view reaches from a part of the volume
    to more than its extent.
    """
    extent = scan.spacing_mm * torch.tensor(scan.label.shape)
    sample = scan.label[:: max(1, scan.label.shape[0] // 64), ::2, ::2]
    present = torch.unique(sample)
    present = present[present > 0]
    centre = 0.5 * torch.tensor(scan.label.shape, dtype=torch.float32)
    if len(present):
        voxels = torch.nonzero(sample == present[draw.integer(0, len(present))])
        step = torch.tensor([max(1, scan.label.shape[0] // 64), 2, 2])
        centre = (voxels[draw.integer(0, len(voxels))] * step).float()
    turn = draw.rotation() if draw.chance(oblique_share) else torch.eye(3)[torch.randperm(3, generator=draw.generator)]
    across = [float((turn[a].abs() * extent).max()) for a in range(2)]  # mm that the volume reaches along rows, columns
    field = max(across) * (draw.uniform(0.9, 1.1) if draw.chance(0.5) else draw.log_uniform(0.35, 1.3))
    pixel = field / size  # mm
    shape = tuple(int(min(size, max(size // 3, round(a / pixel)))) for a in across)
    shape = (size, shape[1]) if shape[0] >= shape[1] else (shape[0], size)
    middle = 0.5 * torch.tensor(scan.label.shape, dtype=torch.float32)
    in_plane = (turn[:2].abs() > 0.5).any(0)
    if field > 0.85 * max(across):  # a whole slice: its middle is the volume's
        centre = torch.where(in_plane, middle, centre)
    axes = pixel * turn[:2] / scan.spacing_mm
    image, label, inside = plane(scan.image, scan.label, centre, axes, shape)
    grey = to_grey(draw, image, inside)
    return None if grey is None else LabelledSlice(grey, label)


def to_grey(draw: Draw, image: Tensor, inside: Tensor) -> Tensor | None:
    """8 bits through a random window: that of soft tissue for CT, percentiles, or the whole range; (h, w) uint8."""
    values = image[inside]
    if values.numel() < 100:
        return None
    low, high = float(values.min()), float(values.max())
    kind = draw.uniform(0, 1)
    if low < _AIR_HU and kind < 0.6:
        level, width = draw.choice([(40, 400), (40, 400), (40, 350), (60, 250), (-160, 1500), (400, 1800)])
        level, width = level + 20 * float(draw.normal(())), width * draw.log_uniform(0.8, 1.25)
        low, high = level - width / 2, level + width / 2
    elif kind < 0.9:
        ends = torch.tensor([draw.uniform(0, 0.02), 1 - draw.uniform(0, 0.02)])
        low, high = torch.quantile(values[:: max(1, values.numel() // 20_000)], ends).tolist()
    if not high > low:
        return None
    return ((image - low) / (high - low)).clamp(0, 1).mul(255).to(torch.uint8) * inside


def mosaic(draw: Draw, scan: LabelledScan, size: int) -> LabelledSlice | None:
    """Four smaller slices of one case side by side: organs as small as they are in a slice of a whole trunk."""
    parts = [random_plane(draw, scan, size // 2) for _ in range(4)]
    if any(part is None for part in parts):
        return None
    image = torch.zeros(size, size, dtype=torch.uint8)
    label = torch.zeros(size, size, dtype=torch.long)
    offset = 0
    for part, (row, column) in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1))):
        h, w = part.label.shape
        place = (slice(row * size // 2, row * size // 2 + h), slice(column * size // 2, column * size // 2 + w))
        image[place] = part.image
        label[place] = torch.where(part.label > 0, part.label + offset, 0)
        offset = int(label.max())
    return LabelledSlice(image, label)


def vary(draw: Draw, item: LabelledSlice) -> LabelledSlice:
    """Random flips, quarter turns and changes of intensity; cheap, so that a slice can be used again."""
    image, label = item.image, item.label
    if draw.chance(0.5):
        image, label = image.transpose(0, 1), label.transpose(0, 1)
    flips = [a for a in (0, 1) if draw.chance(0.5)]
    image, label = image.flip(flips), label.flip(flips)
    shown = image.float() / 255
    if draw.chance(0.5):
        shown = shown ** draw.log_uniform(0.6, 1.7)
    if draw.chance(0.1):
        shown = 1 - shown
    if draw.chance(0.3):
        noise = draw.normal(*shown.shape)
        shown = shown + draw.log_uniform(0.005, 0.06) * noise * (shown > 0)
    if shown.ndim == 3 and draw.chance(0.3):
        shown = shown[..., torch.randperm(3, generator=draw.generator)]
    return LabelledSlice((shown.clamp(0, 1) * 255).round().to(torch.uint8), label)


def pick_masks(draw: Draw, label: Tensor, count: int, annotated: bool = False) -> Tensor:
    """Masks (count, h, w) bool of `count` random objects; empty when there is none of MIN_PIXELS.

    Mostly the largest connected part, sometimes all parts, of a label; holes (a lesion in an organ) are closed in half
    of them. Objects repeat where there are fewer.

    Args:
        annotated: a person drew the label: always its largest part, as it was drawn, from MIN_ANNOTATED pixels on.
    """
    sizes = torch.bincount(label.flatten())
    smallest = MIN_ANNOTATED if annotated else MIN_PIXELS
    wanted = [v for v in range(1, len(sizes)) if int(sizes[v]) >= smallest]
    masks = []
    while wanted and len(masks) < count:
        mask = (label == wanted.pop(draw.integer(0, len(wanted)))).numpy()
        if annotated or draw.chance(0.8):
            parts, n = ndimage.label(mask)
            if n > 1:
                mask = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        if not annotated and draw.chance(0.5):
            mask = ndimage.binary_fill_holes(mask)
        if mask.sum() >= smallest:
            masks.append(torch.from_numpy(mask))
    if not masks:
        return torch.empty(0, *label.shape, dtype=torch.bool)
    return torch.stack([masks[i % len(masks)] for i in range(count)])


def sample(
    draw: Draw, item: LabelledSlice, size: int, objects: int, annotated: bool = False
) -> dict[str, Tensor] | None:
    """The model's image of a slice and its targets (see `pick_masks`), or None where no object is left.

    Returns:
        "image" (3, size, size) float32 in [0, 1]; "target" (objects, size, size) bool.
    """
    image = torch.from_numpy(preprocess_image(item.image.numpy(), size))
    height, width = item.label.shape
    scale = size / max(height, width)
    label = item.label.to(torch.int32)
    if max(height, width) != size:
        shape = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        label = F.interpolate(label[None, None].float(), shape, mode="nearest-exact")[0, 0].to(torch.int32)
    masks = pick_masks(draw, label, objects, annotated)
    if not len(masks):
        return None
    target = torch.zeros(objects, size, size, dtype=torch.bool)
    target[:, : label.shape[0], : label.shape[1]] = masks
    return {"image": image, "target": target}


@dataclass(frozen=True)
class Mix:
    """What a block of slices is made of.

    Attributes:
        cases, slices: generated volumes, and slices of each. scans: slices of real scans, where there are any.
        pictures: generated ones.
        own: slices of the user's folder. visits: how often each slice is varied and used.
        scenes: (scene, share) of the generated volumes.
    """

    cases: int = 3
    slices: int = 10
    scans: int = 14
    pictures: int = 12
    own: int = 0
    visits: int = 3
    scenes: tuple[tuple[str, float], ...] = tuple(MIX.items())


class ImageBatches(IterableDataset):
    """Endless batches {"image" (B, 3, S, S) float32, "target" (B, K, S, S) bool}, the same for the same seed.

    Slices are drawn in blocks that fit in memory and visited in random order; batch n belongs to block n // length.

    Args:
        seed: of the stream. size: edge of the model's image. images: B. objects: K.
        scans: real scans (none: smaller blocks). own: the user's slices. start: index of the first batch.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        images: int,
        objects: int,
        mix: Mix,
        scans: list[LabelledScan],
        own: Source | None = None,
        start: int = 0,
    ) -> None:
        self.seed, self.size, self.images, self.objects = seed, size, images, objects
        self.mix, self.scans, self.own, self.start = mix, scans, own, start
        if own is None and mix.own:
            raise ValueError("the recipe's mix has slices of your own (own > 0): name their folder with --data")
        per_block = mix.cases * mix.slices + (mix.scans if scans else 0) + mix.pictures + mix.own
        self.length = max(1, per_block * mix.visits // images)

    def block(self, index: int) -> list[LabelledSlice]:
        """The slices of one block."""
        draw, mix = Draw(self.seed * 1_000_003 + index), self.mix
        items: list[LabelledSlice | None] = []
        for _ in range(mix.cases):
            case = generate(draw.integer(0, 2**31), mix=dict(mix.scenes))
            scan = LabelledScan("generated", case.image, case.label.float(), torch.ones(3))
            items += [
                mosaic(draw, scan, self.size) if draw.chance(0.3) else random_plane(draw, scan, self.size)
                for _ in range(mix.slices)
            ]
        for _ in range(mix.scans if self.scans else 0):
            items.append(random_plane(draw, draw.choice(self.scans), self.size, 0.2))
        for _ in range(mix.pictures):
            shown = picture(draw.integer(0, 2**31), self.size)
            items.append(LabelledSlice(shown.image, shown.label))
        items += [self.own.slice(draw) for _ in range(mix.own)] if self.own else []
        return [item for item in items if item is not None]

    def batches(self, index: int) -> Iterator[dict[str, Tensor]]:
        """The `length` batches of one block.

        Raises:
            ValueError: no slice of the block holds an object.
        """
        items = self.block(index)
        draw = Draw(self.seed * 1_000_003 + index + 500_009)
        samples: list[dict[str, Tensor]] = []
        done = 0
        while True:
            before = done, len(samples)
            for place in torch.randperm(len(items), generator=draw.generator).tolist():
                found = sample(draw, vary(draw, items[place]), self.size, self.objects)
                if found is not None:
                    samples.append(found)
                if len(samples) == self.images:
                    yield {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
                    samples, done = [], done + 1
                    if done == self.length:
                        return
            if (done, len(samples)) == before:
                raise ValueError(f"none of {len(items)} slices holds an object of {MIN_PIXELS} model pixels or more")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        if info:
            torch.set_num_threads(1)
        begin, skip = divmod(self.start, self.length)
        index = begin + first
        while True:
            for n, batch in enumerate(self.batches(index)):
                if index != begin or n >= skip:
                    yield batch
            index += step

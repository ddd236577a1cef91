"""Training patches: generated anatomy and real labelled scans, as normalised patches with several target objects each.

A sample is a dict of tensors, V cubes of edge s (s = S, or smaller cubes cut from one case), K targets each:
    image   (V, channels, s, s, s) float16, normalised (intensity.normalise)
    target  (V, K, s/2, s/2, s/2) uint8: 64 times the object's share of each cell of two voxels an axis
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info

from ..anatomy.fields import Draw
from ..anatomy.generator import MIX, Case, generate
from ..anatomy.rendering import render
from ..anatomy.scenes import from_label_map
from ..intensity import normalise
from ..preprocess import read_volume
from ..spec import SamSpec

MIN_VOXELS = 60
CASE_EDGE = 128  # voxels; scenes are made for cubes of about this size, smaller patches are cut from them


@dataclass
class LabelledScan:
    """One real scan with its label map on the same grid; arrays (I, J, K), spacing in mm per axis."""

    name: str
    image: Tensor
    label: Tensor
    spacing_mm: Tensor


def load_scans(folder: Path, pairs: list[tuple[str, str]]) -> list[LabelledScan]:
    """Read the (image, label) pairs below `folder`."""
    scans = []
    for image_name, label_name in pairs:
        image, label = read_volume(folder / image_name), read_volume(folder / label_name)
        if image.array.shape != label.array.shape:
            raise ValueError(f"image and label must have the same shape, got {image_name} and {label_name}")
        values, compact = np.unique(label.array.astype(np.int64), return_inverse=True)
        compact = compact.reshape(label.array.shape) + (1 if values[0] != 0 else 0)
        scans.append(
            LabelledScan(
                image_name,
                torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32)),
                torch.from_numpy(np.ascontiguousarray(compact, dtype=np.float32)),
                torch.from_numpy(np.asarray(image.grid.spacing_mm, dtype=np.float32)),
            )
        )
    return scans


def read_split(path: Path) -> list[tuple[str, str]]:
    """The (image, label) pairs under "train" of a split file."""
    return [tuple(pair) for pair in json.loads(Path(path).read_text())["train"]]


def sample_scan(draw: Draw, scan: LabelledScan, size: int, spacing_mm: float) -> Case:
    """A rotated, scaled patch of a real scan around a random voxel of a random label."""
    present = torch.unique(scan.label)
    present = present[present > 0]
    value = present[draw.integer(0, len(present))]
    voxels = torch.nonzero(scan.label == value)
    extent = scan.spacing_mm * torch.tensor(scan.label.shape)
    spacing = spacing_mm * draw.log_uniform(0.6, 1.6)
    spacing = min(spacing, float(extent.max()) / size * 2.0)
    centre = (voxels[draw.integer(0, len(voxels))] + 0.5) * scan.spacing_mm
    centre = centre + (draw.rand(3) - 0.5) * size * spacing * 0.5
    turn = torch.eye(3)
    if draw.chance(0.7):  # a small rotation; whole turns come with `reorient`
        angle = 0.35 * draw.normal(3)
        skew = torch.tensor([[0, -angle[2], angle[1]], [angle[2], 0, -angle[0]], [-angle[1], angle[0], 0]])
        turn = torch.linalg.matrix_exp(skew)
    axis = (torch.arange(size) - (size - 1) / 2) * spacing
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1) @ turn.T + centre  # mm from corner
    unit = points / extent * 2 - 1
    inside = (unit.abs() <= 1).all(dim=-1)
    grid = unit.flip(-1)[None]
    image = F.grid_sample(scan.image[None, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    label = F.grid_sample(scan.label[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return Case(image[0, 0] * inside, label[0, 0].round().long() * inside, inside)


def repaint(draw: Draw, case: Case) -> Case:
    """The label map of a real case with random intensities; the unlabelled rest split by its real intensities."""
    values = case.image[case.inside]
    if values.numel() < 1000:
        return case
    cuts = torch.quantile(values[:: max(1, values.numel() // 100_000)], torch.linspace(0.25, 0.85, 4))
    scene = from_label_map(draw, case.label, torch.bucketize(case.image, cuts))
    image, inside = render(draw, scene)
    return Case(image, scene.label * inside, inside)


def vary(draw: Draw, case: Case) -> Case:
    """Random axis order, flips and intensity changes of a case; cheap, so that a case can be used again."""
    order = torch.randperm(3, generator=draw.generator).tolist()
    flips = [a for a in range(3) if draw.chance(0.5)]
    image, label, inside = (x.permute(order).flip(flips) for x in (case.image, case.label, case.inside))
    if draw.chance(0.15):
        image = -image
    if draw.chance(0.3):
        image = image + draw.log_uniform(0.01, 0.08) * float(image.std()) * draw.normal(*image.shape)
    return Case(image, label, inside)


def occupancy(mask: Tensor, edge: int) -> Tensor:
    """Share of each cell of `edge` voxels an axis: (..., S, S, S) bool or float -> (..., S/edge, ...) float32."""
    m = mask.shape[-1] // edge
    return mask.reshape(*mask.shape[:-3], m, edge, m, edge, m, edge).float().mean((-5, -3, -1))


def pick_targets(draw: Draw, label: Tensor, count: int, repeat: bool = True) -> Tensor:
    """Occupancy (count, S/2, S/2, S/2) uint8 in 0..64 of `count` random objects (their largest connected part).

    Returns an empty tensor when the patch holds no object of MIN_VOXELS. Where there are fewer, they repeat, or are returned
    once with `repeat=False`.
    """
    sizes = torch.bincount(label.flatten())
    wanted = [v for v in range(1, len(sizes)) if int(sizes[v]) >= MIN_VOXELS]
    targets = []
    while wanted and len(targets) < count:
        value = wanted.pop(draw.integer(0, len(wanted)))
        halves = occupancy(label == value, 2)
        cells = occupancy(halves, 2)
        parts, n = ndimage.label((cells > 0).numpy(), structure=np.ones((3, 3, 3)))
        if n > 1:
            keep = torch.from_numpy(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))
            cells = cells * keep
            halves = halves * keep.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
        if bool((cells > 0.5).any()):  # what losses and clicks count as the object
            targets.append((halves * 64).round().to(torch.uint8))
    if not targets:
        return torch.empty(0)
    return torch.stack([targets[i % len(targets)] for i in range(count if repeat else len(targets))])


def case_edge(spec: SamSpec) -> int:
    """Edge in voxels of the cases from which a network's patches are cut."""
    return max(CASE_EDGE, spec.patch_size)


def cut(draw: Draw, case: Case, edge: int) -> Case:
    """A cube of `edge` voxels of the case, around a random voxel of a random object."""
    size = case.label.shape[0]
    present = torch.unique(case.label[::4, ::4, ::4])
    present = present[present > 0]
    begin = [draw.integer(0, size - edge + 1) for _ in range(3)]
    if len(present):
        voxels = torch.nonzero(case.label[::4, ::4, ::4] == present[draw.integer(0, len(present))]) * 4
        centre = voxels[draw.integer(0, len(voxels))].tolist()
        begin = [min(max(0, c - draw.integer(edge // 4, 3 * edge // 4 + 1)), size - edge) for c in centre]
    window = tuple(slice(b, b + edge) for b in begin)
    return Case(case.image[window], case.label[window], case.inside[window])


class TrainingPatches(IterableDataset):
    """Endless stream of samples; worker w of seed s is deterministic.

    Args:
        seed: of the stream; validation uses its own range of generator seeds.
        size: edge of the cases. intensity: see intensity.normalise. objects: targets a cube.
        scans: real scans, used for `real_share` of the patches. reuse: how often a case is varied and used.
        mix: scenes of the generated cases.

    Attributes:
        edge, cubes: edge and number of the cubes of a sample; may be changed between samples (no workers). At first a
            sample is one whole case.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        spacing_mm: float,
        intensity: str,
        objects: int,
        scans: list[LabelledScan],
        real_share: float = 0.3,
        reuse: int = 2,
        mix: Mapping[str, float] = MIX,
    ) -> None:
        self.seed, self.size, self.spacing_mm, self.intensity = seed, size, spacing_mm, intensity
        self.objects, self.scans, self.real_share, self.reuse = objects, scans, real_share, reuse
        self.mix = mix
        self.edge, self.cubes = size, 1

    @classmethod
    def of(cls, spec: SamSpec, seed: int, objects: int, scans: Sequence[LabelledScan] = (), **rest) -> TrainingPatches:
        """Patches of a network's size, with its intensities; cut from larger cases where that size is small.

        Args:
            rest: real_share, reuse, mix.
        """
        size = case_edge(spec)
        patches = cls(seed, size, spec.spacing_mm, spec.intensity, objects, list(scans), **rest)
        patches.edge = spec.patch_size
        return patches

    def case(self, draw: Draw) -> Case:
        """One fresh case, real or generated."""
        if self.scans and draw.chance(self.real_share):
            case = sample_scan(draw, draw.choice(self.scans), self.size, self.spacing_mm)
            return repaint(draw, case) if draw.chance(0.35) else case
        return generate(draw.integer(0, 2**31), self.size, mix=self.mix)

    def sample(self, draw: Draw, case: Case) -> dict[str, Tensor] | None:
        """The cubes of one varied case; None when no object was found."""
        images, targets = [], []
        for _ in range(4 * self.cubes):
            cube = case if self.edge == self.size else cut(draw, case, self.edge)
            target = pick_targets(draw, cube.label.contiguous(), self.objects)
            if len(target):
                image = normalise(cube.image.contiguous().numpy(), cube.inside.contiguous().numpy(), self.intensity)
                images.append(torch.from_numpy(image).half())
                targets.append(target)
            if len(images) == self.cubes:
                return {"image": torch.stack(images), "target": torch.stack(targets)}
            if self.edge == self.size:
                return None
        return None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        if info:
            torch.set_num_threads(1)
        draw = Draw(self.seed * 1009 + (info.id if info else 0))
        while True:
            case = self.case(draw)
            for _ in range(self.reuse):
                sample = self.sample(draw, vary(draw, case))
                if sample is None:
                    break
                yield sample

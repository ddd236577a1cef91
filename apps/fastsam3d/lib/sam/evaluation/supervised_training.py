"""Training of the supervised reference: patches of whole label maps, Dice and cross entropy, for so many minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import whole_file
from ..geometry import Grid, Lattice
from ..training.loop import cosine_rate, decay_groups
from ..volume_io import Volume
from .supervised_network import NetworkPlan, new_network, scan_input

RATE, DECAY, WARMUP_STEPS = 3e-3, 1e-4, 10
BATCH = 2
VOXELS = 2**21
"""Scans are seen so coarsely that the median one has at most so many voxels: whole bodies at about 3 mm on a CPU."""

EDGE, _MULTIPLE = 64, 8
_TURN, _SCALE = 0.2, 0.15  # radians and shares, in patches that are turned and scaled


@dataclass(frozen=True)
class Recipe:
    """How long a network learns.

    Attributes:
        minutes: wall time of each network.
        steps: at most so many steps; 0 leaves it to the time. With it a training can be repeated exactly.
        filters: SegResNet's first width.
        seed: of the weights, the patches and the folds.
    """

    minutes: float = 10.0
    steps: int = 0
    filters: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A scan as training reads it, in two .npy files.

    Attributes:
        image: (2, X, Y, Z) float16. label: (X, Y, Z) uint16 of channels. places: voxels of each channel, (N, 3) at most
            a few thousand each.
    """

    image: Path
    label: Path
    places: dict[int, np.ndarray]


def choose_spacing(grids: Sequence[Grid]) -> float:
    """The cubic voxel size: the scans' own (median of geometric means), or coarser, see VOXELS."""
    own = median(float(np.prod(g.spacing_mm)) ** (1 / 3) for g in grids)
    size = median(float(np.prod(g.spacing_mm * g.shape)) for g in grids)
    return round(max(own, (size / VOXELS) ** (1 / 3)), 3)


def choose_edge(grids: Sequence[Grid], spacing_mm: float) -> tuple[int, int, int]:
    """Voxels of a patch along each axis: EDGE, or what the largest scan needs, in multiples of 8."""
    largest = np.max([Lattice.resampled(g, spacing_mm).canonical().shape for g in grids], axis=0)
    return tuple(min(EDGE, -(-int(n) // _MULTIPLE) * _MULTIPLE) for n in largest)


def write_sample(
    volume: Volume, target: np.ndarray, values: Sequence[int], spacing_mm: float, stem: Path, rng: np.random.Generator
) -> Sample:
    """Resamples a scan and its label map once, and remembers where its structures lie.

    Args:
        target: (I, J, K) integers, the label map on the scan's grid.
        values: the label of every channel but the first; other labels count as background.
        stem: path of the two files, without ending.
    """
    lattice, image = scan_input(volume, spacing_mm)
    channels = np.zeros(lattice.shape, dtype=np.uint16)
    stored = lattice.crop(target, order=0)
    for channel, value in enumerate(values, start=1):
        channels[stored == value] = channel
    files = stem.with_name(f"{stem.name}_image.npy"), stem.with_name(f"{stem.name}_label.npy")
    for path, array in zip(files, (image.astype(np.float16), channels)):
        with whole_file(path) as file:
            np.save(file, array)
    places = {}
    for channel in np.unique(channels).tolist():
        found = np.argwhere(channels == channel)
        places[channel] = found[rng.permutation(len(found))[:4000]].astype(np.int32) if channel else found[:0]
    return Sample(*files, places)


def train(
    plan: NetworkPlan,
    samples: Sequence[Sample],
    recipe: Recipe,
    device: torch.device,
    tick: Callable[[float], None] = lambda share: None,
) -> tuple[nn.Module, int, float]:
    """Trains a network from scratch.

    Args:
        tick: is told the share of the training that is done.

    Returns:
        The network, its steps, and the mean loss of the last tenth of them.
    """
    from monai.losses import DiceCELoss

    torch.manual_seed(recipe.seed)
    network = new_network(plan).to(device).train()
    optimizer = torch.optim.AdamW(decay_groups(network, DECAY), lr=RATE)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    begin, step, losses = time.monotonic(), 0, []
    for images, labels in _batches(samples, plan.edge, np.random.default_rng(recipe.seed)):
        share = (time.monotonic() - begin) / (60 * recipe.minutes)
        if recipe.steps:
            share = max(share, step / recipe.steps)
        tick(min(1.0, share))
        if share >= 1 and step:
            break
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(RATE, step, WARMUP_STEPS, share)
        loss = criterion(network(images.to(device)), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        step += 1
    return network, step, float(np.mean(losses[-max(1, step // 10) :]))


def _batches(
    samples: Sequence[Sample], edge: tuple[int, int, int], rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (B, 2, *edge) float32 and (B, 1, *edge) long: every second patch lies around a voxel of some structure."""
    while True:
        patches = [_patch(samples[int(rng.integers(len(samples)))], edge, rng, inside=n % 2 == 0) for n in range(BATCH)]
        images, labels = (torch.stack(tensors) for tensors in zip(*patches))
        yield _moved(images, labels, rng)


def _patch(sample: Sample, edge, rng: np.random.Generator, inside: bool) -> tuple[Tensor, Tensor]:
    """(2, *edge) float32 and (1, *edge) float32 of one scan; what lies beyond it is -1 and background."""
    image, label = (np.load(path, mmap_mode="r") for path in (sample.image, sample.label))
    shape = np.array(label.shape)
    structures = [channel for channel in sample.places if channel]
    if inside and structures:
        places = sample.places[structures[int(rng.integers(len(structures)))]]
        centre = places[int(rng.integers(len(places)))]
    else:
        centre = rng.integers(shape)
    low = np.clip(centre - np.array(edge) // 2, 0, np.maximum(shape - edge, 0))
    cut = tuple(slice(a, a + e) for a, e in zip(low.tolist(), edge))
    images = np.full((image.shape[0], *edge), -1.0, dtype=np.float32)
    labels = np.zeros((1, *edge), dtype=np.float32)
    part = label[cut]
    filled = tuple(slice(0, n) for n in part.shape)
    labels[(0, *filled)] = part
    images[(slice(None), *filled)] = image[(slice(None), *cut)]
    return torch.from_numpy(images), torch.from_numpy(labels)


def _moved(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turns, scales and brightens every patch a little; nothing is mirrored, since left and right are different organs."""
    theta = torch.from_numpy(np.stack([_affine(rng) for _ in range(len(images))])).float()
    grid = F.affine_grid(theta, list(labels.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(labels, grid, mode="nearest", padding_mode="border", align_corners=False)
    shape = (len(images), images.shape[1], 1, 1, 1)
    gain, shift = (torch.from_numpy(rng.uniform(a, b, shape)).float() for a, b in ((0.8, 1.2), (-0.15, 0.15)))
    return images * gain + shift, labels.long()


def _affine(rng: np.random.Generator) -> np.ndarray:
    """(3, 4): a small turn about each axis, with a scale."""
    matrix = np.eye(3)
    for axis, angle in enumerate(rng.uniform(-_TURN, _TURN, 3)):
        a, b = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return np.concatenate([matrix * rng.uniform(1 - _SCALE, 1 + _SCALE), np.zeros((3, 1))], axis=1)

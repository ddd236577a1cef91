"""Training patches cut out of annotated scans as serving would cut them, kept on disk within a budget.

Each scan is read once; what training needs of it are cubes, which are read from disk one at a time. A patch file holds
    image   (channels, S, S, S) float16: what the network sees (preprocess.network_input)
    label   (S, S, S) uint8: 0, or 1 + number of the structure
    kept    (P, m, m, m) uint8 in 0..64: what the served model segments beside the labelled structures (see `keep`)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..anatomy.fields import Draw
from ..anatomy.generator import generate
from ..clicks import next_click
from ..geometry import Grid, PatchFrame
from ..intensity import normalise, padding_floor
from ..networks.layers import trilinear
from ..placement import LARGE, MAX_REFINING, Look, look_again, place_patch
from ..preprocess import network_input
from ..probing import answer_cells
from ..prompts import Click, Prompts
from ..sampling import bounding_box
from ..segmenter import VolumeSegmenter
from ..spec import SamSpec
from .cases import LabelledCase, read_case
from .data import occupancy, pick_targets

PATCH_LIMIT_BYTES = 4 * 2**30
LOOKS = ("none", "wrong", "right")
_RULES = ("ritm", "random")
_ANYWHERE, _AT_BLOBS = 8, 16
_BLOB_CELLS = (1.5, 2.5, 4.0)
"""Standard deviations, in cells of the mask grid, of the blobs whose middles are asked about."""

_STEADY = 0.5
_LARGEST_SHARE = 0.4
_SMALL_SHARE = 0.015  # a ball of a sixth of the patch's edge in radius


@dataclass(frozen=True)
class Patch:
    """One patch in memory; see the module's text. Arrays of numpy."""

    image: np.ndarray
    label: np.ndarray
    kept: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Patch:
        """From its file."""
        with np.load(path, allow_pickle=False) as content:
            return cls(content["image"], content["label"], content["kept"])

    def write(self, path: Path) -> None:
        """To its file."""
        np.savez(path, image=self.image, label=self.label, kept=self.kept)


@dataclass(frozen=True)
class PatchSet:
    """Paths of patches or slices: of annotated cases for training and for validation, and of generated ones."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    rehearsal: tuple[Path, ...]

    def of_cases(self, numbers: Collection[int]) -> PatchSet:
        """Those of some cases, which their files' names number, and all that is generated."""
        own = [tuple(p for p in kind if int(p.name.split("-")[1]) in numbers) for kind in (self.train, self.validation)]
        return PatchSet(*own, self.rehearsal)


def build(
    cases: Sequence[LabelledCase],
    structures: Sequence[str],
    folder: Path,
    served: VolumeSegmenter,
    per_case: int,
    rehearsal: int,
    keep: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> PatchSet:
    """Cuts the patches into `folder`, unless they are there; a folder is complete or absent.

    Args:
        served: the model that training starts from; it says what must be kept.
        per_case: patches a case for training; one for validation is added for every four.
        rehearsal: patches of generated anatomy. keep: masks of the served model a patch.

    Raises:
        VolumeError: a file cannot be used. ValueError: no case holds a usable structure.
    """

    def fill(part: Path) -> None:
        count = per_case
        size = _bytes_of(served.spec, keep) * (len(cases) * (count + max(1, count // 4)) + rehearsal)
        if size > PATCH_LIMIT_BYTES:
            count = max(2, int(count * PATCH_LIMIT_BYTES / size))
            say(f"{len(cases)} cases: {count} patches of each, so that they take at most 4 GiB of disk")
        for number, case in enumerate(sorted(cases, key=lambda c: c.name)):
            rng = np.random.default_rng([seed, number])
            for n, patch in enumerate(cut_case(case, structures, served, count + max(1, count // 4), keep, rng)):
                patch.write(part / f"{'train' if n < count else 'validation'}-{number:04d}-{n:03d}.npz")
            say(f"patches of {case.name} cut ({number + 1} of {len(cases)})")
        for n in range(rehearsal):
            _generated(seed * 1009 + n, served.spec).write(part / f"rehearsal-{n:04d}.npz")

    return filled(folder, fill, structures)


def filled(folder: Path, fill: Callable[[Path], None], structures: Sequence[str]) -> PatchSet:
    """The files of a folder, which `fill` writes unless it is there; a folder is complete or absent.

    Args:
        fill: writes train-CASE-N.npz, validation-CASE-N.npz and rehearsal-N.npz into the folder that it is given.

    Raises:
        ValueError: it wrote no file to train on.
    """
    folder = Path(folder)
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        if not any(part.glob("train-*")):
            shutil.rmtree(part)
            raise ValueError(
                f"no annotated case holds enough voxels of {', '.join(structures) or 'any structure'} to train on"
            )
        os.replace(part, folder)
    kinds = ("train", "validation", "rehearsal")
    return PatchSet(*(tuple(sorted(folder.glob(f"{kind}-*.npz"))) for kind in kinds))


def cut_case(
    case: LabelledCase,
    structures: Sequence[str],
    served: VolumeSegmenter,
    count: int,
    keep: int,
    rng: np.random.Generator,
) -> Iterator[Patch]:
    """`count` patches of one case around clicks on its structures, every structure in turn; none of an empty case."""
    volume, label = read_case(case, structures)
    floor = padding_floor(volume.array)
    present = np.flatnonzero(np.bincount(label.ravel(order="K"), minlength=2))
    present = rng.permutation(present[present > 0])
    for n in range(count if len(present) else 0):
        target = label == present[n % len(present)]
        frame = place(target, volume.grid, served.spec, rng, LOOKS[n // len(present) % len(LOOKS)])
        image = network_input(volume.array, frame, floor, served.spec.intensity)
        cut = frame.crop(label, order=0)
        kept = keep_masks(served, image, cut, frame.inside(), keep, rng)
        yield Patch(image.astype(np.float16), cut, kept)


def place(target: np.ndarray, grid: Grid, spec: SamSpec, rng: np.random.Generator, look: str) -> PatchFrame:
    """The patch that serving places for a click on the object.

    Args:
        target: (I, J, K) bool, not empty.
        look: how the first look went, where the spec zooms: "none" there was nothing to change; "right" it saw the whole
            object; "wrong" it saw anything, so that the patch has some spacing between finest and coarser.
    """
    box = bounding_box(target)
    inner = target[box]
    rule = _RULES[int(rng.random() < 0.5)]
    click = next_click(np.zeros_like(inner), inner, rng, rule, tuple(float(s) for s in grid.spacing_mm))
    ijk = tuple(c + s.start for c, s in zip(click.ijk, box))
    prompts = Prompts((Click(ijk),))
    frame = place_patch(grid, prompts, spec)
    if look == "none" or not spec.zoom:
        return frame
    if look == "wrong":
        spacing = spec.spacing_mm * float(np.exp(rng.uniform(-np.log(MAX_REFINING), np.log(LARGE))))
        return place_patch(grid, prompts, spec, Look(ijk, ijk, spacing))
    cell = spec.cell
    cells = occupancy(torch.from_numpy(frame.crop(target.view(np.uint8), order=0) > 0), cell).numpy()
    seen = look_again(frame, cells > 0.5, spec)
    return frame if seen is None else place_patch(grid, prompts, spec, seen)


@torch.inference_mode()
def keep_masks(
    served: VolumeSegmenter, image: np.ndarray, label: np.ndarray, inside: np.ndarray, count: int, rng
) -> np.ndarray:
    """What the served model knows beside the labelled structures, so that training can keep it.

    Learning without forgetting (Li & Hoiem 2016): the old model's answers on the new images are targets too. Most answers to
    clicks anywhere are some part of muscle or fat; those that the model thinks best of are organs. Only steady answers
    count: a click elsewhere in the mask gives nearly the same mask.

    Args:
        image: (channels, S, S, S). label: (S, S, S), 0 where nothing is labelled. inside: (S, S, S) bool.

    Returns:
        (P, m, m, m) uint8, probabilities times 64; P <= count.
    """
    spec, none = served.spec, np.zeros((0, *(served.spec.mask_size,) * 3), np.uint8)
    free = occupancy(torch.from_numpy((label == 0) & inside), spec.cell).numpy() == 1
    if not count or not free.any():
        return none
    embedding = served.encode(torch.from_numpy(image)[None])
    taken = occupancy(torch.from_numpy(label > 0), spec.cell).numpy() > 0.5
    asked = _asked_about(image[0], free, rng)
    glances, sure = answer_cells(served, embedding, asked, 1)
    chosen = _distinct(glances > 0, taken, sure)[: 3 * count // 2]
    if not chosen:
        return none
    answers, sure = answer_cells(served, embedding, asked[chosen], spec.first_passes)
    chosen = _distinct(answers > 0, taken, sure)
    if not chosen:
        return none
    again, _ = answer_cells(served, embedding, np.stack([_any_of(answers[n] > 0, rng) for n in chosen]), 1)
    steady = [n for n, other in zip(chosen, again) if _dice(answers[n] > 0, other > 0) >= _STEADY]
    share = 1 / (1 + np.exp(-answers[steady[:count]].astype(np.float64)))
    return np.where(taken, 0, np.round(64 * share)).astype(np.uint8)


def _distinct(masks: np.ndarray, taken: np.ndarray, sure: np.ndarray) -> list[int]:
    """The masks (N, m, m, m) that are no crumb, not nearly everything, not what is labelled, and not one of those before.

    The surest (N,) first, a small one and a large one by turns: of organs a model is surer than of what is small, and what is
    small is forgotten first.
    """
    size, cells = masks.sum((1, 2, 3)), masks[0].size
    fit = (size >= 2) & (size <= _LARGEST_SHARE * cells) & ((masks & taken).sum((1, 2, 3)) <= 0.2 * size)
    small = size < _SMALL_SHARE * cells
    by_kind = [np.flatnonzero(fit & kind)[np.argsort(-sure[fit & kind])] for kind in (small, ~small)]
    chosen: list[int] = []
    for n in (n for pair in zip_longest(*by_kind) for n in pair if n is not None):
        if not any((masks[n] & masks[other]).sum() > 0.5 * size[n] for other in chosen):
            chosen.append(int(n))
    return chosen


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def _asked_about(image: np.ndarray, free: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells (N, 3) that are clicked on: some anywhere, which are seldom on anything small, and some in the middle of blobs.

    A blob is where the Laplacian of a Gaussian is extreme (Lindeberg 1998): lesions, vertebrae, vessels across.

    Args:
        image: (S, S, S). free: (m, m, m) bool, not all False; other cells are not asked about.
    """
    m, cell = len(free), len(image) // len(free)
    coarse = image.astype(np.float32).reshape(m, cell, m, cell, m, cell).mean((1, 3, 5))
    middle = np.zeros_like(free)
    for sigma in _BLOB_CELLS:
        strength = np.abs(ndimage.gaussian_laplace(coarse, sigma))
        middle |= strength >= ndimage.maximum_filter(strength, 2 * int(sigma) + 1)
    places, blobs = np.argwhere(free), np.argwhere(free & middle)
    return np.concatenate([places[rng.integers(len(places), size=_ANYWHERE)], rng.permutation(blobs)[:_AT_BLOBS]])


def _any_of(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    places = np.argwhere(mask)
    return places[rng.integers(len(places))]


def cut(draw: Draw, patch: Patch, edge: int) -> Patch:
    """A cube of `edge` voxels around a random voxel of a random structure, on the cells of the mask grid."""
    size = patch.label.shape[0]
    if edge >= size:
        return patch
    cell = size // patch.kept.shape[-1]
    coarse = patch.label[::cell, ::cell, ::cell]
    present = np.unique(coarse[coarse > 0])
    begin = [draw.integer(0, (size - edge) // cell + 1) for _ in range(3)]
    if len(present):
        places = np.argwhere(coarse == present[draw.integer(0, len(present))])
        place, n = places[draw.integer(0, len(places))], edge // cell
        begin = [min(max(0, int(p) - draw.integer(n // 4, 3 * n // 4 + 1)), size // cell - n) for p in place]
    cells = tuple(slice(b, b + edge // cell) for b in begin)
    voxels = tuple(slice(b * cell, b * cell + edge) for b in begin)
    return Patch(patch.image[(slice(None), *voxels)], patch.label[voxels], patch.kept[(slice(None), *cells)])


def varied(draw: Draw, patch: Patch, objects: int, keep: int) -> tuple[Tensor, Tensor] | None:
    """A patch flipped, with noise, and its targets: annotated structures first, then what is to be kept.

    Returns:
        image (channels, s, s, s) float32 and occupancies (K, s/2, s/2, s/2) in 0..64, or None without a structure.
    """
    flips = [axis for axis in range(3) if draw.chance(0.3)]
    image = torch.from_numpy(patch.image).float().flip([1 + a for a in flips])
    label = torch.from_numpy(patch.label).long().flip(flips)
    kept = torch.from_numpy(patch.kept).flip([1 + a for a in flips])
    targets = pick_targets(draw, label.contiguous(), objects, repeat=False)
    if not len(targets):
        return None
    large = [n for n in range(len(kept)) if int((kept[n] > 32).sum()) >= 2]
    chosen = [large.pop(draw.integer(0, len(large))) for _ in range(min(keep, len(large)))]
    if draw.chance(0.3):
        image = image + draw.log_uniform(0.01, 0.06) * draw.normal(*image.shape)
    return image, torch.cat([targets, in_halves(kept[chosen], targets.shape[-1])]) if chosen else targets


def in_halves(kept: Tensor, edge: int) -> Tensor:
    """What is kept, at the resolution of annotated targets: (P, m, m, m) -> (P, edge, edge, edge) uint8 in 0..64."""
    return trilinear(kept.float(), edge).round().to(torch.uint8)


def _generated(seed: int, spec: SamSpec) -> Patch:
    case = generate(seed, spec.patch_size)
    image = normalise(case.image.numpy(), case.inside.numpy(), spec.intensity)
    m = spec.mask_size
    label = case.label.clamp_max(255).numpy().astype(np.uint8)
    return Patch(image.astype(np.float16), label, np.zeros((0, m, m, m), np.uint8))


def _bytes_of(spec: SamSpec, keep: int) -> int:
    return spec.patch_size**3 * (2 * spec.encoder.channels + 1) + keep * spec.mask_size**3

"""Slices of annotated scans as serving shows them, kept on disk within a budget: what patches.py is for 3D models.

Each scan is read once; training needs only slices, which are read from disk one at a time. A file holds
    image   (h, w) or (h, w, 3) uint8: the slice, through the window in which serving would show it
    label   (h, w) uint16: 0, or 1 + number of the structure
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from ..evaluation.components import largest_component
from ..intensity import to_8bit
from ..prompts import Box, Prompts
from ..session import ImageSession
from ..slice_prompts import stack_axis
from ..slice_segmenter import SliceSegmenter
from ..slices import plane_axes, slice_image
from .cases import LabelledCase, read_case
from .data2d import MIN_ANNOTATED, ImageBatches, LabelledSlice, Mix
from .gate import Resident
from .patches import PatchSet, filled

SLICES_LIMIT_BYTES = 2 * 2**30
_CHECKS = 6
_FEWEST = 4
_GENERATED = 8


def build(
    cases: Sequence[LabelledCase],
    structures: Sequence[str],
    folder: Path,
    size: int,
    per_case: int,
    other_axes: float,
    rehearsal: int,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
) -> PatchSet:
    """Writes the slices into `folder`, unless they are there; a folder is complete or absent.

    Args:
        size: edge of the model's image, pixels.
        per_case: slices a case for training; one for validation is added for every six.
        other_axes: share of them across another axis than the scan's own stack.
        rehearsal: generated volumes, eight slices each, and as many generated pictures as slices.

    Raises:
        VolumeError: a file cannot be used. ValueError: no case holds a usable structure.
    """

    def fill(part: Path) -> None:
        for number, case in enumerate(sorted(cases, key=lambda c: c.name)):
            rng = np.random.default_rng([seed, number])
            count = per_case + max(1, per_case // _CHECKS)
            found = list(cut_case(case, structures, size, count, other_axes, rng, SLICES_LIMIT_BYTES // len(cases)))
            checks = len(found) * (count - per_case) // count or int(len(found) > 1)
            for n, item in enumerate(found):
                kind = "train" if n < len(found) - checks else "validation"
                write_slice(item, part / f"{kind}-{number:04d}-{n:03d}.npz")
            say(f"{len(found)} slices of {case.name} kept ({number + 1} of {len(cases)})")
        if rehearsal:
            say("generating slices and pictures")
        mix = Mix(cases=rehearsal, slices=_GENERATED, scans=0, pictures=rehearsal * _GENERATED)
        for n, item in enumerate(ImageBatches(seed, size, 1, 1, mix, []).block(0) if rehearsal else ()):
            write_slice(item, part / f"rehearsal-{n:04d}.npz")

    return filled(folder, fill, structures)


def cut_case(
    case: LabelledCase,
    structures: Sequence[str],
    size: int,
    count: int,
    other_axes: float,
    rng: np.random.Generator,
    max_bytes: int = SLICES_LIMIT_BYTES,
) -> Iterator[LabelledSlice]:
    """At most `count` different slices of one case, every structure in turn; none of an empty case.

    A slice shows the structures that serving would show in the same window, which is that of the one it was chosen for.
    """
    volume, label = read_case(case, structures)
    session, own = Resident(volume), stack_axis(volume.grid)
    places = {n + 1: box for n, box in enumerate(ndimage.find_objects(label)) if box is not None}
    order = [int(v) for v in rng.permutation(list(places))]
    left: dict[tuple[int, int], list[int]] = {}
    seen, used = set(), 0
    for n in range(count if order else 0):
        value = order[n % len(order)]
        other = int(rng.choice([axis for axis in range(3) if axis != own]))
        for axis in (other, own) if rng.random() < other_axes else (own, other):
            if (value, axis) not in left:
                found = slices_of(label, places[value], value, axis, size)
                left[value, axis] = [int(index) for index in rng.permutation(found)]
            if left[value, axis]:
                break
        else:
            continue
        index = left[value, axis].pop()
        flat = slice_image(label, axis, index)
        windows = {int(v): shown_in(session, flat == v, axis, index) for v in np.unique(flat[flat > 0])}
        if (axis, index, windows[value]) in seen or used + 3 * flat.size > max_bytes and len(seen) >= _FEWEST:
            continue
        seen.add((axis, index, windows[value]))
        used += 3 * flat.size
        image = to_8bit(slice_image(volume.array, axis, index), *windows[value])
        alike = np.isin(flat, [v for v, window in windows.items() if window == windows[value]])
        yield LabelledSlice(
            torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.where(alike, flat, 0).astype(np.int64))
        )


def slices_of(label: np.ndarray, place: tuple[slice, ...], value: int, axis: int, size: int) -> np.ndarray:
    """(n,) indices of the slices across `axis` in which a structure has at least MIN_ANNOTATED pixels of the model's image.

    Args:
        label: (I, J, K). place: the structure's bounding box. size: edge of the model's image.
    """
    areas = (label[place] == value).sum(axis=plane_axes(axis))
    scale = size / max(label.shape[a] for a in plane_axes(axis))
    return place[axis].start + np.flatnonzero(areas * scale**2 >= MIN_ANNOTATED)


def shown_in(session: ImageSession, mask: np.ndarray, axis: int, index: int) -> tuple[float, float]:
    """The intensities that serving makes black and white for a box around a structure's largest part in one slice.

    Args:
        mask: (H, W) bool as slices.slice_image gives it, not empty.
    """
    return SliceSegmenter.limits(session, Prompts(box=flat_box(tight_xy(largest(mask)), axis, index)))


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a slice's mask (H, W) bool."""
    return largest_component(mask[..., None])[..., 0]


def tight_xy(mask: np.ndarray) -> np.ndarray:
    """(4,) x0, y0, x1, y1 of the True pixels of (H, W), the last ones included."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def flat_box(box_xy: np.ndarray, axis: int, index: int) -> Box:
    """A box of a slice's pixels as a box of the scan, one voxel thin across `axis`."""
    ends = []
    for x, y in (box_xy[:2], box_xy[2:]):
        ijk = [index] * 3
        for a, v in zip(plane_axes(axis), (x, y)):
            ijk[a] = int(v)
        ends.append(tuple(ijk))
    return Box(*ends)


def write_slice(item: LabelledSlice, path: Path) -> None:
    """To its file."""
    np.savez(path, image=item.image.numpy(), label=item.label.numpy().astype(np.uint16))


def read_slice(path: Path) -> LabelledSlice:
    """From its file."""
    with np.load(path, allow_pickle=False) as content:
        return LabelledSlice(torch.from_numpy(content["image"]), torch.from_numpy(content["label"].astype(np.int64)))

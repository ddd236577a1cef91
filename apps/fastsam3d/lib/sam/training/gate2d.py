"""The gate's questions to a model for slices: a box in a slice, then a click in what is wrong, through the segmenter that serves.

A box is a little too wide, as a user draws it: each face lies 0 to 5 % of the box's edge (and up to one pixel) outside the
structure's largest part in that slice. The shifts follow from the case, the structure and the slice, so both models, and
every later run, get the same ones. A pair holds the Dice of the box, and of the box with one click at the centre of
the model's own largest error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from zlib import crc32

import numpy as np
from scipy import ndimage

from ..anatomy.fields import Draw
from ..anatomy.generator import generate
from ..anatomy.pictures import picture
from ..clicks import next_click
from ..metrics import dice
from ..prompts import Click, Prompts
from ..slice_prompts import stack_axis
from ..slice_segmenter import CACHE_BYTES, SliceOptions, SliceSegmenter
from ..slice_source import Memory
from ..slices import plane_axes, slice_image
from .annotated2d import flat_box, largest, slices_of, tight_xy
from .cases import LabelledCase, read_case
from .data import LabelledScan
from .data2d import MIN_ANNOTATED, MIN_PIXELS, LabelledSlice, random_plane
from .gate import GUARD_SEED, STRUCTURES_PER_CASE, Pair, Resident

_SHIFT = 0.05
_GUARD_SLICES = 3
_GUARD_OBJECTS = 2
_FLAT = (1.0, 1.0, 1e6)
"""Spacing of a slice as a scan of one slice: depths are those within it."""

Ask = Callable[[np.ndarray, tuple[tuple[int, int, bool], ...]], np.ndarray]
"""Box (4,) x0, y0, x1, y1 and clicks (x, y, on the object) in a slice's pixels -> mask (H, W) bool."""


def compare(
    served: SliceSegmenter,
    candidate: SliceSegmenter,
    cases: Sequence[LabelledCase],
    structures: Sequence[str],
    slices: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Pair]:
    """Both models in slices of annotated cases, across the axis of the scan's own stack.

    Args:
        slices: of each structure, evenly spaced through it; at most 12 structures a case.

    Raises:
        VolumeError: a file cannot be read.
    """
    pairs = []
    for case in cases:
        volume, label = read_case(case, structures)
        axis = stack_axis(volume.grid)
        places = {n + 1: box for n, box in enumerate(ndimage.find_objects(label)) if box is not None}
        for value in list(places)[:STRUCTURES_PER_CASE]:
            session = Resident(volume)
            held = slices_of(label, places[value], value, axis, served.spec.image_size)
            for index in middles(held, slices):
                target = largest(slice_image(label, axis, index) == value)
                asks = [ask_scan(model, session, axis, index) for model in (served, candidate)]
                name = f"{structures[value - 1]}, slice {index}"
                pairs.append(pair(asks, target, case.name, name))
        say(f"gate: {case.name} compared")
    return pairs


def middles(held: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices, in the middles of as many equal parts."""
    count = min(count, len(held))
    return [int(held[int((n + 0.5) * len(held) / count)]) for n in range(count)]


def compare_generated(served: SliceSegmenter, candidate: SliceSegmenter, cases: int) -> list[Pair]:
    """Both models on generated slices and pictures."""
    pairs, shown, asks = [], None, []
    for name, structure, image, target in generated(cases, served.spec.image_size):
        if image is not shown:
            shown, asks = image, [ask_image(model, image) for model in (served, candidate)]
        pairs.append(pair(asks, target, name, structure))
    return pairs


def generated(cases: int, size: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Case, structure, image (H, W) or (H, W, 3) uint8 and target (H, W) bool of the fixed generated set.

    A case is three slices of a generated volume and one picture, with up to two objects each.
    """
    for n in range(cases):
        draw, case = Draw(GUARD_SEED + n), generate(GUARD_SEED + n)
        scan = LabelledScan("generated", case.image, case.label.float(), case.image.new_ones(3))
        shown: list[LabelledSlice | None] = [random_plane(draw, scan, size) for _ in range(_GUARD_SLICES)]
        drawn = picture(GUARD_SEED + n, size)
        shown.append(LabelledSlice(drawn.image, drawn.label))
        for place, item in enumerate(shown):
            if item is None:
                continue
            image, label = item.image.numpy(), item.label.numpy().astype(np.int64)
            values = [v for v in range(1, label.max() + 1) if (label == v).sum() >= MIN_PIXELS]
            for value in np.random.default_rng([n, place]).permutation(values)[:_GUARD_OBJECTS]:
                target = largest(label == value)
                if target.sum() >= MIN_ANNOTATED:
                    yield f"generated {n + 1}", f"image {place + 1}, object {value}", image, target


def pair(asks: Sequence[Ask], target: np.ndarray, case: str, structure: str) -> Pair:
    """One structure in one slice, asked of served model and candidate."""
    box = drawn_box(target, case, structure)
    scores = []
    for ask in asks:
        mask = ask(box, ())
        click = next_click(mask[..., None], target[..., None], rule="centre", spacing_mm=_FLAT)
        refined = mask if click is None else ask(box, ((click.ijk[1], click.ijk[0], click.positive),))
        scores.append((round(dice(mask, target), 4), round(dice(refined, target), 4)))
    return Pair(case, structure, *scores)


def drawn_box(target: np.ndarray, case: str, structure: str) -> np.ndarray:
    """(4,) x0, y0, x1, y1: a box around a mask (H, W) as a user draws it, at least two pixels wide, within the slice."""
    low, high = tight_xy(target).reshape(2, 2)
    most = np.ceil(_SHIFT * (high - low + 1)).astype(np.int64)
    rng = np.random.default_rng(crc32(f"{case} {structure}".encode()))
    last = np.array(target.shape[::-1]) - 1
    low, high = np.maximum(low - rng.integers(most + 1), 0), np.minimum(high + rng.integers(most + 1), last)
    high = np.where(high == low, np.minimum(high + 1, last), high)
    low = np.where(high == low, np.maximum(low - 1, 0), low)
    return np.concatenate([low, high])


def ask_scan(segmenter: SliceSegmenter, session: Resident, axis: int, index: int) -> Ask:
    """Asks in one slice of a scan, as `repmedsam_2d` is asked."""
    x, y = plane_axes(axis)
    shape = session.volume.grid.shape

    def ask(box: np.ndarray, clicks: tuple[tuple[int, int, bool], ...]) -> np.ndarray:
        made = []
        for column, row, sign in clicks:
            ijk = [index] * 3
            ijk[x], ijk[y] = column, row
            made.append(Click(tuple(ijk), sign))
        prompts = Prompts(tuple(made), flat_box(box, axis, index))
        answer = segmenter.segment(session, prompts, SliceOptions(single=True, axis=axis))
        mask = np.zeros((shape[y], shape[x]), dtype=bool)
        if answer.mask_box.size:
            part = slice_image(answer.mask_box, axis, 0)
            row, column = answer.corner_ijk[y], answer.corner_ijk[x]
            mask[row : row + part.shape[0], column : column + part.shape[1]] = part
        return mask

    return ask


def ask_image(segmenter: SliceSegmenter, image: np.ndarray) -> Ask:
    """Asks on an image (H, W) or (H, W, 3) uint8, which is encoded once."""
    cache = Memory(CACHE_BYTES)

    def ask(box: np.ndarray, clicks: tuple[tuple[int, int, bool], ...]) -> np.ndarray:
        answer = segmenter.segment_image(image, box[None], clicks, cache)[0]
        mask = np.zeros(image.shape[:2], dtype=bool)
        (y, x), (h, w) = answer.corner, answer.mask.shape
        mask[y : y + h, x : x + w] = answer.mask
        return mask

    return ask

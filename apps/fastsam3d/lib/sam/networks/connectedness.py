"""How well each cell is connected to the prompted ones: by the weakest link of the best path between them.

Fuzzy connectedness (Udupa and Samarasekera 1996), as maps that a network sees beside the prompts: similar tissue that is
cut off from a click by other tissue gets a low value, which no convolution of bounded reach can tell. Cells lie on a
square or cubic grid, (..., m, m) or (..., m, m, m).
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import in_parts, may_hold, unasked

SWEEPS = 2
"""Times that every axis is swept in both directions. More sweeps find paths with more bends, up to the exact value; two
tell objects from their surroundings best (best Dice of a threshold on one click's map, 72 objects of the generator: 0.67
after one sweep, 0.71 after two, 0.69 after ten), because leaks take more bends than objects."""

SOFTNESS = 0.16
"""A difference of normalised intensity (range -1 to 1) at which a link's strength falls to 1 / e."""

BINS = 32
RIM = 2
"""Cells around a box that count as its surroundings."""

MIDDLE = 0.3
"""How much of `box_evidence` a cell at the end of a box's half axis must have more than its middle to be taken as the seed."""

_FAR = 9.0


@torch.no_grad()
def prompted_maps(
    intensity: Tensor,
    positive: Tensor,
    negative: Tensor,
    far: tuple[Tensor, Tensor],
    inside: Tensor,
    fine: Tensor | None = None,
) -> Tensor:
    """Connectedness to what was clicked and boxed, and what the intensities in a box and around it say.

    With a box and no click on the object, the `most_telling` cell of the box stands for the click; all that lies outside the
    box counts as background.

    Args:
        intensity: (1 or B, c, m, ...) in [-1, 1].
        positive, negative: (B, 1, m, ...) bool, the clicked cells.
        far: for either sign (B, c, n, ...) difference to the intensity of the most similar click; n = m, or a multiple of
            it, see `connectedness`.
        inside: (B, 1, m, ...) bool, True in the box; all False without one.
        fine: (1 or B, c, n, ...) the intensities on the grid of `far`; None where that is m.

    Returns:
        (B, 5c, m, ...): connectedness to the object and to the background (2c each), `box_evidence` (c).
    """
    fine = intensity if fine is None else fine
    boxed = any_cell(inside)
    unclicked = boxed & ~any_cell(positive)
    evidence = box_evidence(intensity, inside)
    object_far, background_far = far
    if may_hold(unclicked):
        seed = most_telling(evidence, inside)
        positive = positive | (unclicked & seed)
        value = (intensity * seed).flatten(2).sum(2).unflatten(1, (-1, *(1,) * (intensity.ndim - 2)))
        object_far = torch.where(unclicked, (fine - value).abs(), object_far)
    negative = negative | (boxed & ~inside)
    if unasked(intensity):  # side by side: half the graph
        intensity = intensity.expand(len(positive), *intensity.shape[1:])
        seeds, far = torch.cat([positive, negative]), torch.cat([object_far, background_far])
        to_object, to_background = connectedness(torch.cat([intensity] * 2), far, seeds).chunk(2)
    else:  # one after the other: often there is nothing to do for one of them
        to_object = connectedness(intensity, object_far, positive)
        to_background = connectedness(intensity, background_far, negative)
    return torch.cat([to_object * (inside | ~boxed), to_background, evidence], dim=1)


def any_cell(mask: Tensor) -> Tensor:
    """(B, 1, m, ...) bool -> the same with one cell an axis: whether any is True."""
    return mask.flatten(1).any(1).reshape(-1, *(1,) * (mask.ndim - 1))


def connectedness(intensity: Tensor, distance: Tensor, seeds: Tensor) -> Tensor:
    """Strength of the best path to a seed; a path is as strong as its weakest link.

    Two kinds of links: by how much a cell differs from what was clicked, and by how much it differs from the cell before
    (which follows slow changes).

    Args:
        intensity: (1 or B, c, m, ...) in [-1, 1].
        distance: (B, c, n, ...) difference of each cell's intensity to that of the most similar seed. n = m, or a multiple
            of it: then links see borders that are thinner than a cell, see `passable`.
        seeds: (B, 1, m, ...) bool.

    Returns:
        (B, 2c, m, ...) in [0, 1]: for links of the first kind, then of the second.
    """
    if not may_hold(seeds):
        return distance.new_zeros(len(distance), 2 * distance.shape[1], *seeds.shape[2:])
    alike = torch.exp(distance / -SOFTNESS)
    intensity = intensity.expand(len(alike), *intensity.shape[1:])
    n, axes = seeds.shape[-1], range(2, alike.ndim)
    links = []
    for axis in axes:
        into = passable(alike, axis, alike.shape[axis] // n)
        steps = torch.exp(intensity.diff(dim=axis).abs() / -SOFTNESS)
        both = (torch.cat([into.narrow(axis, begin, n - 1), steps], dim=1) for begin in (1, 0))
        links.append([x.movedim(axis, 0).contiguous() for x in both])
    found = seeds.to(alike.dtype).expand(-1, 2 * alike.shape[1], *seeds.shape[2:])
    sweep = sweep_by_doubling if unasked(found) else sweep_by_planes
    for _ in range(SWEEPS):
        for axis, (forward, backward) in zip(axes, links):
            found = sweep(found.movedim(axis, 0), forward, backward).movedim(0, axis)
    return found


def sweep_by_planes(found: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """Sweeps the first axis to its end and back: a plane of cells takes what comes through the links from the one before.

    Args:
        found: (m, ...) in [0, 1]. forward: (m - 1, ...) links from plane i to i + 1. backward: those from i + 1 to i.

    Returns:
        (m, ...).
    """
    planes = list(found.contiguous().unbind(0))
    for i in range(1, len(planes)):
        planes[i] = torch.maximum(planes[i], torch.minimum(planes[i - 1], forward[i - 1]))
    for i in range(len(planes) - 2, -1, -1):
        planes[i] = torch.maximum(planes[i], torch.minimum(planes[i + 1], backward[i]))
    return torch.stack(planes)


def sweep_by_doubling(found: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """The same to the last bit, in the logarithm of m steps (Hillis and Steele 1986): a small graph to export, and few kernels to
    start on a GPU.

    Step n brings what is up to 2 ** n planes away; the links over so many planes are as strong as the weakest of them.
    """
    for ahead, links in ((True, forward), (False, backward)):
        reach, m = 1, len(found)
        while reach < m:
            before, rest = (0, reach) if ahead else (reach, 0)
            come = torch.minimum(found.narrow(0, before, m - reach), links)
            found = torch.maximum(found, F.pad(come, (0, 0) * (come.ndim - 1) + (rest, before)))
            links = torch.minimum(links[reach:], links[:-reach]) if 2 * reach < m else links
            reach *= 2
    return found


def passable(strength: Tensor, axis: int, cell: int) -> Tensor:
    """How well one gets through cells along an axis: along the best line in each, by that line's weakest part.

    A plate as thin as a part stops every line across it, while the mean of the cell hardly shows it; a cell that a border
    runs through lengthwise lets pass. (The third weights, trained with means of cells, one click on a vertebra of three phantoms,
    between discs not two cells of 6 mm thick: 0.44 with means of cells, 0.68 with parts of half their edge.)

    Args:
        strength: (B, c, n, ...). cell: edge of a cell in parts; 1 returns `strength`.

    Returns:
        (B, c, n / cell, ...).
    """
    if cell == 1:
        return strength
    found = reduce(torch.minimum, _parts(strength, axis, cell))
    for across in range(2, strength.ndim):
        if across != axis:
            found = reduce(torch.maximum, _parts(found, across, cell))
    return found


def _parts(strength: Tensor, axis: int, cell: int) -> list[Tensor]:
    """First, second, ... parts of the cells along an axis; a tenth of the time of a reduction over a split axis."""
    return [strength[(slice(None),) * axis + (slice(part, None, cell),)] for part in range(cell)]


def most_telling(evidence: Tensor, inside: Tensor) -> Tensor:
    """The cell of each box whose intensities speak most for the object, rather near the middle.

    A box's middle lies outside a curved or hollow object: one in four of the generator's. (Best Dice of a threshold on the
    map of connectedness to that cell, 102 boxes: middle 0.70, this cell 0.76.)

    Args:
        evidence: (B, c, m, ...) of `box_evidence`. inside: (B, 1, m, ...) bool.

    Returns:
        (B, 1, m, ...) bool. Nothing without a box.
    """
    dims = inside.ndim - 2
    pool = F.avg_pool3d if dims == 3 else F.avg_pool2d
    score = pool(evidence.sum(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    away = torch.zeros_like(score)
    for axis in range(2, inside.ndim):
        m = inside.shape[axis]
        hit = inside.amax([a for a in range(2, inside.ndim) if a != axis])[:, 0]  # (B, m)
        first, last = hit.int().argmax(1), m - 1 - hit.flip(1).int().argmax(1)
        here = torch.arange(m, device=inside.device) - (first + last)[:, None] / 2
        here = (here / ((last - first + 1)[:, None] / 2)).square()
        away = away + here.unflatten(1, [m if a == axis else 1 for a in range(2, inside.ndim)])[:, None]
    score = (score - MIDDLE * away.sqrt()).masked_fill(~inside, -torch.inf).flatten(1)
    best = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argmax(1, keepdim=True), True)  # noqa: FBT003
    return best.reshape(inside.shape) & inside


def box_evidence(intensity: Tensor, inside: Tensor) -> Tensor:
    """How much more often an intensity occurs inside a box than around it.

    Args:
        intensity: (1 or B, c, m, ...) in [-1, 1]. inside: (B, 1, m, ...) bool.

    Returns:
        (B, c, m, ...): logarithm of the ratio of the two shares, divided by 4; 0 outside the box.
    """
    b, c, cells = len(inside), intensity.shape[1], inside.shape[2:]
    if not may_hold(inside):
        return intensity.new_zeros(b, c, *cells)
    level = ((intensity + 1) * (BINS / 2)).long().clamp(0, BINS - 1).expand(b, -1, *cells).flatten(2)
    pool = F.max_pool3d if len(cells) == 3 else F.max_pool2d
    around = (pool(inside.float(), 2 * RIM + 1, stride=1, padding=RIM) > 0) & ~inside
    shares = []
    for region in (inside, around):
        weight = region.float().flatten(2).expand(-1, c, -1)
        count = intensity.new_zeros(b, c, BINS).scatter_add_(2, level, weight)
        count = F.avg_pool1d(F.pad(count, (1, 1), mode="replicate"), 3, stride=1)
        shares.append(count / count.sum(2, keepdim=True).clamp_min(1) + 2e-3)
    ratio = (shares[0] / shares[1]).log() / 4
    return ratio.gather(2, level).unflatten(2, cells) * inside


def clicked_cells(cells: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
    """The chosen clicks as a mask.

    Args:
        cells: (B, N, D), in the order of the array's axes; those outside count for the nearest cell. chosen: (B, N) bool.
        shape: (m, ...) with D axes.

    Returns:
        (B, 1, m, ...) bool.
    """
    count = torch.zeros(len(cells), math.prod(shape), device=cells.device)
    count.scatter_add_(1, _flat_index(cells, shape), chosen.to(count.dtype))
    return (count > 0).reshape(-1, 1, *shape)


def at_cells(features: Tensor, cells: Tensor) -> Tensor:
    """Features at cells.

    Args:
        features: (b, c, m, ...), b = 1 or B. cells: (B, N, D) as in `clicked_cells`.

    Returns:
        (B, c, N).
    """
    index = _flat_index(cells, features.shape[2:])
    flat = features.flatten(2).expand(len(cells), -1, -1)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))


def _flat_index(cells: Tensor, shape: torch.Size) -> Tensor:
    """Cells (B, N, D) of a grid, the nearest one for those outside -> their row-major indices (B, N)."""
    places = [cells[..., d].long().clamp(0, n - 1) for d, n in enumerate(shape)]
    return reduce(lambda index, place: index * shape[-1] + place, places)


def far_from_clicks(intensity: Tensor, cells: Tensor, chosen: Tensor, fine: Tensor | None = None) -> Tensor:
    """Difference to the intensity of the most similar chosen click, large without one.

    Args:
        intensity: (1 or B, c, m, ...), of which those of the clicked cells are taken. cells: (B, N, D). chosen: (B, N) bool.
        fine: (1 or B, c, n, ...), whose differences are wanted; None for `intensity`.

    Returns:
        (B, c, n, ...).
    """
    fine = intensity if fine is None else fine
    out = torch.full_like(fine.expand(len(cells), *fine.shape[1:]), _FAR)
    for part in in_parts(cells.shape[1], 1):  # one at a time, so that what is worked on stays in the processor's cache
        if not may_hold(chosen[:, part]):
            continue
        value = torch.where(chosen[:, None, part], at_cells(intensity, cells[:, part]), _FAR)  # (B, c, n)
        away = (fine[:, :, None] - value.unflatten(2, (-1, *(1,) * (fine.ndim - 2)))).abs_()
        away = away.amin(2) if torch.compiler.is_exporting() else away[:, :, 0]
        torch.minimum(out, away, out=out)
    return out

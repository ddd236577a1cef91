"""Random anatomical shapes as boolean masks on a cube: organs, shells, tubes, branching vessels, packed cells.

Frame: patch voxel indices (axis 0, 1, 2). `Canvas` holds the coordinates, bent by one smooth displacement for the whole
case, so that neighbouring shapes stay consistent with each other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .fields import Draw, smooth_field


class Canvas:
    """Bent coordinates of a cube and a pool of smooth noise from which every shape takes its irregularity."""

    def __init__(self, draw: Draw, size: int) -> None:
        self.draw, self.size = draw, size
        axis = torch.arange(size, device=draw.device, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
        self.coords = grid + draw.uniform(0, 4) * smooth_field(draw, size, draw.integer(2, 6), 3)
        self.noise = [smooth_field(draw, size, cells)[0] for cells in (3, 6, 12)]

    def box(self, centre: Tensor, radius: float) -> tuple[slice, slice, slice]:
        """Slices of the cube within `radius` of the centre on every axis, and 8 voxels more for bent coordinates."""
        low = (centre - radius - 8).clamp(0, self.size - 1).int().tolist()
        high = (centre + radius + 9).clamp(1, self.size).int().tolist()
        return tuple(slice(a, max(a + 1, b)) for a, b in zip(low, high))


def blob(canvas: Canvas, centre: Tensor, radii: Tensor) -> tuple[tuple[slice, slice, slice], Tensor]:
    """A rotated superellipsoid with irregular surface.

    Returns:
        The box, and a signed level (negative inside; about the distance in voxels near the surface) in that box.
    """
    draw = canvas.draw
    reach = float(radii.max()) * 1.35
    box = canvas.box(centre, reach)
    offset = canvas.coords[(slice(None), *box)] - centre[:, None, None, None]
    local = torch.einsum("ab,bxyz->axyz", draw.rotation(), offset) / radii[:, None, None, None]
    if draw.chance(0.4):  # bean: bend one axis along another
        local[0] = local[0] + draw.uniform(-0.8, 0.8) * (local[1] ** 2 - 0.3)
    if draw.chance(0.4):  # pear: radius grows along one axis
        local[1:] = local[1:] * (1 + draw.uniform(-0.45, 0.45) * local[0].clamp(-1, 1))
    power = draw.uniform(1.7, 4.0)
    level = local.abs().clamp_min(1e-4).pow(power).sum(0).pow(1.0 / power) - 1.0
    rough = draw.uniform(0.0, 0.22)
    noise = canvas.noise[draw.integer(0, 3)].transpose(0, draw.integer(0, 3)).flip(draw.integer(0, 3))
    return box, (level + rough * noise[box]) * float(radii.min())


class Capsules(NamedTuple):
    """Rounded rods: ends (n, 2, 3) and radii (n,), in the voxels of one frame."""

    ends: Tensor
    radii: Tensor


def capsules(coords: Tensor, rods: Capsules) -> Tensor:
    """Signed distance to the union of rods: coords (3, X, Y, Z) in their frame -> (X, Y, Z), negative inside."""
    best = torch.full(coords.shape[1:], torch.inf, device=coords.device)
    for (start, end), radius in zip(rods.ends, rods.radii.tolist()):
        along = end - start
        offset = coords - start[:, None, None, None]
        share = torch.einsum("a,axyz->xyz", along, offset) / along.square().sum().clamp_min(1e-6)
        offset = offset - share.clamp(0, 1) * along[:, None, None, None]
        best = torch.minimum(best, offset.square().sum(0).sqrt() - radius)
    return best


def stamp_path(canvas: Canvas, points: Tensor, radii: Tensor, out: Tensor) -> Tensor:
    """Set the voxels within radii[i] of points[i] to True in `out` (S, S, S); points along a curve give a tube."""
    for point, radius in zip(points, radii.tolist()):
        box = canvas.box(point, radius)
        distance = (canvas.coords[(slice(None), *box)] - point[:, None, None, None]).square().sum(0)
        out[box] |= distance <= radius * radius
    return out


def curve(draw: Draw, start: Tensor, direction: Tensor, length: float, step: float, bend: float) -> Tensor:
    """Points (n, 3) of a smooth random walk from `start`, `step` voxels apart."""
    n = max(2, int(length / step))
    points, turn = [start], torch.zeros(3, device=draw.device)
    for _ in range(n - 1):
        turn = 0.8 * turn + bend * draw.normal(3)
        direction = torch.nn.functional.normalize(direction + turn, dim=0)
        points.append(points[-1] + step * direction)
    return torch.stack(points)


def tube(canvas: Canvas, radius: float, length: float | None = None) -> Tensor:
    """One tube through the cube, (S, S, S) bool."""
    draw, size = canvas.draw, canvas.size
    out = torch.zeros((size,) * 3, dtype=torch.bool, device=draw.device)
    middle = draw.rand(3) * size * 0.7 + size * 0.15
    direction = torch.nn.functional.normalize(draw.normal(3), dim=0)
    length = length or draw.uniform(0.5, 1.6) * size
    points = curve(draw, middle - direction * length / 2, direction, length, max(1.0, radius * 0.35), 0.05)
    swing = 1 + 0.15 * torch.sin(torch.linspace(0, draw.uniform(2, 12), len(points), device=draw.device))
    inside = ((points > -radius) & (points < size + radius)).all(dim=1)
    return stamp_path(canvas, points[inside], radius * swing[inside], out)


def vessel_tree(canvas: Canvas, radius: float) -> Tensor:
    """A branching vessel, (S, S, S) bool."""
    draw, size = canvas.draw, canvas.size
    out = torch.zeros((size,) * 3, dtype=torch.bool, device=draw.device)
    start = draw.rand(3) * size * 0.6 + size * 0.2
    branches = [(start, draw.normal(3), radius, 0.55 * size)]
    for _ in range(10):
        if not branches:
            break
        origin, direction, r, length = branches.pop(0)
        points = curve(draw, origin, direction, length, max(1.0, r * 0.5), 0.12)
        inside = ((points > 0) & (points < size)).all(dim=1)
        taper = torch.linspace(1.0, 0.75, len(points), device=draw.device) * r
        stamp_path(canvas, points[inside], taper[inside], out)
        if r * 0.7 > 1.0:
            for _ in range(2):
                joint = points[draw.integer(len(points) // 2, len(points))]
                branches.append((joint, draw.normal(3), r * 0.7, length * 0.7))
    return out


def packed_cells(canvas: Canvas, count: int) -> Tensor:
    """Cells that fill the cube (nearest of `count` random seeds in bent, roughened space), (S, S, S) int 0..count-1."""
    draw, size = canvas.draw, canvas.size
    seeds = draw.rand(count, 3) * size
    stretch = torch.tensor([draw.uniform(0.6, 1.6) for _ in range(3)], device=draw.device)
    edge = (size + 1) // 2
    coords = canvas.coords[:, ::2, ::2, ::2] + 3.0 * canvas.noise[1][::2, ::2, ::2]
    flat = (coords.reshape(3, -1).T) * stretch
    best = torch.cdist(flat, seeds * stretch).argmin(dim=1).reshape(edge, edge, edge)
    full = best.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return full[:size, :size, :size]

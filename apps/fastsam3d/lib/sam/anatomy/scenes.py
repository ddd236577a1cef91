"""Random scenes: which shapes lie where, what they are made of, and which of them are labelled.

A scene is two integer maps on one cube. `label` numbers the objects that a user could want; `tissue` numbers the
materials, and its table `kinds` says what sort each is. One object may hold several tissues (a bone's shell and core, an
organ with vessels), and some tissues belong to no object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .fields import Draw
from .shapes import Canvas, Capsules, blob, capsules, curve, packed_cells, tube, vessel_tree


@dataclass
class Scene:
    """label, tissue: (S, S, S) int64; kinds[t] is the sort of tissue t (see rendering.py); objects counts the labels."""

    label: Tensor
    tissue: Tensor
    kinds: list[str] = field(default_factory=lambda: ["air"])
    objects: int = 0

    def new_tissue(self, kind: str) -> int:
        """Number of a new tissue of that kind."""
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def new_object(self) -> int:
        """Number of a new object."""
        self.objects += 1
        return self.objects

    def paint(self, box, mask: Tensor, tissue: int | None, label: int | None) -> None:
        """Set tissue and / or label where mask (shape of the box) is True."""
        if tissue is not None:
            self.tissue[box][mask] = tissue
        if label is not None:
            self.label[box][mask] = label


WHOLE = (slice(None), slice(None), slice(None))


def empty_scene(draw: Draw, size: int) -> Scene:
    """Air everywhere."""
    zeros = torch.zeros((size,) * 3, dtype=torch.int64, device=draw.device)
    return Scene(zeros.clone(), zeros)


def add_body(scene: Scene, canvas: Canvas, long_axis: int, radius: tuple[float, float]) -> Tensor:
    """A trunk with fat, muscle and a cavity; returns the mask of the cavity, where organs go.

    Args:
        long_axis: along which the trunk leaves the cube. radius: range of the others, in edges of the cube.
    """
    draw, size = canvas.draw, canvas.size
    centre = size * (0.5 + 0.3 * (draw.rand(3) - 0.5))
    radii = size * (radius[0] + (radius[1] - radius[0]) * draw.rand(3))
    radii[long_axis] = 3.0 * size
    box, level = blob(canvas, centre, radii)
    body = torch.full((size,) * 3, 1e3, device=draw.device)
    body[box] = level
    fat, muscle = draw.uniform(2, 16), draw.uniform(3, 14)
    scene.paint(WHOLE, body < 0, scene.new_tissue("fat"), None)
    scene.paint(WHOLE, body < -fat, scene.new_tissue("muscle"), None)
    cavity = body < -(fat + muscle)
    scene.paint(WHOLE, cavity, scene.new_tissue(draw.choice(["fat", "fat", "soft", "muscle"])), None)
    return cavity if bool(cavity.any()) else body < 1e2


def random_place(canvas: Canvas, allowed: Tensor | None) -> Tensor:
    """A point (3,) inside `allowed`, or anywhere with a margin."""
    draw, size = canvas.draw, canvas.size
    for _ in range(20):
        point = size * (0.08 + 0.84 * draw.rand(3))
        if allowed is None or bool(allowed[tuple(point.int().tolist())]):
            return point
    return point


def add_organ(scene: Scene, canvas: Canvas, allowed: Tensor | None, scale: tuple[float, float]) -> None:
    """One organ: maybe with a cortex, vessels inside, lesions; labelled."""
    draw = canvas.draw
    radius = draw.log_uniform(*scale)
    radii = radius * torch.exp(0.45 * draw.normal(3).clamp(-1.5, 1.5))
    centre = random_place(canvas, allowed)
    box, level = blob(canvas, centre, radii)
    mask = level < 0
    if allowed is not None and draw.chance(0.85):
        mask &= allowed[box]
    if draw.chance(0.35):  # leave what is already there
        mask &= scene.label[box] == 0
    count = int(mask.sum())
    if count < 30:
        return
    label = scene.new_object()
    kind = draw.choice(["organ", "organ", "organ", "organ", "lung", "fluid", "bowel", "bright"])
    scene.paint(box, mask, scene.new_tissue(kind), label)
    if draw.chance(0.3):  # cortex: another tissue of the same object
        depth = draw.uniform(0.8, 0.35 * radius + 1)
        scene.paint(box, mask & (level > -depth), scene.new_tissue("bone" if draw.chance(0.4) else "organ"), None)
    if draw.chance(0.35) and radius > 10:
        vessels = vessel_tree(canvas, draw.uniform(1.0, 2.6))
        scene.paint(box, mask & vessels[box], scene.new_tissue("vessel"), None)
    for _ in range(draw.integer(0, 3) if draw.chance(0.5) else 0):
        small = draw.log_uniform(2.5, max(3.0, 0.45 * radius))
        spot = centre + (draw.rand(3) - 0.5) * 1.2 * radii
        inner, depth = blob(canvas, spot, small * torch.exp(0.25 * draw.normal(3)))
        lesion = (depth < 0) & (scene.label[inner] == label)
        if int(lesion.sum()) >= 20:
            scene.paint(inner, lesion, scene.new_tissue("lesion"), scene.new_object())


def add_spine(scene: Scene, canvas: Canvas, allowed: Tensor | None) -> None:
    """A chain of bones with discs between; every bone is an object with shell and core, most with arch and processes."""
    draw = canvas.draw
    radius = draw.uniform(9, 22)
    height = radius * draw.uniform(0.95, 1.6)
    middle = random_place(canvas, allowed)
    direction = torch.nn.functional.normalize(draw.normal(3), dim=0)
    path = curve(draw, middle - direction * canvas.size * 0.6, direction, canvas.size * 1.2, height, 0.03)
    shell, core, disc = (scene.new_tissue(k) for k in ("bone", "spongy", "disc"))
    frame = torch.linalg.qr(torch.stack([direction, draw.normal(3), draw.normal(3)]).T.cpu())[0].T.to(draw.device)
    wide = radius * draw.uniform(0.7, 1.0)
    wall = draw.uniform(0.8, 2.2)
    half, waist = height * draw.uniform(0.34, 0.45), draw.uniform(0.0, 0.15)
    arch = vertebral_arch(draw, height, radius, wide) if draw.chance(0.8) else None
    cord = scene.new_tissue(draw.choice(["fluid", "soft", "fat"])) if arch is not None else None
    reach = max(height, radius) if arch is None else float(arch.ends.norm(dim=-1).max()) + radius * 0.4
    bones = []
    for point in path:
        if bool((point < -reach).any()) or bool((point > canvas.size + reach).any()):
            continue
        box = canvas.box(point, reach)
        local = torch.einsum("ab,bxyz->axyz", frame, canvas.coords[(slice(None), *box)] - point[:, None, None, None])
        ring = torch.sqrt((local[1] / radius).square() + (local[2] / wide).square())
        between = local[0].abs() < height * 0.5
        narrow = waist * (1 - (local[0] / half).square()).clamp_min(0)
        level = torch.maximum((ring - 1 + narrow) * radius, local[0].abs() - half + 1.2 * canvas.noise[1][box])
        scene.paint(box, (ring < 0.95) & between, disc, None)
        if arch is not None:
            behind = torch.sqrt(local[1].square() + (local[2] - 1.4 * wide).square())
            scene.paint(box, (behind < 0.38 * radius) & between, cord, None)
            level = torch.minimum(level, capsules(local, arch) + 0.5 * canvas.noise[1][box])
        bones.append((box, level))
    for box, level in bones:  # behind all the discs and cords, which reach into the boxes of their neighbours
        bone = level < 0
        if int(bone.sum()) < 60:
            continue
        scene.paint(box, bone, shell, scene.new_object())
        scene.paint(box, level < -wall, core, None)


def vertebral_arch(draw: Draw, height: float, radius: float, wide: float) -> Capsules:
    """Pedicles, laminae, articular, transverse and spinous processes behind a vertebral body.

    Frame: axis 0 along the spine, 1 to the side, 2 to the back; voxels. `radius`, `wide`: the body along 1 and 2.
    """
    side, back = draw.uniform(0.5, 0.72) * radius, wide * draw.uniform(1.5, 1.9)
    drop, length = height * draw.uniform(0.0, 0.6), radius * draw.uniform(0.5, 1.1)
    lift, joint = 0.15 * height, height * draw.uniform(0.2, 0.46)
    tip = (drop, 0.0, back + 0.35 * wide + length)
    segments = [((0.0, 0.0, back + 0.35 * wide), tip)]
    spread, joined = draw.uniform(1.2, 1.9), draw.chance(0.6)
    for sign in (-1.0, 1.0):
        root = (-lift, sign * side, back)
        segments += [
            ((-lift, sign * side, 0.7 * wide), root),
            (root, (0.0, 0.0, back + 0.35 * wide)),
            (root, (-lift, sign * radius * spread, back + draw.uniform(0.0, 0.4) * wide)),
        ]
        if joined:  # joints, which nearly touch those of the next vertebra
            segments.append(((-joint, sign * side, back + 0.05 * wide), (joint, sign * side, back + 0.1 * wide)))
    ends = torch.tensor(segments, device=draw.device)
    radii = torch.tensor([draw.uniform(0.14, 0.3) * radius for _ in segments], device=draw.device)
    return Capsules(ends, radii.clamp_min(1.3))


def add_lungs(scene: Scene, canvas: Canvas, cavity: Tensor, long_axis: int) -> None:
    """Two lungs that fill the cavity on both sides of a mediastinum, above a dome, with vessels inside."""
    draw, size = canvas.draw, canvas.size
    across = (long_axis + draw.integer(1, 3)) % 3
    along, lateral = canvas.coords[long_axis], canvas.coords[across]
    middle = float(lateral[cavity].median()) if bool(cavity.any()) else size / 2
    gap = size * draw.uniform(0.03, 0.14) * (1 + 0.5 * canvas.noise[0])
    dome = size * draw.uniform(0.55, 1.1) + size * 0.06 * canvas.noise[0]
    if draw.chance(0.5):
        along = size - along
    vessels = vessel_tree(canvas, draw.uniform(1.0, 4.0)) if draw.chance(0.8) else None
    for _ in range(draw.integer(0, 3) if vessels is not None else 0):
        vessels |= vessel_tree(canvas, draw.uniform(1.0, 2.6))
    tissue, blood = scene.new_tissue("lung"), scene.new_tissue("vessel")
    for sign in (-1, 1):
        apex = size * draw.uniform(-0.2, 0.25) + size * 0.04 * canvas.noise[1]
        side = cavity & (sign * (lateral - middle) > gap)
        below = dome - size * cupola(canvas, side, long_axis) if draw.chance(0.7) else dome
        mask = side & (along < below) & (along > apex)
        if int(mask.sum()) < 500:
            continue
        scene.paint(WHOLE, mask, tissue, scene.new_object())
        if vessels is not None:
            scene.paint(WHOLE, mask & vessels, blood, None)


def cupola(canvas: Canvas, side: Tensor, long_axis: int) -> Tensor:
    """How far the diaphragm rises into one half of a chest, as a share of the cube: (S, S, S), 0 at its walls.

    Around it the lung reaches down in a thin recess, a crescent in cross-section.

    Args:
        side: (S, S, S) bool, that half of the cavity.
    """
    draw, height = canvas.draw, canvas.draw.uniform(0.1, 0.6)
    places = torch.nonzero(side[::4, ::4, ::4]).float() * 4
    if len(places) < 20:
        return torch.zeros_like(canvas.noise[0])
    away = torch.zeros_like(canvas.noise[0])
    for axis in (a for a in range(3) if a != long_axis):
        low, high = torch.quantile(places[:, axis], torch.tensor([0.02, 0.98], device=places.device)).tolist()
        middle, reach = (low + high) / 2, max(4.0, (high - low) / 2 * draw.uniform(0.8, 1.05))
        away = away + ((canvas.coords[axis] - middle) / reach).square()
    return height * (1 - away).clamp_min(0).sqrt() * (1 + 0.15 * canvas.noise[1])


def add_vessel(scene: Scene, mask: Tensor, kind: Callable[[], str] = lambda: "vessel") -> None:
    """A tube or a tree (S, S, S) as an object, unless hardly anything of it is in the scene.

    Args:
        kind: gives its sort of tissue; called only where the object is painted, so that nothing is drawn in vain.
    """
    if int(mask.sum()) > 60:
        scene.paint(WHOLE, mask, scene.new_tissue(kind()), scene.new_object())


def torso(draw: Draw, size: int) -> Scene:
    """Body with organs, bones, tubes and vessels."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    cavity = add_body(scene, canvas, draw.integer(0, 3), (0.5, 1.1))
    for _ in range(draw.integer(1, 4)):
        add_organ(scene, canvas, cavity, (24, 60))
    for _ in range(draw.integer(3, 9)):
        add_organ(scene, canvas, cavity, (6, 30))
    if draw.chance(0.45):
        add_spine(scene, canvas, cavity)
    for _ in range(draw.integer(0, 4)):
        mask = tube(canvas, draw.log_uniform(2.5, 13))
        mask &= cavity if draw.chance(0.8) else scene.tissue > 0
        add_vessel(scene, mask, lambda: draw.choice(["vessel", "vessel", "bowel", "organ"]))
    if draw.chance(0.25):
        add_vessel(scene, vessel_tree(canvas, draw.uniform(2, 5)) & cavity)
    return scene


def chest(draw: Draw, size: int) -> Scene:
    """Body with two lungs, organs between and below them, bones and vessels."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    long_axis = draw.integer(0, 3)
    cavity = add_body(scene, canvas, long_axis, (0.32, 0.65))
    add_lungs(scene, canvas, cavity, long_axis)
    for _ in range(draw.integer(1, 5)):
        add_organ(scene, canvas, cavity & (scene.label == 0), (8, 40))
    if draw.chance(0.5):
        add_spine(scene, canvas, cavity & (scene.label == 0))
    for _ in range(draw.integer(0, 3)):
        add_vessel(scene, tube(canvas, draw.log_uniform(2.5, 13)) & (scene.label == 0))
    return scene


def back(draw: Draw, size: int) -> Scene:
    """Body around a spine, with a few organs, ribs and vessels beside it."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    cavity = add_body(scene, canvas, draw.integer(0, 3), (0.4, 0.9))
    for _ in range(draw.integer(0, 3)):
        add_organ(scene, canvas, cavity, (14, 45))
    for _ in range(draw.integer(0, 4)):
        tubes = tube(canvas, draw.uniform(2.5, 6)) & (scene.label == 0)
        add_vessel(scene, tubes, lambda: draw.choice(["bone", "vessel"]))
    add_spine(scene, canvas, cavity)
    for _ in range(draw.integer(0, 3)):
        add_organ(scene, canvas, cavity & (scene.label == 0), (5, 20))
    return scene


def cells(draw: Draw, size: int) -> Scene:
    """Packed cells with or without walls, in a blob or in the whole cube."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    scene.paint(WHOLE, torch.ones_like(scene.label, dtype=torch.bool), scene.new_tissue("soft"), None)
    count = int(draw.log_uniform(8, 90))
    owner = packed_cells(canvas, count)
    inside = torch.ones_like(scene.label, dtype=torch.bool)
    if draw.chance(0.6):
        inside[:] = False
        box, level = blob(canvas, size * (0.4 + 0.2 * draw.rand(3)), size * (0.3 + 0.25 * draw.rand(3)))
        inside[box] = level < 0
    shared = [scene.new_tissue("organ") for _ in range(draw.integer(2, 8))] if draw.chance(0.5) else None
    for cell in range(count):
        mask = (owner == cell) & inside
        if int(mask.sum()) >= 60 and draw.chance(0.85):
            tissue = (
                draw.choice(shared) if shared else scene.new_tissue(draw.choice(["organ", "organ", "fluid", "bright"]))
            )
            scene.paint(WHOLE, mask, tissue, scene.new_object())
    if draw.chance(0.5):  # walls between the cells
        wall = torch.zeros_like(inside)
        for axis in range(3):
            step = owner.diff(dim=axis) != 0
            wall.narrow(axis, 0, size - 1).logical_or_(step)
            if draw.chance(0.7):
                wall.narrow(axis, 1, size - 1).logical_or_(step)
        scene.paint(WHOLE, wall & inside, scene.new_tissue(draw.choice(["fluid", "fat", "bright"])), 0)
    return scene


def scatter(draw: Draw, size: int) -> Scene:
    """Shapes of every size in a plain or empty surrounding."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    if draw.chance(0.7):
        scene.paint(WHOLE, torch.ones_like(scene.label, dtype=torch.bool), scene.new_tissue("soft"), None)
    for _ in range(draw.integer(4, 16)):
        add_organ(scene, canvas, None, (3.5, 45))
    for _ in range(draw.integer(0, 3)):
        add_vessel(scene, tube(canvas, draw.log_uniform(2, 10)))
    return scene


def from_label_map(draw: Draw, label: Tensor, around: Tensor) -> Scene:
    """A scene from an existing label map (S, S, S): every label a tissue, the rest split by `around` (S, S, S) int.

    `around` separates the unlabelled part into a few tissues (for instance quantised real intensities).
    """
    scene = empty_scene(draw, label.shape[0])
    for value in range(int(around.max()) + 1):
        kind = (
            "air"
            if value == 0 and draw.chance(0.7)
            else draw.choice(["soft", "fat", "muscle", "organ", "lung", "bone"])
        )
        scene.paint(WHOLE, (around == value) & (label == 0), scene.new_tissue(kind), None)
    for value in torch.unique(label).tolist():
        if value:
            scene.paint(
                WHOLE,
                label == value,
                scene.new_tissue(draw.choice(["organ", "organ", "fluid", "bone", "bright"])),
                scene.new_object(),
            )
    return scene


SCENES = {"torso": torso, "chest": chest, "back": back, "cells": cells, "scatter": scatter}

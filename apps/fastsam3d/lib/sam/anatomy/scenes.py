"""Random scenes: which shapes lie where, what they are made of, and which of them are labelled.

A scene is two integer maps on one cube. `label` numbers the objects that a user could want; `tissue` numbers the
materials, and its table `kinds` says what sort each is. One object may hold several tissues (a bone's shell and core, an
organ with vessels), and some tissues belong to no object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .fields import Draw
from .shapes import Canvas, blob, curve, packed_cells, tube, vessel_tree


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


def add_body(scene: Scene, canvas: Canvas) -> Tensor:
    """A trunk with fat, muscle and a cavity; returns the mask of the cavity, where organs go."""
    draw, size = canvas.draw, canvas.size
    centre = size * (0.5 + 0.3 * (draw.rand(3) - 0.5))
    radii = size * (0.5 + 0.6 * draw.rand(3))
    long_axis = draw.integer(0, 3)
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
    """A chain of bones with discs between; every bone is an object with shell and core."""
    draw = canvas.draw
    height, radius = draw.uniform(12, 22), draw.uniform(9, 18)
    middle = random_place(canvas, allowed)
    direction = torch.nn.functional.normalize(draw.normal(3), dim=0)
    path = curve(draw, middle - direction * canvas.size * 0.6, direction, canvas.size * 1.2, height, 0.03)
    shell, core, disc = (scene.new_tissue(k) for k in ("bone", "spongy", "soft"))
    frame = torch.linalg.qr(torch.stack([direction, draw.normal(3), draw.normal(3)]).T.cpu())[0].T.to(draw.device)
    wide = radius * draw.uniform(0.75, 1.0)
    wall = draw.uniform(0.8, 2.2)
    for point in path:
        if bool((point < -height).any()) or bool((point > canvas.size + height).any()):
            continue
        box = canvas.box(point, max(height, radius))
        local = torch.einsum("ab,bxyz->axyz", frame, canvas.coords[(slice(None), *box)] - point[:, None, None, None])
        ring = torch.sqrt((local[1] / radius).square() + (local[2] / wide).square())
        level = torch.maximum((ring - 1) * radius, local[0].abs() - height * 0.42 + 1.2 * canvas.noise[1][box])
        scene.paint(box, (ring < 0.95) & (local[0].abs() < height * 0.5), disc, None)
        bone = level < 0
        if int(bone.sum()) < 60:
            continue
        scene.paint(box, bone, shell, scene.new_object())
        scene.paint(box, level < -wall, core, None)


def torso(draw: Draw, size: int) -> Scene:
    """Body with organs, bones, tubes and vessels."""
    scene, canvas = empty_scene(draw, size), Canvas(draw, size)
    cavity = add_body(scene, canvas)
    for _ in range(draw.integer(1, 4)):
        add_organ(scene, canvas, cavity, (24, 60))
    for _ in range(draw.integer(3, 9)):
        add_organ(scene, canvas, cavity, (6, 30))
    if draw.chance(0.45):
        add_spine(scene, canvas, cavity)
    for _ in range(draw.integer(0, 4)):
        mask = tube(canvas, draw.log_uniform(2.5, 13))
        mask &= cavity if draw.chance(0.8) else scene.tissue > 0
        if int(mask.sum()) > 60:
            scene.paint(
                WHOLE, mask, scene.new_tissue(draw.choice(["vessel", "vessel", "bowel", "organ"])), scene.new_object()
            )
    if draw.chance(0.25):
        mask = vessel_tree(canvas, draw.uniform(2, 5)) & cavity
        if int(mask.sum()) > 60:
            scene.paint(WHOLE, mask, scene.new_tissue("vessel"), scene.new_object())
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
        mask = tube(canvas, draw.log_uniform(2, 10))
        if int(mask.sum()) > 60:
            scene.paint(WHOLE, mask, scene.new_tissue("vessel"), scene.new_object())
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


SCENES = {"torso": torso, "cells": cells, "scatter": scatter}

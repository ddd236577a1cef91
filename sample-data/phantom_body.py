"""The trunk without its abdominal organs: skin, fat, muscle wall, diaphragm, lungs, heart, ribs and spine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from phantom_shapes import Blob, Ripple, Shape, Tube, blend_max, blend_min, capsule, norm_field, rotation

# Height (mm) of each vertebral body's centre above that of L1, and half its own height.
VERTEBRAE = {
    "T8": (143, 11.5), "T9": (117, 11.5), "T10": (90, 12), "T11": (62, 12.5), "T12": (32, 13),
    "L1": (0, 13.5), "L2": (-34.5, 13.8), "L3": (-70, 14), "L4": (-106, 14), "L5": (-141, 14),
}  # fmt: skip
SIDES = {"left": -1, "right": 1}  # sign of x: body coordinates grow to the patient's right


@dataclass(frozen=True)
class Build:
    """One patient's proportions, drawn at random: lengths in mm, in body coordinates."""

    half_width: float
    half_depth: float
    fat: float
    wall: float
    dome_right: float
    dome_left: float
    lordosis: float
    scoliosis: float

    centre_y = 8.0  # of the body cavity

    @classmethod
    def random(cls, rng):
        return cls(
            half_width=rng.uniform(124, 136), half_depth=rng.uniform(75, 84), fat=rng.uniform(7, 24), wall=rng.uniform(11, 15),
            dome_right=rng.uniform(84, 100), dome_left=rng.uniform(74, 90), lordosis=rng.uniform(4, 9), scoliosis=rng.uniform(-3, 3),
        )  # fmt: skip

    def spine(self, z):
        """Centre (x, y) of the vertebral body at height z."""
        y = -44 + self.lordosis * np.exp(-(((z + 75) / 70) ** 2)) - 6 * np.clip((z - 60) / 70, 0, 1.3) ** 2
        return self.scoliosis * np.sin(z / 55.0), y


@dataclass
class Spaces:
    """(I, J, K) float32 fields, mm, negative inside.

    Attributes:
        body: inside the skin. wall: inside the muscle wall. cavity: inside of that wall. diaphragm: below it.
        abdomen: inside the cavity and below the diaphragm.
    """

    body: np.ndarray
    wall: np.ndarray
    cavity: np.ndarray
    diaphragm: np.ndarray
    abdomen: np.ndarray


def _long_back_muscles(x, y):
    return norm_field(np.abs(x) - 29, y + 79, None, (29, 22), 2.2).astype(np.float32)


def _spaces(canvas, build, rng):
    x, y, z = canvas.points()
    chest = np.clip((z - 50) / 90, 0, 1.5) ** 2
    waist = np.exp(-(((z + 55) / 38) ** 2))
    dy = y - np.float32(build.centre_y)
    cavity = norm_field(
        x,
        dy,
        None,
        (build.half_width * (1 - 0.10 * chest - 0.05 * waist), build.half_depth * (1 + 0.04 * chest - 0.03 * waist)),
        2.4,
    )
    cavity = cavity.astype(np.float32) + Ripple.random(rng, 1.0, (90, 200))(x, y, z)

    erector = _long_back_muscles(x, y)
    wall = blend_min(cavity - np.float32(build.wall), erector, 12.0)
    lean = dy / (np.sqrt(x * x + dy * dy) + 1)
    fat = build.fat * (0.85 + np.where(lean > 0, 0.4, 0.25) * lean**2) * (1 + 0.25 * np.clip(-z / 100, -0.6, 1))
    body = blend_min(wall, cavity - np.float32(build.wall + 4), 30.0) - fat.astype(np.float32) - 2
    body = blend_max(body, -(y + np.float32(103 + 0.9 * build.fat)), 20.0)

    depth = np.clip(-cavity / 46, 0, 1)
    edge = 12 + 38 * np.clip((y + 10) / 80, -0.6, 1)  # lowest reach of the lung: low behind, high in front
    right = 1 / (1 + np.exp(-(x - 4) / 12))
    top = build.dome_left + (build.dome_right - build.dome_left) * right - 16 * np.exp(-((x / 28) ** 2))
    top = top - 14 * ((np.abs(x) - 66) / 66) ** 2 - 10 * ((y - 8) / 70) ** 2
    rise = np.maximum(top - edge, 5)
    arch = np.sqrt(np.maximum(1 - (1 - depth) ** 2, 1e-3))
    slope = rise * (1 - depth) / arch / 46
    diaphragm = (z - edge - rise * arch) / np.sqrt(1 + slope**2) + Ripple.random(rng, 1.2, (50, 120))(x, y, z)
    fields = (body, wall, cavity, diaphragm, blend_max(cavity, diaphragm, 6.0))
    return Spaces(*(f.astype(np.float32) for f in fields))


def paint_trunk(canvas, build, rng):
    """Skin, fat, muscle and diaphragm.

    Returns:
        Spaces that the later painters fill.
    """
    x, y, z = canvas.points()
    spaces = _spaces(canvas, build, rng)
    fat = -104 + 5 * canvas.coarse + 3 * canvas.fine
    canvas.paint(spaces.body, 35)
    canvas.paint(spaces.body + 2.2, fat)
    # Sheets of fat between the layers of the abdominal wall, and strands in the long back muscles.
    layer = spaces.cavity - 0.4 * build.wall + Ripple.random(rng, 0.5, (60, 120))(x, y, z)
    flank = np.clip((40 - z) / 20, 0, 1) * np.clip((np.abs(x) - 55) / 20, 0, 1)
    sheet = 70 * flank * np.exp(-((layer / 1.0) ** 2)) + 45 * np.clip(canvas.fine - 1.2, 0, 2) * np.clip(
        (-70 - y) / 10, 0, 1
    )
    canvas.paint(spaces.wall, 56 - sheet, coarse=4)
    canvas.paint(spaces.cavity, fat)
    canvas.paint(_long_back_muscles(x, y), 56 - sheet, coarse=4)
    canvas.paint(blend_max(np.abs(spaces.diaphragm) - 1.8, spaces.cavity, 2.0), 52)
    return spaces


def paint_chest(canvas, build, spaces, rng, labels):
    """Lungs with their vessels, and the heart. `labels` maps "left lung" and "right lung" to label values."""
    x, y, z = canvas.points()
    above = -spaces.diaphragm
    middle = norm_field(x + 2, y + 10, None, (21 + 0.1 * np.clip(z - 60, 0, 80), 44), 2.3)
    middle = blend_min(middle, norm_field(x, y + 58, None, (25, 26), 2.0), 12.0)
    middle = blend_min(middle, norm_field(x + 4, y - 66, None, (14, 40), 2.0), 12.0)
    middle = middle.astype(np.float32)
    heart = Blob(
        (-26 + rng.uniform(-6, 6), 30, 132 + rng.uniform(-6, 6)),
        (60, 47, 46),
        (20, -25, 0),
        ripple=Ripple.random(rng, 1.5, (60, 120)),
    )
    muscle, block = canvas.place(heart, within=above, margin=2.5, take=False)
    if block:
        middle[block] = blend_min(middle[block], muscle - 5, 10.0)
    lungs = blend_max(blend_max(spaces.cavity + 2.5, above + 2.0, 3.0), -middle, 6.0)
    for name, side in SIDES.items():
        own = np.maximum(lungs, -side * x)
        canvas.paint(own, -845 + 14 * canvas.coarse + 22 * canvas.fine - 0.55 * y, label=labels[f"{name} lung"])
        for stem in _lung_vessels(canvas, rng, own, side):
            field, where = canvas.place(stem, take=False)
            if where:
                canvas.paint(np.maximum(field, own[where] + 1.0), 40, where)
    canvas.paint(muscle, 112, block, coarse=3)
    for at, radii in (((-42, 26, 138), (24, 19, 30)), ((0, 44, 132), (26, 24, 30))):
        chamber, block = canvas.place(Blob(at, radii, (20, -25, 0)), within=above, margin=9, take=False)
        canvas.paint(chamber, 168, block)


def _lung_vessels(canvas, rng, lung, side, count=70):
    """Vessels from the hilum (above the field of view) to random places in one lung: a list of Tube."""
    inside = np.argwhere(lung[::4, ::4, ::4] < -3) * 4
    if not len(inside):
        return []
    ends = np.stack([a[tuple(inside[rng.integers(len(inside), size=count)].T)] for a in canvas.points()], axis=1)
    tubes = []
    for end in ends:
        root = np.array([side * 40, -4, 152]) + rng.normal(size=3) * (4, 8, 6)
        middle = root + (end - root) * 0.55 + rng.normal(size=3) * 7
        tubes.append(Tube([root, middle, end], [rng.uniform(2.5, 4.0), rng.uniform(1.4, 2.4), 0.7], step=8, margin=3))
    return tubes


def branches(rng, start, heading, length, radius, depth, spread):
    """A random tree of tapering tubes: a list of Tube, the stem first.

    Args:
        start: (3,) mm. heading: (3,) direction. length, radius: of the stem, mm; each generation has about 0.75 of both.
        depth: number of generations. spread: how far children turn away, as a fraction of their heading.
    """
    heading = np.asarray(heading, float) / np.linalg.norm(heading)
    bow = rng.normal(size=3) * 0.08 * length
    middle, end = np.asarray(start) + heading * length / 2 + bow, np.asarray(start) + heading * length
    tree = [Tube(np.array([start, middle, end]), [radius, 0.9 * radius, 0.78 * radius], step=5, margin=3)]
    if depth > 1:
        for _ in range(3 if depth > 2 else 2):
            turned = heading + spread * rng.normal(size=3)
            tree += branches(rng, end, turned, length * rng.uniform(0.6, 0.9), 0.72 * radius, depth - 1, spread)
    return tree


class Vertebra(Shape):
    """One vertebra: body with a waist, pedicles, laminae, facets, transverse and spinous processes, around an open canal."""

    def __init__(self, centre, half_height, tilt_degrees, size, ripple):
        self.centre, self.half_height, self.size, self.ripple = np.float32(centre), half_height, size, ripple
        self.low, self.high = self.centre - (50, 75, 34), self.centre + (50, 30, 30)
        self._axes = rotation((tilt_degrees, 0, 0)).T.astype(np.float32)

    def __call__(self, x, y, z):
        d = [a - c for a, c in zip((x, y, z), self.centre)]
        q = [(r[0] * d[0] + r[1] * d[1] + r[2] * d[2]) / np.float32(self.size) for r in self._axes]
        waist = 2.0 - 2.6 * np.clip(q[2] / self.half_height, -1, 1) ** 2
        body = norm_field(q[0], q[1], None, (24.5, 17.5), 2.5) + waist
        body = blend_max(body, np.abs(q[2]) - np.float32(self.half_height), 3.0)
        mirrored = (np.abs(q[0]), q[1], q[2])
        arch = np.full(body.shape, 99, np.float32)
        for a, b, ra, rb in (
            ((14, -12, 5), (16.5, -31, 3), 5.2, 5.0),  # pedicle
            ((16.5, -31, 3), (0, -43, -4), 4.8, 4.6),  # lamina
            ((17, -31, 4), (38, -37, 6), 4.4, 3.0),  # transverse process
            ((16.5, -32, -8), (16.5, -31, 9), 5.4, 5.2),  # facets
            ((0, -42, -4), (0, -59, -10), 3.6, 4.2),  # spinous process
        ):
            arch = blend_min(arch, capsule(mirrored, a, b, ra, rb, np.float32((1, 1, 1))), 3.0)
        return blend_min(body, arch, 3.0) * np.float32(self.size) + self.ripple(x, y, z)


def paint_bone(canvas, field, block, label=None):
    """Cortex (about 1.8 mm) around spongy bone."""
    if block is None:
        return
    shell = np.clip((2.3 + field) / 1.2, 0, 1)
    spongy = 175 + 16 * canvas.coarse[block] + 22 * canvas.fine[block]
    canvas.paint(field, spongy + (560 - spongy) * shell, block, label)


def paint_spine(canvas, build, rng, labelled):
    """Vertebrae, discs, cord and the muscles beside them; `labelled` maps names of vertebrae to label values."""
    heights = np.arange(-180, 190, 15.0)
    line = np.array([(*build.spine(z), z) for z in heights])
    canal = Tube(line - (0, 27, 0), 9.5, step=12, margin=4)
    for side in SIDES.values():
        psoas = [
            (side * (25 + 24 * t), build.spine(20 - 140 * t)[1] + 2 + 12 * t, 20 - 140 * t)
            for t in np.linspace(0, 1.3, 6)
        ]
        canvas.add(Tube(psoas, 5 + 20 * np.linspace(0, 1.3, 6) ** 0.7, margin=14), 58)
        quadratus = Blob((side * 58, -66, -70), (19, 10, 75), (0, side * -8, side * 25))
        canvas.add(quadratus, 56)
    canvas.add(canal, -60, take=False)
    canvas.add(Tube(line - (0, 27, 0), 7.2, step=12, margin=4), 22, take=False)
    canvas.add(Tube(line[heights > -20] - (0, 27, 0), 4.6, step=12, margin=4), 42, take=False)
    names = list(VERTEBRAE)
    for upper, lower in zip(names[:-1], names[1:]):
        (zu, hu), (zl, hl) = VERTEBRAE[upper], VERTEBRAE[lower]
        z = (zu - hu + zl + hl) / 2
        disc = Blob((*build.spine(z), z), (23.5, 17, (zu - hu - zl - hl) / 2 + 2.5), power=3.2)
        canvas.add(disc, 82 + 5 * rng.normal())
    for name, (z, half) in VERTEBRAE.items():
        tilt = np.degrees(np.arctan2(build.spine(z - 4)[1] - build.spine(z + 4)[1], 8)) + rng.uniform(-1.5, 1.5)
        size = rng.uniform(0.96, 1.03) * (1.0 if name[0] == "L" else 0.9 - 0.002 * (z - 30))
        shape = Vertebra((*build.spine(z), z), half / size, tilt, size, Ripple.random(rng, 0.35, (18, 40)))
        field, block = canvas.place(shape)
        paint_bone(canvas, field, block, labelled.get(name))


def paint_ribs(canvas, build, spaces, rng):
    """Ribs 7 to 12 in the wall, their necks to the spine, costal cartilage, and the xiphoid."""
    x, y, z = canvas.points()
    angle = np.arctan2(np.abs(x), np.float32(build.centre_y) - y)  # 0 behind, pi in front
    reach = {"T8": 2.25, "T9": 2.2, "T10": 2.05, "T11": 1.65, "T12": 1.15}
    drop = rng.uniform(62, 78)
    start = 0.45
    for name, end in reach.items():
        root = VERTEBRAE[name][0] + 5
        fall = drop * ((np.clip(angle, start, end) - start) / 1.7) ** 1.1
        across, along = spaces.cavity - 6.0, (z - root + fall) * 0.85
        rib = norm_field(across, along, None, (3.4, 6.2), 2.2)
        rib = blend_max(rib, 95 * np.maximum(start - angle, angle - end), 4.0).astype(np.float32)
        if end > 1.7:
            lift = 42 * np.clip(angle - end, 0, 1.5)
            cartilage = blend_max(
                norm_field(across, along - 0.85 * lift, None, (4.0, 6.0), 2.2),
                95 * np.maximum(end - angle, angle - 2.85),
                4.0,
            )
            canvas.paint(cartilage.astype(np.float32), 105)
        paint_bone(canvas, rib, canvas.everything)
        for side in SIDES.values():
            sx, sy = build.spine(root)
            neck = Tube(
                [(sx + side * 19, sy - 14, root - 3), (side * 30, sy - 27, root), (side * 44, -71, root)],
                [4.5, 4.2, 4.2],
                margin=6,
            )
            paint_bone(canvas, *canvas.place(neck, take=False))
    xiphoid = Blob((0, build.centre_y + build.half_depth + 8, 128), (13, 4.5, 24))
    paint_bone(canvas, *canvas.place(xiphoid, take=False))

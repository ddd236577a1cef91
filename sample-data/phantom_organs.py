"""The organs of the abdomen: great vessels, kidneys, liver with a lesion, spleen, pancreas, stomach and bowel."""

from __future__ import annotations

import numpy as np
from phantom_body import SIDES, branches
from phantom_shapes import Blob, Carved, Ripple, Tube, Union, rotation
from scipy.ndimage import distance_transform_edt


def _shift(rng, centre, spread):
    return tuple(np.asarray(centre, float) + rng.uniform(-1, 1, 3) * spread)


def paint_vessels(canvas, build, rng, label):
    """Aorta (labelled) and inferior vena cava.

    Returns:
        (aorta, cava): the two Tubes, for the branches that start on them.
    """
    aorta, cava = [], []
    drift = rng.uniform(-3, 3)
    for z in (-170, -120, -60, 0, 45, 85, 125, 170):
        sx, sy = build.spine(z)
        high = np.clip(z / 120, 0, 1.3)
        aorta.append((sx - 6 - 17 * high + drift * np.sin(z / 50), sy + 30 - 11 * high**1.5, z))
        up = np.clip((z - 20) / 80, 0, 1)
        cava.append((sx + 20 + 3 * up, sy + 27 + 14 * up, z))
    width = rng.uniform(0.92, 1.1)
    tubes = (
        Tube(aorta, width * np.array([8.6, 8.8, 9.0, 9.8, 10.4, 10.8, 11.2, 11.4]), margin=14),
        Tube(
            cava,
            rng.uniform(0.9, 1.1) * np.array([10.5, 10.5, 10.5, 11, 11.5, 12, 12, 12]),
            margin=14,
            flat=(0.88, 1.15, 1),
        ),
    )
    canvas.add(tubes[1], 128 + 4 * rng.normal(), gap=1.0)
    canvas.add(tubes[0], 250 + 8 * rng.normal(), label, fine=2, gap=1.0)
    for side in SIDES.values():
        crus = [(side * 13 + 2, build.spine(z)[1] + 19, z) for z in (-40, -10, 20, 50, 75)]
        canvas.add(Tube(crus, [3, 5, 5.5, 5, 4], margin=14, flat=(1, 0.7, 1)), 54, gap=0.8, width=3.0)
    return tubes


def paint_kidney(canvas, rng, side, label, aorta, cava):
    """One kidney: bright cortex, darker pyramids, a sinus that opens towards the midline, artery and vein. `side`: -1 left, 1 right."""
    centre = _shift(rng, (side * 64, -38, 0 if side < 0 else -15), (4, 3, 8))
    turn = (rng.uniform(6, 16), -side * rng.uniform(8, 20), side * rng.uniform(-35, -15))
    size = rng.uniform(0.92, 1.08)
    axes = rotation(turn)

    def at(x, y, z):
        return tuple(np.asarray(centre) + axes @ (size * side * x, size * y, size * z))

    bean = Blob(
        centre,
        tuple(size * np.array([27, 23.5, 53])),
        turn,
        2.15,
        bend=side * size * 9,
        ripple=Ripple.random(rng, 0.7, (20, 45)),
    )
    sinus = Blob(at(-13, 2, 0), tuple(size * np.array([17, 8, 17])), turn)
    mouth = Blob(at(-30, 3, 0), tuple(size * np.array([18, 10, 14])), turn)
    field, block = canvas.place(Carved(bean, [Union([sinus, mouth], 6.0)], width=5.0), gap=3.0, width=6.0)
    if block is None:
        return
    x, y, z = canvas.points(block)
    pyramids = np.clip((Ripple.random(rng, 1.0, (15, 20), count=7)(x, y, z) + 0.4) * 1.5, 0, 1) * np.clip(
        (-field - 5.0) / 2.5, 0, 1
    )
    cortex = 196 + 8 * rng.normal()
    canvas.paint(field, cortex - 48 * pyramids, block, label, fine=4)
    hilum, inner = at(-26, 3, 0), at(-14, 2, 2)
    for vessel, hu, radius, dz in ((cava, 150, 4.2, 5), (aorta, 235, 2.8, -2)):
        near = vessel.path[np.argmin(np.abs(vessel.path[:, 2] - hilum[2] - 12))]
        over = (near + hilum) / 2 + (0, 14 if vessel is cava and side < 0 else 5, dz)
        stem, where = canvas.place(
            Tube([near, over, hilum, inner], [radius, radius, radius, 0.6 * radius], margin=3),
            gap=-0.5,
            width=1.0,
            take=False,
        )
        canvas.paint(stem, hu, where)
    pelvis, where = canvas.place(
        Blob(at(-17, 0, -3), tuple(size * np.array([8, 4, 9])), turn), gap=1.0, width=1.0, take=False
    )
    canvas.paint(pelvis, 15, where)
    canvas.place(bean)  # no neighbour grows into the sinus


def paint_liver(canvas, spaces, rng, labels, cava):
    """Gallbladder, liver with its veins, and one lesion inside it. `labels` maps "liver" and "lesion" to values."""
    gall = Blob(
        _shift(rng, (54, 46, -12), (5, 4, 6)), (14, 15, 29), (30, -12, 0), ripple=Ripple.random(rng, 0.8, (40, 80))
    )
    canvas.add(gall, 10, fine=1, within=spaces.abdomen, margin=4.0, gap=6.0)
    size = rng.uniform(0.94, 1.07, size=(4, 1))
    lobes = Union(
        [
            Blob(_shift(rng, (76, -4, 36), 4), tuple(size[0] * [68, 82, 70]), (0, 10, 0), 2.4),
            Blob(_shift(rng, (92, -6, -26), 6), tuple(size[1] * [38, 52, 54]), (0, 8, 0), 2.2),
            Blob(
                _shift(rng, (2, 44, 58), 5),
                tuple(size[2] * [64, 38, 34]),
                (rng.uniform(-10, 10), rng.uniform(-14, 4), 12),
                2.2,
            ),
        ],
        width=22.0,
        ripple=Ripple.random(rng, 1.6, (35, 90)),
    )
    fissure = Blob(_shift(rng, (14, 78, 38), 4), (2.6, 34, 34), (0, 8, -8))
    porta = Blob(_shift(rng, (30, 6, 16), 3), (20, 20, 14), (0, 20, 0))
    field, block = canvas.place(
        Carved(lobes, [fissure, porta], width=7.0), within=spaces.abdomen, margin=2.5, gap=2.0, width=8.0
    )
    if block is None:
        return
    hu = 110 + 6 * rng.normal()
    canvas.paint(field, hu, block, labels["liver"], fine=3, coarse=3)
    crown = cava.path[np.argmin(np.abs(cava.path[:, 2] - 72))]
    trees = []
    for heading in ((0.85, -0.25, -0.45), (0.55, 0.75, -0.4), (-0.3, 0.9, -0.2)):
        trees += branches(rng, crown, np.asarray(heading) + 0.1 * rng.normal(size=3), rng.uniform(42, 52), 4.6, 3, 0.45)
    for heading in ((0.9, 0.1, 0.25), (-0.25, 0.75, 0.6)):
        trees += branches(
            rng, (34, 10, 22), np.asarray(heading) + 0.1 * rng.normal(size=3), rng.uniform(30, 40), 5.2, 4, 0.55
        )
    whole = np.full(canvas.shape, 99, np.float32)
    whole[block] = field
    for vein in trees:
        stem, where = canvas.place(vein, take=False)
        if where:
            canvas.paint(np.maximum(stem, whole[where] + 2.0), hu + 48, where)
    _paint_lesion(canvas, rng, block, labels)


def _paint_lesion(canvas, rng, block, labels):
    """A round, slightly ragged, dark lesion, at a random place where the liver is thick enough to hold all of it."""
    spacing = np.linalg.norm(canvas.to_body[:3, :3], axis=0)
    step = np.maximum(1, (4 / spacing).astype(int))
    coarse = tuple(slice(s.start, s.stop, n) for s, n in zip(block, step))
    liver = np.pad(canvas.labels[coarse] == labels["liver"], 1)
    depth = distance_transform_edt(liver, sampling=step * spacing)[1:-1, 1:-1, 1:-1]
    margin = 2.0 + 0.5 * canvas.reach
    radius = min(rng.uniform(12, 25), depth.max() - margin - 0.1)
    spots = np.argwhere(depth >= radius + margin)
    if radius < 3 or not len(spots):
        return  # a field of view that holds too little of the liver
    spot = spots[rng.integers(len(spots))]
    x, y, z = (a[coarse][tuple(spot)] for a in canvas.points())
    lesion = Blob(
        (x, y, z),
        tuple(radius * rng.uniform(0.88, 1.0, 3)),
        tuple(rng.uniform(0, 90, 3)),
        ripple=Ripple.random(rng, 0.05 * radius, (14, 40)),
    )
    field, where = canvas.place(lesion, take=False)
    rim = 18 * np.exp(-(((field + 3) / 2.5) ** 2))
    canvas.paint(field, 58 + 5 * rng.normal() + rim, where, labels["lesion"], coarse=5)


def paint_spleen(canvas, spaces, rng, label):
    """Spleen: a crescent against the left wall, hollow towards the stomach."""
    size = rng.uniform(0.92, 1.1)
    body = Blob(
        _shift(rng, (-100, -30, 44), (3, 6, 6)),
        tuple(size * np.array([40, 54, 56])),
        (-15, 10, 20),
        ripple=Ripple.random(rng, 1.2, (35, 80)),
    )
    hollow = Blob(_shift(rng, (-54, 4, 44), 4), (33, 44, 66), (0, 5, 15))
    field, block = canvas.place(
        Carved(body, [hollow], width=8.0), within=spaces.abdomen, margin=2.5, gap=3.0, width=6.0
    )
    if block:
        canvas.paint(field, 125 + 6 * rng.normal(), block, label, fine=3, coarse=3)


def paint_gut(canvas, spaces, rng, aorta):
    """Unlabelled context: portal vein, pancreas, stomach, duodenum, colon, small bowel and the vessels between them."""
    inside = spaces.abdomen
    neck = _shift(rng, (10, 22, 4), 3)
    veins = [
        Tube(
            [(-78, -4, 40), (-45, 4, 26), (-15, 10, 14), (8, 14, 10), (24, 14, 16), (36, 10, 22)],
            [4, 4.5, 5, 6.5, 7, 6.5],
            margin=5,
        ),
        Tube([(8, 14, 10), (14, 16, -25), (10, 22, -70), (6, 26, -120)], [6, 5.5, 4.5, 3], margin=5),
    ]
    arteries = [
        Tube(
            [aorta.path[np.argmin(np.abs(aorta.path[:, 2] - 2))], (-4, 6, -10), (-2, 12, -45), (-2, 20, -110)],
            [4, 4, 3.5, 2],
            margin=5,
        )
    ]
    for tube, hu in [(v, 165) for v in veins] + [(a, 240) for a in arteries]:
        canvas.add(tube, hu, gap=-0.5, width=1.0)
    pancreas = Tube(
        [(38, 18, -26), (32, 24, -8), neck, (-22, 24, 16), (-55, 6, 30), (-78, -6, 38)],
        [12, 13, 9, 10, 10, 7],
        margin=10,
    )
    lobules = Union([pancreas], ripple=Ripple.random(rng, 1.3, (10, 22), count=8))
    canvas.add(lobules, 96, fine=8, within=inside, margin=3.0, gap=1.5, width=3.0)
    stomach = Union(
        [
            Blob(_shift(rng, (-60, -8, 66), 4), (38, 36, 36)),
            Blob(_shift(rng, (-66, 34, 34), 5), (34, 32, 42), (0, 12, 0)),
            Blob(_shift(rng, (-22, 56, 2), 5), (46, 20, 20), (0, 14, -10)),
        ],
        width=20.0,
        ripple=Ripple.random(rng, 1.5, (25, 60)),
    )
    _hollow(canvas, stomach, inside, gap=2.5, wall=3.5, fill=28 + 6 * canvas.coarse, air_above=rng.uniform(34, 52))
    duodenum = Tube(
        [(24, 52, 6), (46, 36, 2), (56, 16, -18), (44, 2, -46), (6, 2, -52), (-28, 14, -36)],
        [13, 13, 12, 12, 11, 11],
        margin=10,
    )
    _hollow(canvas, duodenum, inside, gap=1.5, wall=2.5, fill=25)
    _paint_colon(canvas, rng, inside)
    _paint_small_bowel(canvas, rng, inside)


def _paint_colon(canvas, rng, inside):
    wiggle = rng.uniform(-8, 8, 4)
    colon = Tube(
        [
            (98, -8, -160), (100, -6, -120), (101, -4, -80), (98, 6, -52), (84, 46, -44 + wiggle[0]), (45, 66, -48 + wiggle[1]),
            (0, 70, -52 + wiggle[2]), (-48, 64, -34 + wiggle[3]), (-92, 36, 0), (-108, 4, 4),
            (-110, -18, -25), (-109, -22, -80), (-104, -16, -160),
        ],
        np.array([24, 25, 24, 22, 20, 19, 19, 19, 18, 17, 15, 14, 14]) * rng.uniform(0.9, 1.1),
        margin=10,
    )  # fmt: skip
    x, _, _ = canvas.points()
    level = rng.uniform(60, 72) - 66 / (1 + np.exp((86 - np.abs(x)) / 4))
    faeces = 30 + 45 * canvas.coarse - 160 * np.clip(canvas.fine - 1.0, 0, 2)
    _hollow(
        canvas,
        Union([colon], ripple=Ripple.random(rng, 1.5, (18, 34), count=8)),
        inside,
        gap=1.5,
        wall=2.2,
        fill=faeces,
        air_above=level,
    )


def _paint_small_bowel(canvas, rng, inside):
    """Serpentine loops that fill the middle of the abdomen below the stomach."""
    turns = []
    for row, z in enumerate(np.arange(-8, -175, -22.0)):
        for line, y in enumerate((2, 24, 46, 66)):
            across = np.linspace(-84, 78, 5) * (1 if (row + line) % 2 else -1)
            turns += [(x, y + 6 * (row % 2), z) for x in across]
    path = np.asarray(turns) + rng.normal(size=(len(turns), 3)) * 6
    loops = Tube(path, rng.uniform(9, 13, len(path)), step=7, margin=6)
    _, y, _ = canvas.points()
    bubbles = y + 9 * (1.4 - canvas.coarse)  # gas only here and there
    _hollow(
        canvas,
        Union([loops], ripple=Ripple.random(rng, 0.8, (14, 30))),
        inside,
        gap=2.0,
        wall=2.4,
        fill=24 + 8 * canvas.coarse,
        air_above=bubbles,
    )
    for root in ((4, 14, -30), (-4, 18, -70)):
        for stem in branches(rng, root, (0, 0.8, -0.6), 30, 2.4, 4, 0.9):
            field, where = canvas.place(stem, within=inside, margin=3.0, gap=0.5, width=1.0, take=False)
            canvas.paint(field, 140, where)


def _hollow(canvas, shape, inside, gap, wall, fill, air_above=None):
    """A hollow organ: an enhancing wall, contents, and air above a level (y, mm; the patient lies on the back)."""
    field, block = canvas.place(shape, within=inside, margin=3.0, gap=gap, width=4.0)
    if block is None:
        return
    canvas.paint(field, 84, block)
    canvas.paint(field + wall, fill[block] if np.ndim(fill) else fill, block)
    if air_above is not None:
        y = canvas.points(block)[1]
        level = air_above[block] if np.ndim(air_above) else np.float32(air_above)
        canvas.paint(np.maximum(field + wall, level - y), -960, block)


def paint_organs(canvas, build, spaces, rng, labels):
    """All of this module, in the order in which organs press into each other."""
    aorta, cava = paint_vessels(canvas, build, rng, labels["aorta"])
    for name, side in SIDES.items():
        paint_kidney(canvas, rng, side, labels[f"{name} kidney"], aorta, cava)
    paint_liver(canvas, spaces, rng, labels, cava)
    paint_spleen(canvas, spaces, rng, labels["spleen"])
    paint_gut(canvas, spaces, rng, aorta)

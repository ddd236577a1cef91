"""Fits how well a first look shows what was clicked: FIT and EXPECTED of lib/sam/looks.py.

    .venv/bin/python scripts/fit_looks.py --out build/looks [--workers 2]

Clicks on generated anatomy, whose truth is known, are looked at as serving does: around the click, again at the size of what was
seen, and closer. Each mask is described, and a linear model of the descriptions fitted to the Dice (ridge regression). Half of the
clicks lie in the middle of a structure, half anywhere in it. Some scans are cut to a few centimetres, as scans of one small organ
are. A third of the scans is held out first, to say what choosing by the fit is worth there; the last fit is of all.

The app's own generator makes all of it; the phantoms of sample-data and the evaluation sets take no part. What was looked at is kept
in the folder, so that a run that was interrupted goes on, and a second one only fits.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy import ndimage
from size_table import APP, ROOT

sys.path[:0] = [str(APP), str(ROOT)]

from lib.conf import MODEL_DIR  # noqa: E402
from lib.sam import looks, weights  # noqa: E402
from lib.sam.anatomy.generator import generate  # noqa: E402
from lib.sam.clicks import next_click  # noqa: E402
from lib.sam.geometry import Grid  # noqa: E402
from lib.sam.metrics import dice  # noqa: E402
from lib.sam.placement import BETTER, SURE, leaves, look_again, look_closer, place_patch  # noqa: E402
from lib.sam.prompts import Click, Prompts  # noqa: E402
from lib.sam.segmenters import load_segmenter  # noqa: E402
from lib.sam.training.gate import Resident  # noqa: E402
from lib.sam.volume_io import Volume  # noqa: E402

SCANS, CROPS = 216, 40
SCAN_SEED, CROP_SEED = 2_100_000_000, 2_200_000_000
EDGE, STRUCTURES, CUT = 176, 5, 3
LEAST_ML, LEAST_CUT_ML = 0.5, 0.3
RIDGE = 10.0

Look = tuple[str, float, np.ndarray, float, bool]
"""Name ("wide", "again" or "closer"), spacing in mm, description, Dice, and whether the mask leaves its patch."""


def largest(mask: np.ndarray) -> np.ndarray:
    """Its largest face-connected part."""
    parts, count = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask


def scan(seed: int) -> tuple[Volume, dict[str, np.ndarray]]:
    """A generated scan of random spacing, a third of them of thick slices, and some of its structures."""
    rng, case = np.random.default_rng(seed), generate(seed, EDGE)
    label, image = case.label.numpy(), case.image.numpy()
    spacing = [float(rng.choice([0.8, 1.0, 1.25, 1.5, 1.5, 2.0]))] * 3
    if rng.random() < 0.35:
        axis, times = int(rng.integers(3)), int(rng.integers(2, 4))
        every = tuple(slice(None, None, times if a == axis else None) for a in range(3))
        image, label = ndimage.uniform_filter1d(image, times, axis=axis)[every], label[every]
        spacing[axis] *= times
    sizes = np.bincount(label.ravel()) * np.prod(spacing) / 1000
    values = rng.permutation([v for v in range(1, len(sizes)) if sizes[v] >= LEAST_ML])[:STRUCTURES]
    volume = Volume(np.ascontiguousarray(image), Grid(image.shape, np.diag([*spacing, 1.0])))
    return volume, {str(v): largest(label == v) for v in values}


def cut(seed: int) -> Iterator[tuple[str, Volume, dict[str, np.ndarray]]]:
    """Parts of a few centimetres of such a scan, one around each of some structures."""
    volume, structures = scan(seed)
    rng, spacing = np.random.default_rng(seed + 7), np.array(volume.grid.spacing_mm)
    for name in list(structures)[:CUT]:
        mask = structures[name]
        places = np.argwhere(mask)
        middle = places[rng.integers(len(places))]
        half = (rng.uniform(18, 50, 3) / spacing).astype(int) + 2
        part = tuple(slice(max(0, m - h), m + h) for m, h in zip(middle, half))
        image, inside = np.ascontiguousarray(volume.array[part]), largest(mask[part])
        if min(image.shape) < 4 or inside.mean() > 0.6 or inside.sum() * spacing.prod() / 1000 < LEAST_CUT_ML:
            continue
        yield f"-crop{name}", Volume(image, Grid(image.shape, np.diag([*spacing, 1.0]))), {name: inside}


def looked_at(segmenter, session: Resident, click: Click, truth: np.ndarray) -> list[Look]:
    """The looks at a click that serving may take."""
    grid, spec, first = session.volume.grid, segmenter.spec, Prompts((click,))
    seen = segmenter.glance(session, first, {})
    frames = {"wide": seen.frame}
    again = look_again(seen.frame, segmenter.cells(seen), spec)
    if again is not None:
        frames["again"] = place_patch(grid, first, spec, again)
    closer = look_closer(grid, first, spec)
    if closer is not None:
        frames["closer"] = closer
    found = []
    for name, frame in frames.items():
        view = segmenter.view(session, frame, first, {})
        box, corner = segmenter.mask_of(view)
        mask = np.zeros(truth.shape, dtype=bool)
        mask[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
        description = segmenter.describe(view)
        if description is not None:
            leaving = leaves(frame, segmenter.cells(view))
            found.append((name, frame.spacing_mm, description, dice(mask, truth), leaving))
    return found


def rows_of(task: tuple[str, int]) -> tuple[int, list[list[Look]]]:
    """All clicks on one generated scan, or on its parts: for each the looks at it."""
    kind, seed = task
    segmenter = load_segmenter(weights.resolve("fastsam3d", MODEL_DIR))
    cases = cut(seed) if kind == "crop" else [("", *scan(seed))]
    found = []
    for part, volume, structures in cases:
        session, spacing = Resident(volume), tuple(float(s) for s in volume.grid.spacing_mm)
        for name, truth in structures.items():
            rng = np.random.default_rng(crc32(f"gen{seed}{part}{name}".encode()))
            middle = next_click(np.zeros_like(truth), truth, None, "centre", spacing)
            inside = np.argwhere(truth)
            anywhere = Click(tuple(int(v) for v in inside[rng.integers(len(inside))]))
            found += [looked_at(segmenter, session, click, truth) for click in (middle, anywhere)]
    return seed, [seen for seen in found if seen]


def candidates(found: list[Look]) -> tuple[int, list[int]]:
    """By the networks' own estimates alone the index of the best look, and those that serving would compare."""
    iou = list(looks.FIT).index("iou")
    index = {name: n for n, (name, *_) in enumerate(found)}
    best = index.get("again", index.get("wide", 0))
    if "again" in index and "wide" in index and found[index["wide"]][2][iou] > found[best][2][iou] + BETTER:
        best = index["wide"]
    kept = [index[name] for name in ("again", "wide") if name in index]
    if "closer" in index and found[index["closer"]][1] <= 0.95 * found[best][1]:
        kept.append(index["closer"])
        if found[kept[-1]][2][iou] > found[best][2][iou] + BETTER:
            best = kept[-1]
    return best, kept or [best]


def sure(found: list[Look]) -> bool:
    """Whether serving stops at the second look."""
    names = [name for name, *_ in found]
    return found[names.index("again") if "again" in names else 0][2][list(looks.FIT).index("iou")] >= SURE


def fit(clicks: list[list[Look]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation (D,) of the descriptions, and the ridge regression's weights (D + 1,) with the constant last."""
    chosen = [found[n] for found in clicks if not sure(found) for n in candidates(found)[1]]
    x, y = np.array([look[2] for look in chosen]), np.array([look[3] for look in chosen])
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    z = np.c_[(x - mean) / deviation, np.ones(len(x))]
    penalty = RIDGE * np.eye(z.shape[1])
    penalty[-1, -1] = 0
    return mean, deviation, np.linalg.solve(z.T @ z + penalty, z.T @ y)


def chosen_dice(
    clicks: list[list[Look]], fitted: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[float, float, float]:
    """Mean Dice with looks chosen by the network's estimates, by the fit, and by the truth; the last two take a finer one at most."""
    mean, deviation, weights_ = fitted
    by_iou, by_fit, by_truth = [], [], []
    for found in clicks:
        best, kept = candidates(found)
        by_iou.append(found[best][3])
        by_truth.append(max(found[n][3] for n in (*kept, best) if found[n][1] <= found[best][1]))
        if sure(found):
            by_fit.append(found[best][3])
            continue
        finer = [n for n in kept if found[n][1] < found[best][1] and not found[n][4]]
        expected = {
            n: ((found[n][2] - mean) / deviation).clip(-looks.FARTHEST, looks.FARTHEST) @ weights_[:-1]
            for n in (*finer, best)
        }
        other = max(expected, key=expected.get)
        by_fit.append(found[other if expected[other] > expected[best] else best][3])
    return tuple(float(np.mean(x)) for x in (by_iou, by_fit, by_truth))


def main() -> int:
    """Looks, fits, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder in which what was looked at is kept")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = [("scan", SCAN_SEED + n) for n in range(SCANS)] + [("crop", CROP_SEED + n) for n in range(CROPS)]
    kept = {task: args.out / f"{task[0]}-{task[1]}.pickle" for task in tasks}
    missing = [task for task in tasks if not kept[task].exists()]
    with ProcessPoolExecutor(args.workers) as pool:
        for task, (_, found) in zip(missing, pool.map(rows_of, missing)):
            kept[task].write_bytes(pickle.dumps(found))
            print(f"{task[0]} {task[1]}: {len(found)} clicks", flush=True)
    rows = {task: pickle.loads(kept[task].read_bytes()) for task in tasks}
    held = [clicks for (_, seed), clicks in rows.items() if seed % 3 == 0]
    others = [clicks for (_, seed), clicks in rows.items() if seed % 3]
    figures = chosen_dice(sum(held, []), fit(sum(others, [])))
    print(
        "held out: chosen by the network's own estimate {:.4f}, by the fit {:.4f}, by the truth {:.4f}".format(*figures)
    )
    mean, deviation, weight = fit(sum(rows.values(), []))
    print("FIT = {")
    for name, *numbers in zip(looks.FIT, mean, deviation, weight):
        print(f'    "{name}": ({", ".join(f"{number:.4f}" for number in numbers)}),')
    print(f"}}\nEXPECTED = {weight[-1]:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How well a router tells what was annotated from the rest: the figures of docs/decisions/0005.

    .venv/bin/python scripts/router_table.py --out build/router [--data FOLDER]

Annotated is the layered mass of the acceptance test in one to four of five phantoms, every combination of them; asked about are clicks
on it and on the nine other structures in five other phantoms. FOLDER holds evaluation sets (image.nii.gz and label.nii.gz, or
KIND_image.nii.gz and KIND_label.nii.gz, in folders): a router should send no click on their structures to the mass.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
from size_table import APP, ROOT

sys.path[:0] = [str(APP), str(ROOT)]

from lib.sam import weights  # noqa: E402
from lib.sam.clicks import next_click  # noqa: E402
from lib.sam.router import Router, described  # noqa: E402
from lib.sam.segmenters import load_segmenter  # noqa: E402
from lib.sam.training.cases import LabelledCase  # noqa: E402
from lib.sam.training.gate import Resident  # noqa: E402
from lib.sam.training.routing import clicks_on, samples_of  # noqa: E402
from lib.sam.volume_io import read_volume  # noqa: E402

from tests.acceptance.layered import NAME, VALUE  # noqa: E402
from tests.acceptance.test_learning import ANNOTATED, phantom_names, phantoms  # noqa: E402

SEED = 5
ANYWHERE, ON_OTHERS = 10, 25


def descriptions(segmenter, volume, places) -> np.ndarray:
    """(N, D) of voxels."""
    return np.array([described(segmenter, Resident(volume), place, {}) for place in places])


def asked_about(segmenter, volume, label, names) -> dict[tuple[str, str], np.ndarray]:
    """(structure, "middle" or "anywhere") -> descriptions of clicks."""
    rng, found = np.random.default_rng(SEED), {}
    spacing = tuple(float(s) for s in volume.grid.spacing_mm)
    for value, name in names.items():
        target = label == value
        if target.sum() > 50:
            middle = next_click(np.zeros_like(target), target, rule="centre", spacing_mm=spacing)
            found[name, "middle"] = descriptions(segmenter, volume, [middle.ijk])
            anywhere = clicks_on(target.astype(np.uint8), spacing, ANYWHERE, rng)
            found[name, "anywhere"] = descriptions(segmenter, volume, anywhere)
    return found


def others(segmenter, folder: Path) -> np.ndarray:
    """Descriptions of clicks on what is labelled in evaluation sets."""
    found = []
    for image in sorted([*folder.glob("*/image.nii.gz"), *folder.glob("*/*_image.nii.gz")]):
        path = image.with_name(image.name.replace("image", "label"))
        if path.exists():
            volume, label = read_volume(image), np.asarray(nib.load(path).dataobj)
            if label.shape == volume.grid.shape and label.max() < 256:
                spacing = tuple(float(s) for s in volume.grid.spacing_mm)
                places = clicks_on(label.astype(np.uint8), spacing, ON_OTHERS, np.random.default_rng(SEED))
                found.append(descriptions(segmenter, volume, places))
                print(f"{image.parent.name}/{image.name}: {len(places)} clicks", flush=True)
    return np.concatenate(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for label maps and descriptions")
    parser.add_argument("--data", type=Path, help="evaluation sets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    segmenter = load_segmenter(weights.resolve("fastsam3d", APP / "model"))
    samples, asked = [], []
    for n, (name, image, label, affine) in enumerate(phantoms()):
        if n < ANNOTATED:
            path = args.out / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image((label == VALUE).astype(np.uint8), affine), path)
            case = LabelledCase(name, image, path, {1: NAME})
            samples.append(samples_of(case, [NAME], segmenter, 1.0, SEED, args.out / "samples"))
        else:
            asked.append(asked_about(segmenter, read_volume(image), label, phantom_names() | {VALUE: NAME}))
        print(name, flush=True)
    elsewhere = others(segmenter, args.data) if args.data else None
    print(
        "| cases annotated | the mass, in its middle | anywhere in it | others, in the middle | worst | anywhere in them | other scans |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in range(ANNOTATED - 1, 0, -1):
        rows = []
        for chosen in combinations(samples, count):
            descriptions_, taught = (
                np.concatenate([getattr(s, k) for s in chosen]) for k in ("descriptions", "taught")
            )
            router = Router.fit(descriptions_, taught, np.repeat(np.arange(count), [len(s.taught) for s in chosen]))
            share = {}
            for mass in (True, False):
                for where in ("middle", "anywhere"):
                    xs = [
                        x
                        for a in asked
                        for (name, w), found in a.items()
                        if (name == NAME) is mass and w == where
                        for x in found
                    ]
                    share[mass, where] = np.mean([router.taught_at(x) for x in xs])
            strange = np.nan if elsewhere is None else np.mean([router.taught_at(x) for x in elsewhere])
            rows.append((*share.values(), strange))
        mean, worst = np.mean(rows, axis=0), np.max(rows, axis=0)
        cells = (mean[0], mean[1], mean[2], worst[2], mean[3], mean[4])
        print(f"| {count} | " + " | ".join(f"{100 * c:.0f} %" for c in cells) + " |", flush=True)


if __name__ == "__main__":
    main()

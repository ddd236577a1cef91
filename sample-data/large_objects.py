"""Label maps of large objects of the phantom: `python sample-data/large_objects.py OUT/studies --out DIR`.

    DIR/body/case1.nii.gz     the whole body as one label: the largest part denser than -300 HU, holes of each slice filled
    DIR/lungs/case1.nii.gz    both lungs as one label

OUT/studies is what make.py writes. They serve to measure objects that are larger than a model's patch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from make import write_json, write_nifti
from phantom import LABELS
from scipy import ndimage

DENSER_THAN = -300


def body(image):
    """(I, J, K) HU -> bool: the largest connected part above air, with what it encloses in each slice."""
    parts, _ = ndimage.label(image > DENSER_THAN)
    mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return np.stack([ndimage.binary_fill_holes(mask[:, :, k]) for k in range(mask.shape[2])], axis=2)


def lungs(labels):
    """(I, J, K) values of phantom.LABELS -> bool: the left and the right lung."""
    return np.isin(labels, [LABELS["left lung"], LABELS["right lung"]])


def main(argv=None):
    parser = argparse.ArgumentParser(description="label maps of large objects of the phantom")
    parser.add_argument("studies", type=Path, help="the folder `studies` that make.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="where to write body/ and lungs/")
    args = parser.parse_args(argv)
    scans = sorted(args.studies.glob("*.nii.gz"))
    if not scans:
        print(f"no .nii.gz in {args.studies}", file=sys.stderr)
        return 2
    for path in scans:
        image = nib.load(path)
        truth = np.asarray(nib.load(args.studies / "labels" / "final" / path.name).dataobj)
        for name, mask in (("body", body(np.asarray(image.dataobj))), ("lungs", lungs(truth))):
            write_nifti(args.out / name / path.name, mask.astype(np.uint8), image.affine)
    for name in ("body", "lungs"):
        write_json(args.out / name / "labels.json", {"1": name})
    return 0


if __name__ == "__main__":
    sys.exit(main())

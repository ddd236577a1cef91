"""Generated studies with known organs, made by the sample data's own script with another seed than the demonstration's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

REPO = Path(__file__).resolve().parents[2]
SEED = 2026
SHAPE = (180, 150, 96)
SPACING_MM = (2.0, 2.0, 2.5)


@dataclass(frozen=True)
class Case:
    """A labelled scan.

    Attributes:
        image: the volume file, or the folder of a DICOM series.
        labels: (I, J, K) uint8 in the voxel order that a reader of the image gives.
        names: label name -> value in `labels`.
        spacing_mm: (3,) voxel size along I, J, K.
        study, series: UIDs of a DICOM series, else empty.
    """

    image: Path
    labels: np.ndarray
    names: dict[str, int]
    spacing_mm: tuple[float, float, float]
    study: str = ""
    series: str = ""

    def organ(self, name: str) -> np.ndarray:
        """(I, J, K) bool."""
        return self.labels == self.names[name]


def make(folder: Path, *options: str) -> None:
    """Runs sample-data/make.py into a folder."""
    script = REPO / "sample-data" / "make.py"
    subprocess.run([sys.executable, str(script), "--out", str(folder), *options], check=True, stdout=subprocess.DEVNULL)


def make_small(folder: Path, cases: int) -> None:
    """Makes studies that are quick to generate and to send, the first of them as DICOM too; organs of natural size."""
    lattice = ["--shape", ",".join(map(str, SHAPE)), "--spacing", ",".join(map(str, SPACING_MM))]
    make(folder, "--cases", str(cases), "--seed", str(SEED), "--dicom", "1", *lattice)


def study(folder: Path, case: str = "case1") -> Case:
    """One of the NIfTI studies that were made in a folder."""
    names = {name: int(value) for value, name in json.loads((folder / "labels.json").read_text()).items()}
    image = folder / "studies" / f"{case}.nii.gz"
    return _case(image, folder / "studies" / "labels" / "final" / image.name, names)


def dicom_series(folder: Path, case: str = "case1") -> Case:
    """One of the DICOM series that were made in a folder."""
    record = json.loads((folder / "dicom" / f"{case}.json").read_text())
    names = {name: int(value) for value, name in record["label_names"].items()}
    labels = folder / "dicom" / record["labels"]
    return _case(folder / "dicom" / case, labels, names, record["study_uid"], record["series_uid"])


def _case(image: Path, labels: Path, names: dict[str, int], study: str = "", series: str = "") -> Case:
    loaded = nib.load(labels)
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(loaded.affine))
    return Case(image, np.asarray(loaded.dataobj), names, spacing, study, series)

"""Series of many geometries in an Orthanc, labels for them, and what of these arrives there. Voxels in the order sent."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import requests

from tests.app.orthanc import Geometry
from tests.app.volumes import CENTRE_IJK, scan, target

SLICES = slice(18, 42)  # of the small scan: what every label below lies in
CENTRE = (*CENTRE_IJK[:2], CENTRE_IJK[2] - SLICES.start)
NAMES = {3: "spleen", 7: "left kidney"}
_TILT = np.deg2rad(20)
OBLIQUE = (
    (float(np.cos(_TILT)), float(np.sin(_TILT)), 0.0),
    (-float(np.sin(_TILT)) * 0.8, float(np.cos(_TILT)) * 0.8, -0.6),
)
WHOLE = {
    "axial": Geometry(),
    "reversed": Geometry(step=(0.0, 0.0, -1.8), order=-1),
    "oblique, other spacing": Geometry(axes=OBLIQUE, pixel_mm=(0.8, 1.3), slice_mm=3.0),
    "oblique": Geometry(axes=OBLIQUE),
    "sagittal, rows reversed": Geometry(axes=((0, -1, 0), (0, 0, -1))),
}
BROKEN = {
    "missing slices": (Geometry(left_out=(9, 10)), "apart"),
    "two distances": (Geometry(thicker_from=12), "apart"),
    "gantry tilt": (Geometry(step=(0.0, 0.6, 1.8)), "gantry tilt"),
    "several volumes": (Geometry(step=(0.0, 0.0, 0.0)), "same one"),
    "two pixel sizes": (Geometry(wider_from=12), "one size and spacing"),
}
IN_ONE_STUDY = 3
"""The first ones of WHOLE."""


@dataclass(frozen=True)
class Labelled:
    """A series with its label.

    Attributes:
        uid: of the series.
        geometry: of its slices.
        image: as a client gets it.
        label: (I, J, K) uint8 in the order in which the slices were sent.
        placed: the same on the client's image.
        seg: the DICOM SEG that came of it.
    """

    uid: str
    geometry: Geometry
    image: nib.Nifti1Image
    label: np.ndarray
    placed: np.ndarray
    seg: pydicom.Dataset


def pixels(seed: int) -> np.ndarray:
    return scan(seed)[:, :, SLICES]


def label_of(seed: int) -> np.ndarray:
    """(I, J, K) uint8 in the order in which the slices were sent: two structures that no symmetry maps onto themselves."""
    inside = target()[:, :, SLICES]
    label = np.where(inside, 3, 0).astype(np.uint8)
    label[: CENTRE[0] - seed, :, : CENTRE[2] + 3] *= 0
    label[30:37, 20 + seed : 33, 4:9] = 7
    return label


def volume(server, uid: str, tmp_path: Path) -> nib.Nifti1Image:
    """The image as a client gets it."""
    answer = server.get(f"/datastore/image?image={uid}")
    answer.raise_for_status()
    path = tmp_path / f"{uid}.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path)


def as_sent(image: nib.Nifti1Image, array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, 3) -> places every voxel of an array in the order sent on the client's image, by positions in mm alone."""
    axes = np.array(geometry.axes, float)
    step = geometry.position(1) - geometry.position(0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * geometry.pixel_mm[0], axes[1] * geometry.pixel_mm[1], step
    affine[:3, 3] = geometry.position(0)
    to_client = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    placed = np.zeros(image.shape, array.dtype)
    where = np.argwhere(array)
    exact = where @ to_client[:3, :3].T + to_client[:3, 3]
    assert np.abs(exact - np.rint(exact)).max() < 0.05
    placed[tuple(np.rint(exact).astype(int).T)] = array[tuple(where.T)]
    return placed


def save(server, uid: str, label: nib.Nifti1Image, info) -> requests.Response:
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": uid},
        files={"label": ("label.nii.gz", compressed(label)), "params": (None, json.dumps({"label_info": info}))},
        timeout=120,
    )


def compressed(image: nib.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes(), 1)


def segs(pacs: str, uid: str) -> list[pydicom.Dataset]:
    """Every SEG on the server that refers to a series."""
    found = []
    for instance in requests.get(f"{pacs}/instances", timeout=30).json():
        data = pydicom.dcmread(io.BytesIO(requests.get(f"{pacs}/instances/{instance}/file", timeout=30).content))
        if data.Modality == "SEG" and data.ReferencedSeriesSequence[0].SeriesInstanceUID == uid:
            found.append(data)
    return found

"""Small generated studies: two good volumes, and unusable ones named for what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (96, 80, 64)
SPACING_MM = (1.2, 1.2, 1.8)
CENTRE_IJK = (50, 38, 30)
RADII_MM = (24.0, 20.0, 22.0)
AFFINE = np.array(
    [
        [-SPACING_MM[0], 0.0, 0.0, 60.0],
        [0.0, -SPACING_MM[1], 0.0, 50.0],
        [0.0, 0.0, SPACING_MM[2], -400.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def target() -> np.ndarray:
    """(I, J, K) bool: a solid ellipsoid."""
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return sum(((a - c) * s / r) ** 2 for a, c, s, r in zip(axes, CENTRE_IJK, SPACING_MM, RADII_MM)) <= 1


def scan(seed: int, dtype: type = np.int16) -> np.ndarray:
    """(I, J, K): a bright noisy ellipsoid in darker noisy surroundings, in the range of a CT."""
    noise = np.random.default_rng(seed).normal(0, 15, SHAPE)
    return (np.where(target(), 160, -20) + noise).astype(dtype)


def save(path: Path, array: np.ndarray) -> Path:
    """Writes an array as NIfTI on the common grid."""
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def write_studies(folder: Path) -> None:
    """Makes the folder and fills it."""
    folder.mkdir(parents=True)
    save(folder / "case1.nii.gz", scan(1))
    save(folder / "case2.nii.gz", scan(2))
    save(folder / "fresh.nii.gz", scan(5))
    save(folder / "one_slice.nii.gz", scan(4)[:, :, CENTRE_IJK[2] : CENTRE_IJK[2] + 1])
    some_nan = scan(3, np.float32)
    some_nan[:3] = np.nan
    save(folder / "some_nan.nii.gz", some_nan)
    save(folder / "all_nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    save(folder / "constant.nii.gz", np.full(SHAPE, 7, np.int16))
    save(folder / "four_d.nii.gz", np.zeros((8, 8, 8, 3), np.int16))
    whole = (folder / "case1.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii.gz").write_text("no image at all")
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\n\n"
    (folder / "zero_size.nrrd").write_text(header.format("0 8 8"))
    (folder / "huge_header.nrrd").write_text(header.format("32767 32767 32767"))

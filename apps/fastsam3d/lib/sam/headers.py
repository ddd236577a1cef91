"""The text and the bytes before the voxels of a NRRD or NIfTI file, for every writer of masks."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from .grid import Grid

NIFTI_VOXEL_OFFSET = 352
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])
_NRRD_TYPES = {"float32": "float", "float64": "double"}


def nrrd_header(grid: Grid, dtype: np.dtype | type, encoding: str) -> bytes:
    """Returns an attached NRRD header, the empty line at its end included.

    Args:
        grid: of the voxels, which follow in file order, I fastest; written as LPS directions and origin in mm.
        dtype: of the voxels, little-endian.
        encoding: "gzip" or "raw".
    """
    dtype = np.dtype(dtype)
    affine = _LPS_FROM_RAS @ grid.affine[:3]
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES.get(dtype.name, dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(str(n) for n in grid.shape),
        "space directions: " + " ".join(_vector(column) for column in affine.T[:3]),
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {encoding}",
        "space origin: " + _vector(affine[:, 3]),
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")


def nifti_header(grid: Grid, dtype: np.dtype | type) -> bytes:
    """Returns the first 352 bytes of a single-file NIfTI-1: qform and sform in mm, no scaling, little-endian voxels.

    A qform cannot hold a shear; the sform keeps it.
    """
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(grid.shape)
    header.set_data_dtype(np.dtype(dtype))
    header.set_qform(grid.affine, code="scanner", strip_shears=True)  # sets the voxel sizes too
    header.set_sform(grid.affine, code="scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"] = NIFTI_VOXEL_OFFSET
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(NIFTI_VOXEL_OFFSET - header.sizeof_hdr)


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(repr(float(value) + 0.0) for value in values) + ")"

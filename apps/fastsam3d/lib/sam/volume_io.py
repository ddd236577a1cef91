"""Scans from files and masks to files.

The array's index order is the file's own: the order that MONAI's LoadImage gives before any reorientation, so voxel
indices that a viewer sends need no translation. Stored integers stay integers (a CT of 512x512x300 is 150 MiB, not
600). Sizes are checked against a budget before any voxel is read.
"""

import math
import os
import re
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.volumeutils import array_from_file

from .dicom_check import dicom_fault
from .grid import Grid
from .header_check import voxel_file

try:
    from isal import igzip
    from isal.igzip_lib import IsalError
except ImportError:  # the same voxels, later
    igzip, IsalError = None, zlib.error

MAX_BYTES = 4 * 2**30
"""Default budget for the voxels of one scan in memory."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI = (".nii", ".nii.gz")
_META = (".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
_DICOM = (".dcm", ".ima")
_DEFLATE_BOUND = 1100
"""Deflate makes at most 1032 bytes of one; a header that asks for more than this names voxels that are not there."""


_NIBABEL_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


class VolumeError(ValueError):
    """A scan that cannot be used; the message names the file, the rule and what was found."""


class TooLargeError(VolumeError):
    """A scan whose voxels do not fit in the bytes that the caller allows."""


class NoMemoryError(VolumeError):
    """A scan that may be read, for which this machine has no memory now."""


@dataclass
class Volume:
    """A scan in memory.

    Attributes:
        array: (I, J, K), stored dtype (floats as float32), any memory order, all values finite.
        grid: shape and voxel -> RAS mm.
        warnings: what was unusual about the file and what was done about it, for the user.
        nonfinite: how many voxels were NaN or infinite and were replaced.
    """

    array: np.ndarray
    grid: Grid
    warnings: tuple[str, ...] = field(default=())
    nonfinite: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return self.array.nbytes


def read_volume(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Volume:
    """Reads a scan: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, a DICOM file, or a folder that holds a DICOM series.

    Two-dimensional images become (I, J, 1); trailing axes of length 1 are dropped. NaN and infinities become the
    smallest finite value, with a warning. Scaled integers (slope, intercept) become float32.

    Args:
        path: the file or the folder.
        max_bytes: the most bytes that the voxels may take in memory, checked before they are read.

    Raises:
        TooLargeError: the voxels take more than max_bytes.
        VolumeError: the file is missing, truncated, damaged, of several volumes or channels, of complex or
            colour voxels, without one finite value, or with an affine that cannot be inverted.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if path.is_dir():
            return _finish(path, *_read_dicom(path, max_bytes))
        if not path.is_file():
            raise VolumeError(f"no such image: {path.name}")
        if name.endswith(_NIFTI):
            return _finish(path, *_read_nifti(path, max_bytes))
        if name.endswith(_NRRD + _META):
            return _finish(path, *_read_header_and_data(path, max_bytes))
        if name.endswith(_DICOM):
            return _finish(path, *_read_dicom(path, max_bytes))
    except MemoryError as error:
        raise NoMemoryError(f"{path.name}: not enough memory for its voxels; close other images or programs") from error
    known = ", ".join(_NIFTI + _NRRD + _META + _DICOM)
    raise VolumeError(f"{path.name}: an image must be one of {known} or a folder with a DICOM series; convert it first")


def read_grid(path: str | os.PathLike) -> Grid:
    """Reads a file's sizes and affine without its voxels: those that `read_volume` gives.

    Raises:
        VolumeError: the file is missing, its header is damaged, or it is none of .nii, .nii.gz, .nrrd, .mha and .mhd.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if name.endswith(_NIFTI):
            image = nib.load(path)
            sizes, affine = tuple(int(n) for n in image.shape), _nifti_affine(image)
        elif name.endswith(_NRRD + _META):
            data, fault = voxel_file(path)
            if data is None:
                raise VolumeError(f"{path.name}: {fault}")
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            sizes, affine = tuple(reader.GetSize()), _itk_affine(reader)
        else:
            raise VolumeError(f"{path.name}: a header is read from {', '.join(_NIFTI + _NRRD + _META)} files")
        _check_sizes(path, sizes, 1, MAX_BYTES)
        return Grid((*sizes[:3], *(1,) * (3 - len(sizes))), affine)
    except (RuntimeError, OSError, EOFError, zlib.error, ValueError, *_NIBABEL_ERRORS) as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"{path.name}: its header cannot be read: {_short(error)}") from error


def _finish(path: Path, array: np.ndarray, affine: np.ndarray, warnings: list[str]) -> Volume:
    if array.size == 0:
        raise VolumeError(f"{path.name}: an image needs at least one voxel, got sizes {array.shape}")
    array = array.reshape(array.shape[:3] + (1,) * (3 - array.ndim), order="A")
    try:
        grid = Grid(array.shape, affine)
    except ValueError as error:
        raise VolumeError(f"{path.name}: {error}") from error
    low, high = array.min(), array.max()
    count = 0
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = np.isfinite(array)
        count = array.size - int(np.count_nonzero(finite))
        if count == array.size:
            raise VolumeError(f"{path.name}: an image needs at least one finite value, all {count} are NaN or infinite")
        low = array.min(where=finite, initial=np.inf)
        high = array.max(where=finite, initial=-np.inf)
        array[~finite] = low
        warnings.append(f"{count} voxels were NaN or infinite and were set to the smallest value, {low:g}")
    if low == high:
        warnings.append(f"all voxels have the same value, {low:g}: there is nothing to see in this image")
    return Volume(array, grid, tuple(warnings), count)


def _check_sizes(path: Path, sizes: tuple[int, ...], bytes_per_voxel: int, max_bytes: int, components: int = 1) -> None:
    """Applies every rule that the header alone decides."""
    if not sizes or min(sizes) < 1:
        raise VolumeError(f"{path.name}: an image needs at least one voxel along each axis, got sizes {sizes}")
    if components != 1:
        raise VolumeError(f"{path.name}: voxels must be single numbers, got {components} components (colour, vectors)")
    if any(n != 1 for n in sizes[3:]):
        raise VolumeError(f"{path.name}: an image must be one volume, got sizes {sizes}; split it into volumes first")
    needed = math.prod(sizes) * bytes_per_voxel
    if needed > max_bytes:
        raise TooLargeError(
            f"{path.name}: voxels may take {max_bytes} bytes, its header asks for {needed} ({sizes}); crop or resample it"
        )


def _check_file_size(path: Path, data: Path, needed: int, expansion: int) -> None:
    if needed > data.stat().st_size * expansion:
        raise VolumeError(f"{path.name}: its header names {needed} bytes of voxels, the file ends before them")


def _read_nifti(path: Path, max_bytes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    try:
        image = nib.load(path, mmap=False)  # a map into a file that is replaced later would crash the process
        dtype = image.get_data_dtype()
        if dtype.fields is not None or dtype.kind == "V":
            raise VolumeError(f"{path.name}: voxels must be single numbers, got colours ({dtype})")
        if dtype.kind not in "iuf":
            raise VolumeError(f"{path.name}: voxels must be real numbers, got {dtype}")
        sizes = tuple(int(n) for n in image.shape)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        scaled = (slope, intercept) != (1.0, 0.0)
        _check_sizes(path, sizes, max(dtype.itemsize, 4 if scaled else 1), max_bytes)
        compressed = path.name.lower().endswith(".gz")
        _check_file_size(path, path, math.prod(sizes) * dtype.itemsize, _DEFLATE_BOUND if compressed else 1)
        array = _stored_voxels(path, image)
        affine = _nifti_affine(image)
    except (*_NIBABEL_ERRORS, OSError, EOFError, zlib.error, IsalError) as error:
        raise VolumeError(f"{path.name}: not a whole NIfTI file: {error}") from error
    except (ValueError, OverflowError, TypeError) as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"{path.name}: damaged NIfTI file: {error}") from error
    array = array.reshape(sizes[:3], order="A")
    array = _native(array)
    if scaled:
        array = array.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is treated as infinite below
            array *= np.float32(slope)
            array += np.float32(intercept)
    return array, affine, []


def _stored_voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """The array as it is stored; a gzipped file is inflated by ISA-L where that is installed, twice as fast as zlib."""
    if igzip is None or not path.name.lower().endswith(".gz"):
        return np.asanyarray(image.dataobj.get_unscaled())
    with igzip.open(path, "rb") as stream:
        array = array_from_file(image.shape, image.get_data_dtype(), stream, image.dataobj.offset, mmap=False)
        stream.read(1)  # reaches the checksum, which is then compared
    return array


def _nifti_affine(image) -> np.ndarray:
    """The sform, else the qform; but the qform when only it agrees with the voxel sizes in the header (as MONAI)."""
    affine = np.array(image.affine, dtype=np.float64)
    header = image.header
    zooms = np.array(header.get_zooms()[:3], dtype=np.float64)

    def agrees(matrix):
        return np.allclose(zooms, np.linalg.norm(matrix[:3, : len(zooms)], axis=0))

    if not agrees(affine) and header["sform_code"] > 0 and agrees(image.get_qform()):
        return np.array(image.get_qform(), dtype=np.float64)
    return affine


def _native(array: np.ndarray) -> np.ndarray:
    """Native byte order, floats as float32; a copy only where something changes, writeable in any case."""
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(array.astype(dtype, copy=False), requirements="W")


def _read_header_and_data(path: Path, max_bytes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """NRRD and MetaImage, through ITK."""
    data, fault = voxel_file(path)
    if data is None:
        raise VolumeError(f"{path.name}: {fault}")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if path.name.lower().endswith(_NRRD) else "MetaImageIO")
    reader.SetFileName(str(path))
    stored = _execute_header(path, reader, 1, max_bytes)
    _check_file_size(path, data, stored, _DEFLATE_BOUND)
    return (*_execute(path, reader), [])


def _read_dicom(path: Path, max_bytes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A DICOM file, or the first series of a folder. Files that are no sound DICOM never reach ITK."""
    if not path.is_dir():
        fault = dicom_fault(path)
        if fault:
            raise VolumeError(f"{path.name}: not a whole DICOM file: {fault}")
        return _read_slices(path, [str(path)], max_bytes, [])
    files = sorted(p for p in path.iterdir() if p.is_file())
    faults = {p: fault for p in files if (fault := dicom_fault(p))}
    warnings = [f"{p.name} in the folder was left out: {faults[p]}" for p in list(faults)[:3]]
    if len(faults) > len(warnings):
        warnings.append(f"{len(faults) - len(warnings)} more files in the folder were left out")
    if len(faults) == len(files):
        raise VolumeError(f"{path.name}: a folder must hold a DICOM series, none was found; {'; '.join(warnings)}")
    with tempfile.TemporaryDirectory() as sound:
        for file in files if faults else ():
            if file not in faults:
                os.symlink(file.resolve(), os.path.join(sound, file.name))
        folder = sound if faults else str(path)
        names = _first_series(path, folder, warnings)
        return _read_slices(path, names, max_bytes, warnings)


def _first_series(path: Path, folder: str, warnings: list[str]) -> list[str]:
    """The files of a folder's first series (by identifier, as MONAI), in slice order."""
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder, useSeriesDetails=True)
        if not series:
            raise VolumeError(f"{path.name}: a folder must hold a DICOM series, none was found")
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, series[0], useSeriesDetails=True)
    except RuntimeError as error:
        raise VolumeError(f"{path.name}: its DICOM files cannot be sorted into series: {_short(error)}") from error
    if len(series) > 1:
        warnings.append(f"the folder holds {len(series)} DICOM series; the first by its identifier was read")
    return list(names)


def _read_slices(
    path: Path, names: list[str], max_bytes: int, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    header = sitk.ImageFileReader()
    header.SetImageIO("GDCMImageIO")
    header.SetFileName(names[0])
    _execute_header(path, header, len(names), max_bytes)
    if len(names) == 1:
        return (*_execute(path, header), warnings)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    array, affine = _execute(path, reader)
    return array, affine, warnings + _uneven_slices(reader, len(names), affine)


def _uneven_slices(reader: sitk.ImageSeriesReader, count: int, affine: np.ndarray) -> list[str]:
    """A warning if the gaps between the slices' positions differ, or if these are not known."""
    key = "0020|0032"
    try:
        positions = [[float(v) for v in reader.GetMetaData(i, key).split("\\")] for i in range(count)]
    except (RuntimeError, ValueError):  # absent, or not numbers
        positions = []
    if not positions or any(len(position) != 3 for position in positions):
        return ["the slices carry no positions; their order and spacing are a guess"]
    along = np.array(positions) @ (_LPS_TO_RAS[:3, :3] @ affine[:3, 2]) / np.linalg.norm(affine[:3, 2])
    gaps = np.abs(np.diff(along))
    if np.ptp(gaps) <= 0.01 * gaps.max():
        return []
    return [
        f"the slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart; they are treated as evenly spaced, "
        "so positions and volumes are approximate (slices may be missing)"
    ]


def _execute_header(path: Path, reader: sitk.ImageFileReader, slices: int, max_bytes: int) -> int:
    """Checks what the header says of one of `slices` files; returns the bytes of voxels in that file, uncompressed."""
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"{path.name}: its header cannot be read: {_short(error)}") from error
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise VolumeError(f"{path.name}: voxels must be real numbers, got {kind}")
    bits = re.search(r"(\d+)-bit", kind)
    width = int(bits[1]) // 8 if bits else 8
    sizes = tuple(reader.GetSize())
    stored = math.prod(sizes) * width
    if slices > 1:
        sizes = sizes[:2] + (slices * math.prod(sizes[2:]),)
    _check_sizes(path, sizes, width, max_bytes, reader.GetNumberOfComponents())
    return stored


def _execute(path: Path, reader: sitk.ImageFileReader | sitk.ImageSeriesReader) -> tuple[np.ndarray, np.ndarray]:
    """Runs an ITK reader: array (I, J, K) and affine (RAS)."""
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeError(f"{path.name}: not a whole image file: {_short(error)}") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError(f"{path.name}: voxels must be single numbers, got {image.GetPixelIDTypeAsString()}")
    array = _native(sitk.GetArrayFromImage(image).T)
    return array.reshape(array.shape[:3], order="A"), _itk_affine(image)


def _itk_affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """(4, 4) voxel -> RAS mm."""
    rank = image.GetDimension()
    spatial = min(rank, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(rank, rank)[:spatial, :spatial]
    affine[:spatial, :spatial] = direction * np.array(image.GetSpacing())[:spatial]
    affine[:spatial, 3] = np.array(image.GetOrigin())[:spatial]
    return _LPS_TO_RAS @ affine


def _short(error: Exception) -> str:
    """The last line of ITK's many-line messages, without source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*?(ERROR|Error):\s*", "", lines[-1])[:200] if lines else type(error).__name__

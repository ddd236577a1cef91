"""Answer files: a segmentation as `.nrrd` or `.nii.gz`, compressed in time that follows the mask and not the volume.

Most of an answer is zeros. A deflate stream may be put together from pieces that do not refer to each other, so long
runs of zeros are compressed once, kept and repeated, and their checksum follows from arithmetic instead of from
reading them; only the rows that the mask touches are really compressed, with ISA-L (isal) where it is installed, which
is several times as fast as zlib. Readers see one ordinary gzip member.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .sam.headers import nifti_header, nrrd_header

try:
    from isal import isal_zlib
except ImportError:  # the same answers, later
    isal_zlib = None

if TYPE_CHECKING:
    from .sam.segmenter import Segmentation

EXTENSIONS = (".nrrd", ".nii.gz", ".nii")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
_LAST_EMPTY_BLOCK = b"\x03\x00"
_ZERO_CHUNK = 1 << 20
_LEVEL = 1
_WINDOW_BITS = -15
_MEMORY_LEVEL = 8

_Buffer = bytes | memoryview


def write_answer(
    segmentation: Segmentation, extension: str = ".nii.gz", dtype: str = "uint8", folder: str | None = None
) -> str:
    """Writes a mask on its source grid into a new temporary file, which the caller removes.

    Args:
        segmentation: its mask box, corner and grid are used.
        extension: one of `EXTENSIONS`; `.nrrd` and `.nii.gz` are gzip-compressed.
        dtype: one of `DTYPES`; the values stay 0 and 1.
        folder: where to put it; None is the system's temporary folder.

    Returns:
        The file's path.

    Raises:
        ValueError: if the extension or the data type is not offered.
    """
    if extension not in EXTENSIONS:
        raise ValueError(f"An answer's extension must be one of {', '.join(EXTENSIONS)}, got {extension!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"An answer's data type must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    handle, path = tempfile.mkstemp(prefix="fastsam3d-", suffix=extension, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(_parts(segmentation, extension, np.dtype(dtype).newbyteorder("<")))
    except BaseException:
        os.unlink(path)
        raise
    return path


def _parts(segmentation: Segmentation, extension: str, dtype: np.dtype) -> Iterator[bytes]:
    if extension == ".nrrd":
        yield nrrd_header(segmentation.grid, dtype, "gzip")
        yield from _gzip_member(b"", segmentation, dtype)
    elif extension == ".nii.gz":
        yield from _gzip_member(nifti_header(segmentation.grid, dtype), segmentation, dtype)
    else:
        yield nifti_header(segmentation.grid, dtype)
        for run in _runs(segmentation, dtype):
            yield bytes(run) if isinstance(run, int) else run


def _runs(segmentation: Segmentation, dtype: np.dtype) -> Iterator[int | memoryview]:
    """Yields the volume's bytes in file order (I fastest): a number is a run of that many zeros.

    A buffer is to be used before the next run is asked for.
    """
    n_i, n_j, n_k = segmentation.grid.shape
    box = np.asarray(segmentation.mask_box)
    i0, j0, k0 = (int(c) for c in segmentation.corner_ijk)
    size_i, size_j, size_k = box.shape
    total = n_i * n_j * n_k
    rows = np.zeros((size_j, n_i), dtype)
    flat = rows.reshape(-1)
    length = (size_j - 1) * n_i + size_i if box.size else 0
    used = np.flatnonzero(box.any(axis=(0, 1))) if box.size else []
    done = 0
    for k in used:
        start = ((k0 + int(k)) * n_j + j0) * n_i + i0
        if start > done:
            yield (start - done) * dtype.itemsize
        rows[:, i0 : i0 + size_i] = box[:, :, k].T
        yield flat[i0 : i0 + length].view(np.uint8).data
        done = start + length
    if total > done:
        yield (total - done) * dtype.itemsize


def _gzip_member(prefix: bytes, segmentation: Segmentation, dtype: np.dtype) -> Iterator[bytes]:
    yield _GZIP_HEADER
    checksum, size = zlib.crc32(prefix), len(prefix)
    if prefix:
        yield _deflate(prefix)
    for run in _runs(segmentation, dtype):
        if isinstance(run, int):
            whole, rest = divmod(run, _ZERO_CHUNK)
            yield _deflated_zeros(_ZERO_CHUNK) * whole + (_deflated_zeros(rest) if rest else b"")
            checksum = _crc32_of_appended_zeros(checksum, run)
            size += run
        else:
            yield _deflate(run)
            checksum = (isal_zlib or zlib).crc32(run, checksum)
            size += len(run)
    yield _LAST_EMPTY_BLOCK + checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def _deflate(data: _Buffer) -> bytes:
    """Compresses to deflate blocks that end on a byte, are not the last, and refer to nothing outside themselves."""
    if isal_zlib is None:
        return _deflate_small(data)
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _WINDOW_BITS)
    return compressor.compress(data) + compressor.flush(isal_zlib.Z_FULL_FLUSH)


def _deflate_small(data: _Buffer) -> bytes:
    """The same with zlib: slower, and smaller where one byte is repeated."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)


@lru_cache(maxsize=1024)
def _deflated_zeros(count: int) -> bytes:
    return _deflate_small(bytes(count))


# CRC-32 treats data as a polynomial over GF(2), so appending n zero bytes multiplies the register by x^(8n) modulo the
# generator. Bit 31 of a word is the coefficient of x^0, as in the reflected form that gzip uses.
_GENERATOR = 0xEDB88320
_ONE = 1 << 31
_MASK = 0xFFFFFFFF


def _crc32_of_appended_zeros(checksum: int, count: int) -> int:
    return _multiply(_power_of_x(8 * count), checksum ^ _MASK) ^ _MASK


@lru_cache(maxsize=1024)
def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        exponent >>= 1
    return power


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & _MASK
        b = (b >> 1) ^ (_GENERATOR if b & 1 else 0)
    return product

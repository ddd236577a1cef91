"""Archives of the CVPR "segment anything in medical images on laptop" challenge: boxes in, masks out.

In: `imgs` (H, W), (H, W, 3) or (D, H, W), `boxes` (N, 4) x0, y0, x1, y1 or (N, 6) x0, y0, z0, x1, y1, z1, and `spacing`.
Out: `segs` of the image's (D,) H, W with the number of the box, from 1; where two masks overlap the later one counts, as
published.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from .boxes import check_boxes
from .files import whole_file
from .intensity import grey_range, to_8bit
from .slice_segmenter import SliceSegmenter

MAX_BYTES = 4 * 2**30
"""Default budget for one array of an archive, in memory."""

_READ_ERRORS = (OSError, ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile, zlib.error)


class ArchiveError(ValueError):
    """An archive that cannot be used; the message names the file, the rule and what was found."""


@dataclass(frozen=True)
class Archive:
    """A case.

    Attributes:
        images: (H, W), (H, W, 3) or (D, H, W) uint8. boxes: (N, 4) or (N, 6) as stored. spacing: as stored, or None.
        warnings: what was done with the image.
    """

    images: np.ndarray
    boxes: np.ndarray
    spacing: np.ndarray | None
    warnings: tuple[str, ...] = ()

    @property
    def is_stack(self) -> bool:
        """Whether the boxes are those of a stack."""
        return self.boxes.shape[1] == 6


def read_archive(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Archive:
    """Reads a case; nothing in it is unpickled, and no array is read whose header asks for more than `max_bytes`.

    Raises:
        ArchiveError: no archive, damaged, too large, or without usable `imgs` and `boxes`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            images, boxes = (_array(archive, path, key, max_bytes) for key in ("imgs", "boxes"))
            spacing = _array(archive, path, "spacing", max_bytes) if "spacing.npy" in archive.namelist() else None
    except ArchiveError:
        raise
    except FileNotFoundError as error:
        raise ArchiveError(f"no such archive: {path.name}") from error
    except _READ_ERRORS as error:
        raise ArchiveError(f"{path.name}: not a whole .npz archive: {error}") from error
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6):
        raise ArchiveError(f"{path.name}: boxes must be (N, 4) for an image or (N, 6) for a stack, got {boxes.shape}")
    fits = images.ndim == 3 if boxes.shape[1] == 6 else images.ndim == 2 or images.shape[2:] == (3,)
    if not fits or not images.size or images.dtype.kind not in "iuf":
        wanted = "(D, H, W)" if boxes.shape[1] == 6 else "(H, W) or (H, W, 3)"
        raise ArchiveError(
            f"{path.name}: imgs must be numbers {wanted} with boxes of {boxes.shape[1]}, got {images.dtype} {images.shape}"
        )
    return _in_8bits(images, boxes, spacing)


def segment_archive(segmenter: SliceSegmenter, case: Archive) -> tuple[np.ndarray, list[str]]:
    """Answers every box of a case.

    Returns:
        `segs`, uint8 (uint16 with more than 255 boxes), and what the user should know; a box that cannot be asked leaves
        its number unused.

    Raises:
        ValueError: more boxes than boxes.MAX_BOXES.
    """
    shape = case.images.shape if case.is_stack else case.images.shape[:2]
    checked = check_boxes(case.boxes, shape[::-1])
    segs = np.zeros(shape, dtype=np.uint8 if len(case.boxes) <= 255 else np.uint16)
    slices = segs if case.is_stack else segs[None]
    if case.is_stack:
        found = segmenter.segment_stack(case.images, list(checked.boxes))
    else:
        found = [{0: mask} for mask in segmenter.segment_image(case.images, checked.boxes)]
    for number, masks in zip(checked.numbers, found):
        for index, answer in masks.items():
            (y, x), (h, w) = answer.corner, answer.mask.shape
            slices[index, y : y + h, x : x + w][answer.mask] = number
    left_out = [f"{fault}; it was left out" for fault in checked.faults]
    return segs, [*case.warnings, *left_out, *checked.warnings]


def write_answer(path: str | os.PathLike, segs: np.ndarray, spacing: np.ndarray | None) -> None:
    """Writes `segs`, and `spacing` where there was one, as a compressed archive; whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    arrays = {"segs": segs} if spacing is None else {"segs": segs, "spacing": spacing}
    with whole_file(Path(path)) as file:
        np.savez_compressed(file, **arrays)


def _array(archive: zipfile.ZipFile, path: Path, key: str, max_bytes: int) -> np.ndarray:
    if f"{key}.npy" not in archive.namelist():
        raise ArchiveError(
            f"{path.name}: an archive must hold imgs and boxes, found {', '.join(archive.namelist()[:10])}"
        )
    with archive.open(f"{key}.npy") as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
    needed = int(np.prod([*map(int, shape), 1], dtype=object)) * dtype.itemsize
    if dtype.hasobject:
        raise ArchiveError(f"{path.name}: {key} holds Python objects, which could run code; store plain numbers")
    if needed > max_bytes:
        raise ArchiveError(f"{path.name}: {key} may take {max_bytes} bytes, its header asks for {needed} ({shape})")
    if needed > archive.getinfo(f"{key}.npy").file_size:
        raise ArchiveError(f"{path.name}: the header of {key} names {needed} bytes, the archive holds fewer")
    with archive.open(f"{key}.npy") as file:
        return npy.read_array(file, allow_pickle=False)


def _in_8bits(images: np.ndarray, boxes: np.ndarray, spacing: np.ndarray | None) -> Archive:
    if images.dtype == np.uint8:
        return Archive(images, boxes, spacing)
    warnings = [f"imgs is {images.dtype}; it was brought to 8 bits by its percentiles or as CT"]
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        images = np.nan_to_num(images, nan=0, posinf=0, neginf=0)
        warnings.append("values that were not finite were set to 0")
    return Archive(to_8bit(images, *grey_range(images)), boxes, spacing, tuple(warnings))

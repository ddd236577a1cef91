"""A user's own labelled images: a folder of challenge-style .npz files or of NIfTI images with label maps.

Files are read when they are visited, one at a time, and one random slice of a stack is used a visit.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..anatomy.fields import Draw
from ..intensity import grey_range, to_8bit
from ..preprocess import read_volume
from ..slices import slice_image
from .data2d import LabelledSlice

_ENDINGS = (".nii.gz", ".nii")


class OwnSlices:
    """The folder, split 4:1 by file; the same files are held out for the same seed.

    Attributes:
        training, held_out: sources of slices. count: files that train.

    Raises:
        ValueError: fewer than two labelled files; the message says what is looked for.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        files = find_files(Path(folder))
        if len(files) < 2:
            raise ValueError(
                f"{folder} must hold at least two labelled images, found {len(files)}: *.npz with `imgs` and `gts`, or "
                "NIfTI pairs (imagesTr/NAME_0000.nii.gz with labelsTr/NAME.nii.gz, or NAME_image.nii.gz with "
                "NAME_label.nii.gz)"
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
        held = max(1, len(files) // 5)
        self.training = FileSlices([files[i] for i in order[held:]])
        self.held_out = FileSlices([files[i] for i in order[:held]])
        self.count = len(self.training.files)


class FileSlices:
    """Slices of some files; see data2d.Source."""

    def __init__(self, files: Sequence[tuple[Path, Path | None]]) -> None:
        self.files = list(files)

    def slice(self, draw: Draw) -> LabelledSlice | None:
        """A random slice with an object of a random file; None for a file without objects."""
        image, label = draw.choice(self.files)
        return npz_slice(draw, image) if label is None else nifti_slice(draw, image, label)


def find_files(folder: Path) -> list[tuple[Path, Path | None]]:
    """(image, label) NIfTI pairs and (npz, None), sorted by name."""
    found: list[tuple[Path, Path | None]] = [(p, None) for p in sorted(folder.rglob("*.npz"))]
    for image in sorted(p for p in folder.rglob("*") if p.name.endswith(_ENDINGS)):
        stem = image.name.split(".nii")[0]
        for ending in _ENDINGS:
            beside = image.with_name(stem.removesuffix("_image") + "_label" + ending)
            across = image.parent.parent / "labelsTr" / (stem.removesuffix("_0000") + ending)
            label = beside if stem.endswith("_image") else across if image.parent.name == "imagesTr" else None
            if label is not None and label.is_file():
                found.append((image, label))
                break
    return found


def npz_slice(draw: Draw, path: Path) -> LabelledSlice | None:
    """From `imgs` (H, W), (H, W, 3) or (D, H, W), 8 bits, and `gts` of that shape without colour.

    Raises:
        ValueError: another form; the message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            image, label = content["imgs"], content["gts"]
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file with the arrays `imgs` and `gts`: {error}") from error
    colour = image.ndim == 3 and image.shape[-1] == 3 and label.ndim == 2
    if (image.shape[:2] if colour else image.shape) != label.shape or label.ndim not in (2, 3):
        raise ValueError(f"{path}: `imgs` {image.shape} and `gts` {label.shape} must be one image or one stack")
    if label.ndim == 3:
        held = np.flatnonzero(label.any(axis=(1, 2)))
        if not held.size:
            return None
        index = int(held[draw.integer(0, len(held))])
        whole, image, label = image, image[index], label[index]
        if image.dtype != np.uint8:
            image = to_8bit(image, *grey_range(whole))
    elif image.dtype != np.uint8:
        image = to_8bit(image, *grey_range(image))
    return _labelled(image, label)


def nifti_slice(draw: Draw, image_path: Path, label_path: Path) -> LabelledSlice | None:
    """A slice across a random axis (an axis of few thick slices, if there is one), prepared as serving does."""
    image, label = read_volume(image_path), read_volume(label_path)
    if image.array.shape != label.array.shape:
        raise ValueError(
            f"image and label must have the same shape, got {image_path} {image.array.shape} and {label_path} "
            f"{label.array.shape}"
        )
    spacing = np.asarray(image.grid.spacing_mm)
    thick = int(spacing.argmax())
    axis = thick if spacing[thick] > 2 * spacing.min() else draw.integer(0, 3)
    held = np.flatnonzero(label.array.any(axis=tuple(a for a in range(3) if a != axis)))
    if not held.size:
        return None
    index = int(held[draw.integer(0, len(held))])
    grey = to_8bit(slice_image(image.array, axis, index), *grey_range(image.array))
    return _labelled(grey, slice_image(label.array, axis, index))


def _labelled(image: np.ndarray, label: np.ndarray) -> LabelledSlice:
    values, compact = np.unique(label, return_inverse=True)
    compact = compact.reshape(label.shape) + (0 if values[0] == 0 else 1)
    return LabelledSlice(torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(compact.astype(np.int64)))

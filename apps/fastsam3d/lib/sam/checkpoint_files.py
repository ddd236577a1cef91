"""Reading checkpoint files that nobody has to trust.

Two formats: safetensors, which holds nothing but tensors, and PyTorch's pickles, which are read with
`torch.load(weights_only=True)` only. There is no fallback: a file that needs more than that is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import struct
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

MAX_BYTES = 4 * 2**30
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")

# What a hostile or damaged file makes the readers raise; the reason is passed on.
_READ_ERRORS = (
    pickle.PickleError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, AssertionError,
    ArithmeticError, MemoryError, ImportError, OSError, struct.error, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip
_PICKLES = threading.Lock()  # torch keeps one set of allowed names for all threads
_NUMBERS = "? b B h H i I l L q Q e f d".split()


class WeightsError(ValueError):
    """Weights that are missing, damaged, unsafe or do not fit; the text says which, and what to do."""


class Contents(NamedTuple):
    """What a file holds: the unpickled value or a dictionary of tensors, and the safetensors header's texts."""

    value: Any
    metadata: Mapping[str, str]


def file_sha256(path: Path) -> str:
    """Hex digest of the file's bytes.

    Raises:
        WeightsError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_contents(path: Path) -> Contents:
    """Everything in a .safetensors file, or in a PyTorch checkpoint read safely.

    Tensors may be views of the mapped file: copy what is kept.

    Raises:
        WeightsError: no such file, too large, damaged, or it would need to run code.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return Contents({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})
        except _READ_ERRORS as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return Contents(_read_pickle(path), {})


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by key and metadata of a .safetensors file, without its tensors.

    Raises:
        WeightsError: as `read_contents`.
    """
    path = Path(path)
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, dict(file.metadata() or {})
    except _READ_ERRORS as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _check_file(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"weights are read from {', '.join(SUFFIXES)} files, got {path}")
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is not a file")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise WeightsError(f"{path} has {size} bytes; a checkpoint has 1 to {MAX_BYTES}")


def _read_pickle(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_zip(path)
        # The allowance is withdrawn when the block ends; torch.serialization.add_safe_globals would be for good.
        with _PICKLES, torch.serialization.safe_globals(_benign_globals()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} was refused: it holds more than tensors, plain values, an argparse.Namespace and numpy numbers, "
            f"and loading that could run code. Ask its author for a safetensors file. ({_first_line(error)})"
        ) from error
    except _READ_ERRORS as error:
        raise WeightsError(
            f"{path} cannot be read as a PyTorch checkpoint (damaged, truncated, or a format that cannot be read "
            f"safely, such as a tar archive or TorchScript): {_first_line(error)}"
        ) from error


def _check_zip(path: Path) -> None:
    """torch.save never compresses; a compressed or overlapping member could grow without bound."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path} is a compressed archive, which PyTorch does not write; it was refused")


def _benign_globals() -> list:
    """What published training checkpoints hold beside tensors and optimizer state (plain dictionaries of tensors).

    * argparse.Namespace, the training arguments: a class without behaviour; its attributes are restricted likewise.
    * numpy numbers (losses, Dice): the function that makes one from a dtype and bytes, under its old and new module
      name; numpy.dtype; and the dtype classes of plain numbers. Object dtypes are not among them.

    OrderedDict and Counter (learning-rate schedules) are allowed by torch itself.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = {type(np.dtype(code)) for code in _NUMBERS}
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    culprit = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
    return (culprit or (lines[0] if lines else type(error).__name__))[:300]

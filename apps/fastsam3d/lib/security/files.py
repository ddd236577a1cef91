"""Copies that are there whole or not at all, and what a crash leaves of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from ..sam.files import whole_file

PART = ".part"
_CHUNK = 1 << 20


def copy_whole(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Copies a file's bytes. A symbolic link at the path is replaced and never written through.

    Raises:
        OSError: it cannot be written (a full disk); what was at the path is there as before.
    """
    with open(source, "rb") as original, whole_file(Path(path)) as file:
        shutil.copyfileobj(original, file, _CHUNK)


def sha256_of(path: str | os.PathLike) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes from a folder what processes left that were killed while they wrote a whole file."""
    for part in Path(folder).glob(f".*.{'[0-9a-f]' * 16}{PART}"):
        part.unlink(missing_ok=True)

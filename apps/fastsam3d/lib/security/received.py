"""A file that a client sent, on disk for as long as a request needs it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi import HTTPException, UploadFile

_CHUNK = 1 << 20
_SHOWN = 80


def ending_of(name: str | None, endings: Sequence[str], default: str) -> str:
    """The ending of an upload's file name, of which nothing else is used.

    Args:
        name: as the client sent it; None or "" takes the default.
        endings: those that are taken.
        default: one of them.

    Raises:
        HTTPException: 422 if the name has another ending.
    """
    if not name:
        return default
    found = [ending for ending in endings if name.lower().endswith(ending)]
    if not found:
        raise HTTPException(
            422, f"A file's name must end in one of {', '.join(endings)}, got {repr(name[-_SHOWN:])}; convert it first."
        )
    return max(found, key=len)


@contextmanager
def received(upload: UploadFile, name: str, folder: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yields the path of a temporary copy, which is removed at the end.

    Args:
        upload: parsed by now, and so within the size limit of requests.
        name: of the copy; messages to the client show it.
        folder: where a folder for it is made; None is the system's folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="upload-", dir=folder) as place:
        path = Path(place, name)
        with path.open("xb") as file:
            shutil.copyfileobj(upload.file, file, _CHUNK)
        yield path

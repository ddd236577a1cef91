"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new binary file that takes the path when the block ends well; a reader sees the old file or the whole new one.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    part = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole, in UTF-8."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def plain_name(text: str, longest: int = 150) -> str:
    """A file name of letters, digits, dots, dashes and underscores; what had to be changed carries a checksum."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text).lstrip(".")
    return plain if plain == text and len(text) <= longest else f"{plain[:longest]}_{zlib.crc32(text.encode()):08x}"

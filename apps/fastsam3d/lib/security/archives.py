"""Unpacking what a client sends as one archive, within bounds that are set before anything is inflated."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

MAX_FILES = 20_000
"""The most files of one archive; a DICOM series of a whole-body CT has a few thousand."""
_LONGEST_READ = 64 * 2**20
_CHUNK = 1 << 20


class ArchiveError(ValueError):
    """An archive that is damaged or not taken; the message says why."""


class TooMuchError(ArchiveError):
    """An archive that would unpack to more than is allowed."""


def unpack_zip(archive: Path, folder: Path, max_bytes: int) -> int:
    """Unpacks the files of a .zip into one folder, under names of their own.

    Only the contents are taken: not the archive's names or folders, no links, no devices.

    Args:
        archive: the file.
        folder: empty; it exists.
        max_bytes: the most bytes of all files together; what the archive declares is checked before it is inflated, and
            what comes out while it is.

    Returns:
        The number of files.

    Raises:
        TooMuchError: too many files or bytes.
        ArchiveError: not a sound .zip.
    """
    try:
        with archive.open("rb") as file, zipfile.ZipFile(_ShortReads(file)) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(members, max_bytes)
            left = max_bytes
            for number, member in enumerate(members):
                with opened.open(member) as source, open(folder / f"{number:06d}", "xb") as target:
                    left -= _copy(source, target, left)
            return len(members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, ArchiveError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise ArchiveError(f"the archive is not a sound .zip: {error}") from error
    except Exception as error:  # zlib.error and the like have no common base
        raise ArchiveError(f"the archive is not a sound .zip: {type(error).__name__}") from error


def _check(members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not members:
        raise ArchiveError("the archive holds no file")
    if len(members) > MAX_FILES:
        raise TooMuchError(f"an archive may hold {MAX_FILES} files, this one has {len(members)}")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise TooMuchError(f"an archive may unpack to {max_bytes} bytes, this one says {total}")
    if any(stat.S_ISLNK(member.external_attr >> 16) for member in members):
        raise ArchiveError("an archive may hold no symbolic links")


def _copy(source: Any, target: BinaryIO, most: int) -> int:
    count = 0
    while chunk := source.read(_CHUNK):
        count += len(chunk)
        if count > most:
            raise TooMuchError("the archive unpacks to more than it says")
        target.write(chunk)
    return count


class _ShortReads:
    """A file of which nobody reads much at once, nor before its begin: a forged directory of gigabytes is refused, not loaded."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LONGEST_READ:
            size = _LONGEST_READ
            data = self._file.read(size + 1)
            if len(data) > size:
                raise TooMuchError("the archive's directory is too large")
            return data
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:  # the system would call it an error of the disk
            raise ArchiveError("the archive's directory points before its begin")
        return self._file.seek(offset, whence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def remove_tree(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""What a label's voxels mean, kept beside the label: names of the values, who saved it, when.

MONAI Label keeps this in one file for the whole datastore and writes it after the label. A server killed in between
would leave new voxels under old names. Here every label has a record of its own, `.<file name>.json`, that is written
first and holds what was saved before as well; each entry names its label by the hash of the bytes. So whichever label a
crash leaves, its own entry is there.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from ..sam.files import write_text
from .files import copy_whole, sha256_of

logger = logging.getLogger(__name__)

_KEPT = 2  # the entry being written and the one of the label that it replaces


class Record(NamedTuple):
    """One saved label: the ending of its file, the hash of its bytes, and its metadata."""

    ext: str
    sha256: str
    info: dict[str, Any]


def save(source: str | Path, folder: Path, label_id: str, ext: str, info: dict[str, Any]) -> None:
    """Stores a label and its record; a crash at any moment leaves the old pair or the new one.

    Args:
        source: the label's file, which stays.
        folder: of the labels of one tag; it exists.
        label_id: what the image is called.
        ext: ending of the label's file, such as .nii.gz.
        info: the label's metadata; JSON.

    Raises:
        OSError: it cannot be written; the old label is there as before.
    """
    path = folder / (label_id + ext)
    old = _entries(folder, label_id)
    new = Record(ext, sha256_of(source), info)
    _write(folder, label_id, [new, *old])
    copy_whole(source, path)
    for ending in {record.ext for record in old} - {ext}:  # the same label in another format
        (folder / (label_id + ending)).unlink(missing_ok=True)
    _write(folder, label_id, [new])


def update(folder: Path, label_id: str, info: dict[str, Any]) -> None:
    """Replaces the metadata of a label that has a record."""
    found = find(folder, label_id)
    if found is not None:
        _write(folder, label_id, [found._replace(info=info)])


def find(folder: Path, label_id: str) -> Record | None:
    """The record of the label that lies in the folder; None if there is none, or if its bytes are others."""
    for record in _entries(folder, label_id):
        path = folder / (label_id + record.ext)
        if path.is_file() and sha256_of(path) == record.sha256:
            return record
    return None


def newest_info(folder: Path, label_id: str) -> dict[str, Any] | None:
    """Metadata of the entry written last, without looking at the label."""
    entries = _entries(folder, label_id)
    return entries[0].info if entries else None


def remove(folder: Path, label_id: str) -> None:
    """Removes a record."""
    _path(folder, label_id).unlink(missing_ok=True)


def _path(folder: Path, label_id: str) -> Path:
    return folder / f".{label_id}.json"


def _write(folder: Path, label_id: str, records: list[Record]) -> None:
    text = json.dumps([record._asdict() for record in records[:_KEPT]], default=str, indent=1)
    write_text(_path(folder, label_id), text)


def _entries(folder: Path, label_id: str) -> list[Record]:
    path = _path(folder, label_id)
    try:
        return [Record(str(e["ext"]), str(e["sha256"]), dict(e["info"])) for e in json.loads(path.read_text("utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("The label record %s is unusable: %s", path, error)
        return []

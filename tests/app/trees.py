"""What lies in a folder, as one value to compare before and after."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path


def tree_hash(folder: Path, without: Collection[Path] = (), skipped: Collection[str] = ()) -> str:
    """Hex digest of every path below a folder with its kind, link target, permissions and content.

    Args:
        folder: not followed through symbolic links.
        without: paths that are left out with what is below them.
        skipped: names that are left out wherever they are.
    """
    digest = hashlib.sha256()
    left_out = {str(path) for path in without}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if os.path.join(place, name) not in left_out and name not in skipped
        )
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            if str(path) in left_out or name in skipped:
                continue
            digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_mode}\0".encode())
            if path.is_symlink():
                digest.update(os.readlink(path).encode())
            elif path.is_file():
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

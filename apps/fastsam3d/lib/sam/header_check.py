"""Looks over the text headers of MetaImage and NRRD files before ITK may parse them.

Two things are checked that ITK does not check: that the header sends the reader to no file outside the image's own
folder, and that its lists are as long as its number of dimensions says (MetaIO writes beyond its buffers otherwise).
"""

import re
from pathlib import Path

HEADER_BYTES = 65536
"""A header that is longer than this is refused."""

_META_FIELD = re.compile(rb"([^=:\x00-\x08\x0a-\x1f]+)[=:]([^\x00-\x08\x0a-\x1f]*)")
_LONGEST_LINE = 4096
_META_LISTS = frozenset(b"dimsize elementspacing elementsize offset position origin centerofrotation".split())
_META_MATRICES = frozenset(b"transformmatrix rotation orientation".split())


def voxel_file(path: Path) -> tuple[Path | None, str]:
    """Finds the file that holds a header's voxels.

    Args:
        path: a .nrrd, .nhdr, .mha or .mhd file.

    Returns:
        The file (the header's own, or one beside it) and "", or None and what is wrong with the header.
    """
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    name, fault = _nrrd_data_name(header) if is_nrrd else _meta_data_name(header)
    if fault:
        return None, fault
    if name is None:
        return path, ""
    beside = path.parent / name
    if "%" in name or name.upper().startswith("LIST") or "\0" in name or not beside.is_file():
        return None, f"its voxels must lie in one file beside it, the header names {name[:80]!r}"
    if beside.resolve().parent != path.resolve().parent:
        return None, f"its voxels must lie in its own folder, the header names {name[:80]!r}"
    return beside, ""


def _nrrd_data_name(header: bytes) -> tuple[str | None, str]:
    header, *rest = re.split(rb"\r?\n\r?\n", header, maxsplit=1)
    if not rest and len(header) == HEADER_BYTES:
        return None, f"its header does not end within {HEADER_BYTES} bytes"
    found = re.search(rb"^data ?file:[ \t]*(.*?)[ \t\r]*$", header, re.MULTILINE | re.IGNORECASE)
    return (found[1].decode("utf-8", "replace") if found else None), ""


def _meta_data_name(header: bytes) -> tuple[str | None, str]:
    dimensions = 0
    for line in header.split(b"\n"):
        field = _META_FIELD.fullmatch(line.rstrip(b"\r"))
        if field is None or len(line) > _LONGEST_LINE:
            return None, f"its header holds a line that is no field: {line[:40]!r}"
        key, value = field[1].strip().lower(), field[2].strip()
        if key == b"ndims":
            if dimensions or not re.fullmatch(rb"[2-5]", value):
                return None, f"its NDims must be one number from 2 to 5, got {value[:20]!r}"
            dimensions = int(value)
        elif key in _META_LISTS or key in _META_MATRICES:
            wanted = dimensions**2 if key in _META_MATRICES else dimensions
            if not dimensions or len(value.split()) != wanted:
                return None, f"its {key.decode()} must be {wanted} numbers after NDims, got {value[:60]!r}"
        elif key == b"elementnumberofchannels" and not re.fullmatch(rb"\d{1,3}", value):
            return None, f"its ElementNumberOfChannels must be a number, got {value[:20]!r}"
        elif key == b"elementdatafile":
            return (None if value.upper() == b"LOCAL" else value.decode("utf-8", "replace")), ""
    return None, f"its header names no voxels (ElementDataFile) within {HEADER_BYTES} bytes"

"""Which names and which metadata from clients may be stored."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_NAME_BYTES = 200
"""With an extension and the ending of a temporary file it still is a file name."""
MAX_DEPTH = 16
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UID = re.compile(r"[0-9]+(\.[0-9]+){1,63}")
_LONGEST_UID = 64
_SHOWN = 80


class UnsafeNameError(ValueError):
    """A name that could lead out of the datastore, or metadata that could not be given out again."""


def is_file_name(value: Any) -> bool:
    """Whether a text is one plain part of a path: no separator, no parent, not hidden, printable, not too long."""
    if not isinstance(value, str) or not value or not value.isprintable():
        return False
    if value.startswith(".") or value != value.strip() or any(mark in value for mark in "/\\\0"):
        return False
    return len(value.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


def is_uid(value: Any) -> bool:
    """Whether a text is a DICOM unique identifier."""
    return isinstance(value, str) and len(value) <= _LONGEST_UID and _UID.fullmatch(value) is not None


def is_tag(value: Any) -> bool:
    """Whether a text is a label tag, which is the name of a folder below `labels`."""
    return isinstance(value, str) and _TAG.fullmatch(value) is not None


def check_image_id(value: Any) -> str:
    """Returns an id that may become a file name.

    Raises:
        UnsafeNameError: it may not.
    """
    if not is_file_name(value):
        raise UnsafeNameError(
            f"An image id must be one plain file name of at most {MAX_NAME_BYTES} bytes without / or \\ and not "
            f"beginning with a dot, got {repr(value)[:_SHOWN]}."
        )
    return value


def check_tag(value: Any) -> str:
    """Returns a label tag.

    Raises:
        UnsafeNameError: it is none.
    """
    if not is_tag(value):
        raise UnsafeNameError(
            f"A label tag must be 1 to 64 letters, digits, - or _, such as final, got {repr(value)[:_SHOWN]}."
        )
    return value


def check_info(value: Any) -> dict[str, Any]:
    """Returns metadata of an image or label.

    What is stored here is given out again by GET /datastore/ and next-sample requests: one NaN or half a surrogate pair
    would break these for everybody.

    Raises:
        UnsafeNameError: it is no object, too deep, or holds what is no proper JSON.
    """
    if not isinstance(value, dict):
        raise UnsafeNameError(f'Metadata must be a JSON object such as {{"key": 1}}, got {repr(value)[:_SHOWN]}.')
    _check_value(value, MAX_DEPTH)
    strategy = value.get("strategy", {})
    if not (isinstance(strategy, dict) and all(isinstance(s, dict) for s in strategy.values())):
        raise UnsafeNameError(f"strategy in metadata must be an object of objects, got {repr(strategy)[:_SHOWN]}.")
    return value


def parse_info(text: str) -> dict[str, Any]:
    """Reads a form field with metadata; empty text is an empty object.

    Raises:
        UnsafeNameError: it is no JSON, or see `check_info`.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise UnsafeNameError(f"Metadata must be a JSON object: {str(error)[:_SHOWN]}") from error
    return check_info(value)


def _check_value(value: Any, depth: int) -> None:
    if depth == 0:
        raise UnsafeNameError(f"Metadata may be nested {MAX_DEPTH} levels deep, this is deeper.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, depth)
            _check_value(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UnsafeNameError(f"Metadata must hold finite numbers, got {value}.")
    elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise UnsafeNameError(f"Metadata must be text that can be encoded, got {repr(value)[:_SHOWN]}.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UnsafeNameError("Metadata must hold whole numbers of at most 64 bits.")
